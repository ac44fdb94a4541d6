"""Small real models.

decoder.py, paged.py, smollm2.py   a decoder whose sequences have caches of their own, for serving; SmolLM2-135M in it
llama.py                           transformers' Llama for batches and gradients: SmolLM2-135M, and small ones to train
perplexity.py, choices.py          how good a language model is: perplexity, zero-shot multiple choice
texts.py                           texts as tokens, vocabularies, random windows
capture.py                         what enters linear layers, summed up with bounded memory
"""
