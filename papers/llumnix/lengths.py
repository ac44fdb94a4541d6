"""The authors' power-law lengths: most requests are short, a few are very long.

Source: alibaba/llm-scheduling-artifact, its benchmark's "zipf" lengths: ranks 1..2m-1 drawn with probability
proportional to rank^-alpha, scaled to the mean m, rounded up and cut at 6,144 tokens.
"""

import math

import numpy as np

from common.serving.workload import Workload, gamma, poisson

EXPONENTS = {128: 2.0, 256: 1.5, 512: 1.15}  # alpha by mean, in the artifact's table
LONGEST = 6144  # tokens; irange and oranges of its configurations


def power_law_lengths(mean: int, rng: np.random.Generator, n: int) -> np.ndarray:
    """`n` lengths in tokens, shape (n,), of mean `mean` before the cut. KeyError for a mean without an exponent."""
    if mean not in EXPONENTS:
        raise KeyError(f"the authors' lengths have a mean of {sorted(EXPONENTS)} tokens, not {mean}")
    ranks = np.arange(1, 2 * mean)
    weights = ranks ** -EXPONENTS[mean]
    drawn = rng.choice(ranks, size=n, p=weights / weights.sum())
    scaled = np.ceil(drawn * (mean / drawn.mean())).astype(np.int64)
    return np.minimum(scaled, LONGEST)


def means(trace: str) -> tuple[int, int]:
    """Input and output mean of a trace such as "512-128"."""
    prompt, output = trace.split("-")
    return int(prompt), int(output)


def draw_trace(
    trace: str, rng: np.random.Generator, n: int, cv: float = 1.0, homogeneous: bool = False
) -> Workload:
    """Requests of a trace at one a second: Gamma arrivals of that coefficient of variation (1: Poisson), two lengths.

    homogeneous: every request has the mean lengths instead, so that nothing about it is unknown.
    """
    prompt, output = means(trace)
    arrival = poisson(rng, n) if math.isclose(cv, 1.0) else gamma(rng, n, cv)
    if homogeneous:
        return Workload(arrival, np.full(n, prompt), np.full(n, output))
    return Workload(arrival, power_law_lengths(prompt, rng, n), power_law_lengths(output, rng, n))
