"""Comparing two methods that met the same seeds: ratio of means, and mean difference, each with its interval.

Pairs are resampled as pairs, so that what a seed does to both methods (common random numbers) cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.stats.intervals import bootstrap_interval, checked, interval_of


@dataclass(frozen=True)
class Comparison:
    """An estimate and its bootstrap interval."""

    value: float
    low: float
    high: float


def ratio_of_means(
    ours: Sequence[float] | np.ndarray,
    theirs: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """mean(ours) / mean(theirs) over pairs, without unit.

    Raises ValueError for samples of different length, and where a value of `theirs` is not positive.
    """
    a, b = _pairs(ours, theirs)
    if np.any(b <= 0):
        raise ValueError(f"a ratio needs positive values below the line, not {b.min():g}")
    value = float(a.mean() / b.mean())
    if np.all(a == a[0]) and np.all(b == b[0]):
        return Comparison(value, value, value)
    if np.allclose(
        a * b[0], a[0] * b, rtol=1e-12, atol=0
    ):  # the same ratio in each pair: any resample gives it
        return Comparison(value, value, value)
    return Comparison(value, *interval_of((a, b), _ratio, confidence, seed))


def mean_difference(
    ours: Sequence[float] | np.ndarray,
    theirs: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Mean of ours - theirs over pairs, in their unit. Raises ValueError for samples of different length."""
    a, b = _pairs(ours, theirs)
    return Comparison(float(np.mean(a - b)), *bootstrap_interval(a - b, confidence, seed))


def _pairs(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    a, b = checked(ours), checked(theirs)
    if len(a) != len(b):
        raise ValueError(f"pairs need samples of the same length, not {len(a)} and {len(b)}")
    return a, b


def _ratio(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(ours, axis=axis) / np.mean(theirs, axis=axis)
