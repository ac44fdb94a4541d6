"""Requests with a heavy tail of contexts: mostly chat, and some as long as the trace allows."""

import numpy as np

from common.serving.workload import Lengths, Workload

LONG_SHARE = 0.1  # of requests (inferred)
SHORTEST_LONG = 8_000  # tokens (inferred)


def draw(
    rng: np.random.Generator,
    n: int,
    chat: Lengths,
    longest: int,
    equal: bool = False,
    long_share: float = LONG_SHARE,
) -> Workload:
    """`n` requests, all there at once: offline serving.

    chat: lengths that are drawn from. A share of the prompts is log-uniform between SHORTEST_LONG and `longest` tokens
    instead. equal: all requests have the mean lengths of these, so that no instance has more to store than another.
    """
    drawn = chat.sample(rng, n)
    long = rng.random(n) < long_share
    tail = np.exp(rng.uniform(np.log(SHORTEST_LONG), np.log(longest), n)).astype(np.int64)
    prompt = np.where(long, tail, drawn.prompt)
    output = drawn.output
    if equal:
        prompt = np.full(n, round(float(prompt.mean())))
        output = np.full(n, round(float(output.mean())))
    return Workload(np.zeros(n), prompt, np.maximum(1, output))
