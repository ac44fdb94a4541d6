"""A small but real 3D-parallel trainer on gloo processes: tensor, pipeline and data parallel, ZeRO stages 0 to 3.

layout.py            how many of what, which rank is where, and the process groups
parameters.py        every parameter of the decoder: its shape, how tensor ranks split it, its first values
tensor_parallel.py   the collectives inside a layer, and what goes backwards through them
blocks.py            embedding, attention with grouped queries, gated MLP, mixture of experts, head and loss
zero.py              what a rank holds of weights, gradients and Adam moments
trainer.py           micro-batches through the pipeline, the update, and a rank's state

However it is laid out, training computes what one process computes, but for the order of sums.
"""
