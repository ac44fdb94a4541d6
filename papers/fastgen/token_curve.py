"""The three insights behind the schedule, on a forward pass that really runs (Section 3.A).

The seconds of a pass follow its tokens and hardly their sequences; tokens a second first rise with the tokens of a pass
and then stop; and the curve is concave, 2 f(x) >= f(x + h) + f(x - h), so that equal passes are the best use of
it. Here a decoder runs on this machine's CPU, on one thread.
"""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from common.models.decoder import Decoder, DecoderConfig, KVCache

SMALL = DecoderConfig(vocab=512, hidden=256, layers=4, heads=4, intermediate=704, positions=1024)
COMPOSITIONS = (1, 4, 16)  # sequences that share the tokens of a pass
KNEE = 0.9  # of the highest throughput: where more tokens a pass no longer pay
WARM_UP = 2

Seconds = Callable[[int], float]


def forward(model: Decoder, tokens: int, sequences: int = 1) -> Callable[[], object]:
    """A forward pass over `tokens` new tokens, as equal a share in each of `sequences` sequences as can be."""
    share, over = divmod(tokens, sequences)
    lengths = [share + (index < over) for index in range(sequences)]
    feeds = [torch.arange(length) % model.config.vocab for length in lengths if length]
    caches = [KVCache(model.config, len(feed)) for feed in feeds]

    def run() -> object:
        for cache in caches:
            cache.length = 0
        return model(feeds, caches)

    return run


def fastest(passes: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of each pass, its fastest of several turns; they take turns, so that a slow moment hits all alike."""
    taken = [[0.0] * turns for _ in passes]
    for turn in range(-WARM_UP, turns):
        for place, run in enumerate(passes):
            begun = time.perf_counter()
            run()
            if turn >= 0:
                taken[place][turn] = time.perf_counter() - begun
    return [min(row) for row in taken]


def measured_curve(model: Decoder, tokens: Sequence[int], turns: int = 5) -> np.ndarray:
    """Seconds of a pass over one sequence, shape (len(tokens),)."""
    return np.array(fastest([forward(model, count) for count in tokens], turns))


def by_composition(model: Decoder, tokens: int, wrong: float = 0.0, turns: int = 5) -> list[float]:
    """Seconds of passes over the same number of tokens in 1, 4 and 16 sequences.

    wrong: share of its tokens that the first pass hands to the last, so that they are not the same number.
    """
    counts = [tokens] * len(COMPOSITIONS)
    counts[0] -= round(wrong * tokens)
    counts[-1] += round(wrong * tokens)
    passes = [forward(model, count, parts) for count, parts in zip(counts, COMPOSITIONS, strict=True)]
    return fastest(passes, turns)


def variation(values: Sequence[float]) -> float:
    """Standard deviation over the mean."""
    return float(np.std(values) / np.mean(values))


def knee(tokens: Sequence[int], seconds: np.ndarray) -> int:
    """The smallest pass that reaches 90% of the highest throughput: the token budget to choose."""
    rate = np.asarray(tokens) / seconds
    return int(tokens[int(np.argmax(rate >= KNEE * rate.max()))])


def concavity(tokens: Sequence[int], seconds: np.ndarray) -> float:
    """How far the throughput f of a pass lies above its own chords: 1 on a straight line, less where f is convex.

    The mean over measured x of f(x) / ((1 - w) f(left) + w f(right)) with the neighbours left and right, where w places
    x between them: the paper's inequality, on a grid that need not be even.
    """
    x = np.asarray(tokens, dtype=float)
    f = x / seconds
    weight = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    return float(np.mean(f[1:-1] / ((1 - weight) * f[:-2] + weight * f[2:])))


def concave_share(tokens: Sequence[int], seconds: np.ndarray) -> float:
    """Share of neighbouring slopes of the throughput that do not rise."""
    x = np.asarray(tokens, dtype=float)
    slopes = np.diff(x / seconds) / np.diff(x)
    return float(np.mean([after <= before for before, after in pairwise(slopes)]))


def concave_fit(tokens: Sequence[int], seconds: np.ndarray) -> np.ndarray:
    """The concave throughput nearest to the measured one in least squares, tokens/s, shape (len(tokens),).

    A line through a point plus hinges that only bend it downwards, by non-negative least squares.
    """
    from scipy.optimize import nnls

    x = np.asarray(tokens, dtype=float)
    rate = x / seconds
    hinges = [-np.maximum(0.0, x - point) for point in x[1:-1]]
    ones = np.ones_like(x)
    columns = np.stack([ones, -ones, x, -x, *hinges], axis=1)
    scale = columns.max(axis=0) - columns.min(axis=0)
    scale[scale == 0] = 1.0
    weights, _ = nnls(columns / scale, rate / rate.max(), maxiter=100 * columns.shape[1])
    return (columns / scale) @ weights * rate.max()


def explained(values: np.ndarray, fitted: np.ndarray) -> float:
    """R squared of a fit."""
    return float(1 - np.sum((values - fitted) ** 2) / np.sum((values - values.mean()) ** 2))


def split(tokens: int, passes: int, wrong: float = 0.0) -> list[int]:
    """Tokens of each of an even number of passes; every second one hands `wrong` of its own to the one before.

    0 is the equal split. Raises ValueError for an odd number of passes, and where they can't be of equal size.
    """
    if passes % 2 or tokens % passes:
        raise ValueError(f"{tokens} tokens do not split into an even number of equal passes ({passes})")
    each = tokens // passes
    moved = round(wrong * each)
    return [each + moved, each - moved] * (passes // 2)


def makespan(seconds: Seconds, sizes: Sequence[int]) -> float:
    """Seconds of passes of these sizes, one after another; an empty one takes none."""
    return sum(seconds(size) for size in sizes if size)
