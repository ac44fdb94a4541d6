"""Bootstrap intervals of a mean."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9999  # SciPy's default; the ends move by about 1% of the width from one seed to the next


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval (low, high) of the mean of independent values, in the unit of the values.

    BCa (Efron 1987: corrected for bias and skew) over `scipy.stats.bootstrap`; the percentile interval where BCa is not
    defined. Equal values v, and a single one, give (v, v). The same values, confidence and seed give the same interval.
    With n values no resample leaves their range, and below about five values the interval is narrower than its name.
    Raises ValueError for no values, for values that are not finite, and for a confidence outside (0, 1).
    """
    sample = checked(values)
    if np.all(sample == sample[0]):
        return float(sample[0]), float(sample[0])
    return interval_of((sample,), _mean, confidence, seed)


def checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values as a float array of shape (n,). Raises ValueError for none or for any that is not finite."""
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(
            f"an interval needs one row of at least one value, not an array of shape {sample.shape}"
        )
    if not np.all(np.isfinite(sample)):
        raise ValueError(f"an interval needs finite values, not {sample[~np.isfinite(sample)][0]}")
    return sample


def interval_of(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], confidence: float, seed: int
) -> tuple[float, float]:
    """Interval of a vectorised statistic over samples that are resampled together (pairs stay pairs).

    statistic(*samples, axis) reduces along `axis`. Raises ValueError for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # SciPy warns of a degenerate BCa interval; it is looked at below
            found = bootstrap(
                samples,
                statistic,
                n_resamples=RESAMPLES,
                confidence_level=confidence,
                method=method,
                paired=True,
                vectorized=True,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    raise ValueError("the statistic is not finite on some resamples, so it has no bootstrap interval")


def _mean(sample: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(sample, axis=axis)
