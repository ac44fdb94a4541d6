"""The choice of group size and width: the fastest network that predicts as well as the depthwise one.

The paper couples utilisation, latency and accuracy through G; how it chooses the width is not published, and the rule
here (fastest at equal accuracy) is the plainest that fits its claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FOLDS = 5  # parts of the images; a seed tests on one of them and learns from the others


@dataclass(frozen=True, order=True)
class Point:
    """A network: channels per group of its 3 x 3 layers, and the factor on all channels."""

    group_size: int
    width: float


@dataclass(frozen=True)
class Speed:
    """What the array makes of a network."""

    cycles: int
    utilization: float  # mean over layers


def choose(
    baseline: Point, speeds: Mapping[Point, Speed], gains: Mapping[Point, float], allowed_loss: float
) -> Point:
    """The fastest point whose accuracy is at most `allowed_loss` below the baseline's; the baseline if there is none.

    gains: accuracy minus the baseline's, points; a point without one is not looked at. Of equally fast points the one
    that fills the array more. ValueError for a baseline without a speed.
    """
    if baseline not in speeds:
        raise ValueError(f"the baseline {baseline} has no speed")
    kept = [point for point, gain in gains.items() if gain >= -allowed_loss and point in speeds]
    return min({baseline, *kept}, key=lambda p: (speeds[p].cycles, -speeds[p].utilization, p))


def held_out(gains: Mapping[int, float], seed: int) -> float:
    """The mean gain over all seeds with other test images: what a choice for `seed` may look at. Its own if alone.

    A choice among noisy accuracies favours the lucky ones; judged on images that it has not seen, the luck is gone.
    """
    others = [gain for other, gain in gains.items() if other % FOLDS != seed % FOLDS]
    return sum(others) / len(others) if others else gains[seed]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, value) pairs that no other pair beats in both: least cost first (the Pareto front)."""
    best, kept = float("-inf"), []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return kept
