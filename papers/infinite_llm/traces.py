"""Requests with a heavy tail of contexts: mostly chat, and some as long as the trace allows."""

import numpy as np

from common.serving.workload import Lengths, Workload


def draw(
    rng: np.random.Generator,
    n: int,
    chat: Lengths,
    longest: int,
    spread: float = 1.0,
    long_share: float = 0.1,
    shortest_long: int = 8_000,
) -> Workload:
    """`n` requests, all there at once: offline serving.

    chat: lengths that are drawn from. A share of the prompts is log-uniform between `shortest_long` and `longest`
    tokens instead. spread: 1 as drawn, 0 all of mean length, between them logarithms shrunk by so much
    around the same mean.
    """
    drawn = chat.sample(rng, n)
    long = rng.random(n) < long_share
    tail = np.exp(rng.uniform(np.log(shortest_long), np.log(longest), n)).astype(np.int64)
    prompt, output = np.where(long, tail, drawn.prompt), drawn.output
    return Workload(np.zeros(n), _spread(prompt, spread), _spread(output, spread))


def _spread(lengths: np.ndarray, spread: float) -> np.ndarray:
    """Lengths whose logarithms vary `spread` times as much, with the same mean (up to rounding)."""
    if spread == 1.0:
        return np.maximum(1, lengths)
    shrunk = np.maximum(1, lengths).astype(float) ** spread
    return np.maximum(1, np.rint(shrunk * (lengths.mean() / shrunk.mean())).astype(np.int64))
