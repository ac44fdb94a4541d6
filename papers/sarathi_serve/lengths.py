"""Prompt and output lengths like those of the paper's two traces (Table 2)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.serving.workload import Lengths, Workload, poisson


@dataclass(frozen=True)
class Kind:
    """A log-normal fit to a trace's published median and 90th percentile, and the longest request in tokens.

    The 90th percentile of a log-normal is median * exp(1.2816 sigma).
    """

    prompt: tuple[float, float]  # median, sigma
    output: tuple[float, float]
    longest: int  # prompt and output together: the model length that the authors serve the trace with


# Median and 90th percentile by Table 2: prompts 1,730 and 5,696, outputs 415 and 834 (openchat_sharegpt4);
# prompts 7,059 and 12,985, outputs 208 and 371 (arxiv_summarization). Longest: osdi-experiments/figure-5-6.
KINDS = {
    "chat": Kind((1730, 0.93), (415, 0.5), 8192),
    "arxiv": Kind((7059, 0.48), (208, 0.45), 16384),
}
SHORTEST = 8  # tokens
REAL = {"arxiv-real": "vattention-arxiv-sample"}  # traces that a full run replays, by their data sets' names


def clipped(lengths: Lengths, longest: int) -> Lengths:
    """Requests over `longest` tokens in all have prompt and output cut in proportion (the authors' rule)."""
    total = lengths.prompt + lengths.output
    share = np.minimum(1.0, longest / total)
    prompt = np.maximum(1, np.floor(lengths.prompt * share)).astype(np.int64)
    output = np.maximum(1, np.floor(lengths.output * share)).astype(np.int64)
    return Lengths(prompt, output)


def draw(kind: str, rng: np.random.Generator, n: int, path: Path | None = None) -> Workload:
    """`n` requests at one a second on average, Poisson arrivals; from the trace at `path` for "arxiv-real".

    Raises KeyError for an unknown kind.
    """
    shape = KINDS[kind.removesuffix("-real")]
    if path is not None:
        lengths = _read(path).within(shape.longest + 1).sample(rng, n)
    else:
        drawn = [
            np.maximum(SHORTEST, rng.lognormal(np.log(median), sigma, n)).astype(np.int64)
            for median, sigma in (shape.prompt, shape.output)
        ]
        lengths = clipped(Lengths(*drawn), shape.longest)
    return Workload(poisson(rng, n), lengths.prompt, lengths.output)


def _read(path: Path) -> Lengths:
    table = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=(0, 1))
    prompt, output = np.rint(table).astype(np.int64).T
    return Lengths(prompt, output)
