"""Choosing the token budget: the largest whose iteration stays within the TBT objective (Section 4.3)."""

from common.serving.latency import LatencyModel

DECODES = 32  # sequences at CONTEXT tokens each: the decode batch by which the paper defines its objectives
CONTEXT = 4096
TILE = 128  # tokens that a GEMM kernel of the profile computes together; a budget off this grid wastes part of one


def iteration_seconds(
    latency: LatencyModel, tokens: int, decodes: int = DECODES, context: int = CONTEXT
) -> float:
    """Of `tokens` tokens, decodes among them, whose chunk stands at the end of a prompt of `context` tokens.

    With pipeline stages a token waits for all of them.
    """
    chunk = tokens - decodes
    chunks = [(chunk, max(0, context - chunk))] if chunk > 0 else []
    first, later = latency.iteration(chunks, decodes, decodes * context)
    return first + later * (latency.stages - 1)


def token_budget(latency: LatencyModel, objective: float, largest: int = 8192) -> int:
    """The largest multiple of TILE up to `largest` whose iteration keeps to `objective` seconds; 0 if none does.

    The one-time profiling of Section 4.3. Iterations grow with their tokens, but for the steps of GEMM kernels, so
    every candidate is tried.
    """
    fitting = [
        tokens
        for tokens in range(TILE, largest + 1, TILE)
        if tokens > DECODES and iteration_seconds(latency, tokens) <= objective
    ]
    return max(fitting, default=0)
