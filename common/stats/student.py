"""Student's t: the interval of a mean, and how many values an interval of a given width takes."""

import bisect
import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import chi2, t

ASSURANCE = 0.95  # that the interval of so many values is as narrow as asked for
MOST = 1000  # values; what takes more is not decided by more


def student_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of the mean of independent normal values (Student 1908), in the unit of the values.

    One value has no spread that could be seen: (-inf, inf). Raises ValueError for no values, for values that are not
    finite, and for a confidence outside (0, 1).
    """
    if np.ndim(values) != 1 or len(values) == 0 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"an interval needs one row of finite values, not {values!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    n = len(values)
    if n == 1:
        return -math.inf, math.inf
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = half_width(spread, n, confidence)
    return mean - half, mean + half


def half_width(spread: float, n: int, confidence: float = 0.95) -> float:
    """Half the width of the interval of the mean of n values with this standard deviation."""
    return quantile(n, confidence) * spread / math.sqrt(n)


@functools.lru_cache(maxsize=4096)
def quantile(n: int, confidence: float = 0.95) -> float:
    """How many standard errors the interval of the mean of n values reaches to each side."""
    return float(t.ppf((1 + confidence) / 2, n - 1))


def values_needed(spread: float, half: float, least: int = 5, confidence: float = 0.95) -> int | None:
    """How many values with this standard deviation give an interval of at most `half` to each side.

    With a probability of 95%, for the spread of so many values varies too: a spread of 0.1, 0.25 and 0.5 needs 5, 10
    and 26 values for a half-width of 0.25. None where over a thousand are needed, or no number would do.
    """
    if not half > 0:
        return None
    tried = range(least, MOST + 1)
    first = bisect.bisect_left(tried, True, key=lambda n: spread * _likely_half_width(n, confidence) <= half)
    return tried[first] if first < len(tried) else None


@functools.lru_cache(maxsize=4096)
def _likely_half_width(n: int, confidence: float) -> float:
    """Half the width that the interval of n values with a spread of 1 has at most, with a probability of ASSURANCE."""
    return half_width(math.sqrt(float(chi2.ppf(ASSURANCE, n - 1)) / (n - 1)), n, confidence)


def difference_below(ours: Sequence[float], theirs: Sequence[float], factor: float) -> bool:
    """Whether ours - factor * theirs is surely below zero, pair by pair; of a single pair nothing is sure."""
    return student_interval([a - factor * b for a, b in zip(ours, theirs, strict=True)])[1] < 0
