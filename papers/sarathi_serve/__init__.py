"""Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (OSDI 2024, arXiv:2403.02310)

A system that runs new prompts as soon as they fit makes every running request wait for a whole long prompt: tokens
come in bursts, with stalls between. A system that finishes running requests first leaves the GPU idle, for a decode
iteration reads all weights to produce one token a request. Sarathi-Serve cuts prompts into chunks and fills each
iteration up to a token budget: first every running decode, then chunks of prompts. Iterations become about equally
long, no decode ever waits for a whole prompt, and pipeline stages get equal work, which closes their bubbles.

    schedulers.py    the stall-free scheduler (Algorithm 3), and chunking without hybrid batches
    hybrid.py        what mixing decodes and chunks in one pass saves
    gains.py         how much more it sustains than vLLM and Orca, in every setting
    iterations.py    single iterations: a decode beside a chunk, chunks against one shot
    deployments.py   the paper's models, GPUs, objectives, token budgets and rivals
    lengths.py       requests like those of its two traces
    capacity.py      the rate that a system sustains under an objective
    ablation.py      hybrid batches and chunks, each without the other (Table 4)
    pipeline.py      bubbles, and tensor parallelism across nodes
    budget.py        how the token budget is chosen
    chunking.py      real chunked prefill is exact
    mini_engine.py   three policies behind one real engine on the CPU
"""
