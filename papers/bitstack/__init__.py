"""BitStack: one compressed store of a language model, of which every prefix is a model.

Every weight matrix is scaled by how large its inputs are (scaling.py) and taken apart into blocks of about one bit a
parameter: the signs of what is left, times a matrix of low rank for its absolute values (decomposition.py). The blocks
lie in files (block_files.py). All blocks of all matrices form one stack, sorted by measured perplexity
(universal_stack.py); a device holds as many from its top as fit, reads one more when memory grows, and drops the last
when it shrinks (resident.py, memory_trace.py). Weights are restored on the fly (kernels.py).

Rivals of the same bytes: baselines.py. Perplexities: evaluation.py.
"""
