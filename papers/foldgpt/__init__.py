"""FoldGPT: fewer blocks, and neighbours that run the same weights.

Neighbouring blocks of a decoder change the hidden state little (similarity.py). FoldGPT learns a gate for every block,
all at once (gates.py), removes the blocks whose gates close, lets groups of the remaining neighbours run one parent's
matrices (grouping.py, virtual_blocks.py), and heals the result with low-rank adapters, norms and the original's last
layers as teacher (healing.py). Removal saves compute and size, sharing saves size alone (latency.py).
Isolated scores, a greedy search and LaCo, which it is compared with: baselines.py. Does similarity grow with depth?
depth_ladder.py. Of the paper only the abstract and summaries could be read; what is inferred is marked so.
"""
