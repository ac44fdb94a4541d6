"""The choice of group size and width: the fastest network that surely predicts as well as the depthwise one.

The paper couples utilisation, latency and accuracy through G; how it chooses the width is not published, and the rule
here (fastest at equal accuracy) is the plainest that fits its claim. Accuracies are noisy, so that a candidate counts
as equal only where a one-sided 95% Student interval of what it gains lies above the allowed loss.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FOLDS = 5  # parts of the images; a seed tests on one of them and learns from the others
CONFIDENCE = 0.95  # that a chosen network loses no more than is allowed


@dataclass(frozen=True, order=True)
class Point:
    """A network: channels per group of its 3 x 3 layers, and the factor on all channels."""

    group_size: int
    width: float


BASELINE = Point(1, 1.0)


@dataclass(frozen=True)
class Speed:
    """What the array makes of a network."""

    cycles: int
    utilization: float  # mean over layers


def choose(speeds: Mapping[Point, Speed], kept: Iterable[Point]) -> Point:
    """The fastest of the kept points, of equally fast ones the one that fills more; the baseline where none is kept.

    ValueError for a point without a speed.
    """
    candidates = set(kept) or {BASELINE}
    if missing := sorted(candidates - speeds.keys()):
        raise ValueError(f"no speed is known of {', '.join(map(str, missing))}")
    return min(candidates, key=lambda p: (speeds[p].cycles, -speeds[p].utilization, p))


def loses_at_most(gains: Sequence[float], allowed_loss: float) -> bool:
    """Whether paired gains in accuracy, points, surely (one-sided, 95%) have a mean above -allowed_loss.

    Fewer than two gains say nothing, and so does a gain that is no number.
    """
    if len(gains) < 2 or not all(map(math.isfinite, gains)):
        return False
    from scipy.stats import (
        t as student,
    )  # where only torch and numpy exist the rest of this file does without

    n, mean = len(gains), math.fsum(gains) / len(gains)
    error = math.sqrt(math.fsum((gain - mean) ** 2 for gain in gains) / (n - 1) / n)
    return mean - float(student.ppf(CONFIDENCE, n - 1)) * error >= -allowed_loss


def held_out(gains: Mapping[int, float], seed: int) -> list[float]:
    """The gains of all seeds with other test images: what a choice for `seed` may look at.

    A choice among noisy accuracies favours the lucky ones; judged on images that it has not seen, the luck is gone.
    """
    return [gain for other, gain in gains.items() if other % FOLDS != seed % FOLDS]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, value) pairs that no other pair beats in both: least cost first (the Pareto front)."""
    best, kept = float("-inf"), []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return kept
