"""The three insights behind the schedule, as questions to the seconds of a pass over its tokens (Section 3.A).

The seconds of a pass follow its tokens and hardly their sequences; tokens a second first rise with the tokens of a pass
and then stop; and the curve is concave, 2 f(x) >= f(x + h) + f(x - h), so that equal passes are the best use of
it. real_runs.py asks them of a forward pass that runs on this machine.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

A100_CURVE = (1, 16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)  # tokens of a pass
SPLITS = range(
    32, 3073, 32
)  # tokens of an equal pass, below, at and beyond the bend, on all steps of the tiles
KNEE = 0.9  # of the highest throughput: where more tokens a pass no longer pay
IRREGULAR = 0.5  # share of a pass's tokens that the unequal split moves to its neighbour

Seconds = Callable[[int], float]
MADE_UP: dict[str, Seconds] = {
    "square throughput": lambda tokens: 1.0 / tokens,  # not concave in throughput
    "root seconds": lambda tokens: float(
        np.sqrt(tokens)
    ),  # not convex in seconds: equal passes are the worst
    "roof": lambda tokens: max(
        1.0, tokens / 768
    ),  # memory-bound up to the default budget, compute-bound beyond
}


def rates(tokens: Sequence[int], seconds: np.ndarray, least: int = 1) -> np.ndarray:
    """Tokens/s of passes whose tokens rise; ValueError for fewer than `least`, and for what is no such curve."""
    x, y = np.asarray(tokens, dtype=float), np.asarray(seconds, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < least:
        raise ValueError(f"{x.shape} tokens and {y.shape} seconds are no curve of at least {least} passes")
    if not (x[0] > 0 and np.all(np.diff(x) > 0) and np.all(np.isfinite(y) & (y > 0))):
        raise ValueError("the tokens of passes must rise from one, and their seconds be finite and positive")
    return x / y


def variation(values: Sequence[float]) -> float:
    """Standard deviation over the mean."""
    return float(np.std(values) / np.mean(values))


def knee(tokens: Sequence[int], seconds: np.ndarray) -> int:
    """The smallest pass that reaches 90% of the highest throughput: the token budget to choose."""
    rate = rates(tokens, seconds)
    return int(tokens[int(np.argmax(rate >= KNEE * rate.max()))])


def concavity(tokens: Sequence[int], seconds: np.ndarray) -> float:
    """How far the throughput f of a pass lies above its own chords: 1 on a straight line, less where f is convex.

    The mean over measured x of f(x) / ((1 - w) f(left) + w f(right)) with the neighbours left and right, where w places
    x between them: the paper's inequality, on a grid that need not be even.
    """
    x, f = np.asarray(tokens, dtype=float), rates(tokens, seconds, least=3)
    weight = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    return float(np.mean(f[1:-1] / ((1 - weight) * f[:-2] + weight * f[2:])))


def concave_share(tokens: Sequence[int], seconds: np.ndarray) -> float:
    """Share of neighbouring slopes of the throughput that do not rise."""
    slopes = np.diff(rates(tokens, seconds, least=3)) / np.diff(np.asarray(tokens, dtype=float))
    return float(np.mean([after <= before for before, after in pairwise(slopes)]))


def concave_fit(tokens: Sequence[int], seconds: np.ndarray) -> np.ndarray:
    """The concave throughput nearest to the measured one in least squares, tokens/s, shape (len(tokens),).

    A line through a point plus hinges that only bend it downwards, by non-negative least squares.
    """
    from scipy.optimize import nnls

    x, rate = np.asarray(tokens, dtype=float), rates(tokens, seconds)
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

    0 is the equal split. Raises ValueError for an odd number of passes, where they can't be of equal size, and for a
    share that is none.
    """
    if not 0 <= wrong <= 1:
        raise ValueError(f"a pass hands over a share of its tokens from 0 to 1, not {wrong}")
    if passes < 2 or tokens < passes or passes % 2 or tokens % passes:
        raise ValueError(f"{tokens} tokens do not split into an even number of equal passes ({passes})")
    each = tokens // passes
    moved = round(wrong * each)
    return [each + moved, each - moved] * (passes // 2)


def makespan(seconds: Seconds, sizes: Sequence[int]) -> float:
    """Seconds of passes of these sizes, one after another; an empty one takes none."""
    return sum(seconds(size) for size in sizes if size)
