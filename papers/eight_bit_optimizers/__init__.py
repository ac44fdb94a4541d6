"""8-bit Optimizers via Block-wise Quantization (ICLR 2022, arXiv:2110.02861).

Adam keeps two running averages for every parameter, eight bytes in 32 bits. Here they are kept in eight bits each
between steps: dequantised, updated in 32 bits, quantised again. It works because of three parts: blocks of 2,048
elements have scales of their own, so that an outlier spoils its block alone; a non-linear code book reaches over seven
decades, so that small second moments are not flushed to zero; and the embedding is normalised and keeps 32-bit states.

optimizer.py              Adam and Momentum with quantised states, checkpoints that resume to the bit
percentile_clipping.py    gradients clipped at a percentile of their last hundred norms
stable_embedding.py       Xavier-uniform, layer norm behind the lookup; and the standard embedding
update_error.py           what quantisation does to Adam's update on real states: flushed to zero, off by how much
memory.py                 bytes of state, measured on tensors that exist; Adafactor's
language_task.py          the language model of the ablation
tasks.py                  a CNN on images, sentences of film reviews, translation
runs.py                   one training run: its loss, whether it was unstable
study.py                  which settings meet which hyper-parameters, each trained once
comparisons.py            one run over another, with the metric's name
timing.py                 seconds of an update on this CPU, in the H100 table, on the user's GPU
"""
