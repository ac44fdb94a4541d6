"""A distribution kept as a table of its quantiles. numpy alone, so that experiments may import it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QuantileTable:
    """Quantile function given at some probabilities and linear between them.

    probabilities: strictly ascending from 0 to 1; values: quantiles at these, ascending; both of shape (k,), k >= 2.
    Raises ValueError for anything else.
    """

    probabilities: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        for name in ("probabilities", "values"):
            column = np.array(getattr(self, name), dtype=float)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        p, q = self.probabilities, self.values
        if p.ndim != 1 or p.shape != q.shape or len(p) < 2:
            raise ValueError(
                f"a quantile table needs two columns of k >= 2 numbers, not {p.shape} and {q.shape}"
            )
        if not (np.all(np.isfinite(p)) and np.all(np.isfinite(q))):
            raise ValueError("probabilities and values must be finite")
        if p[0] != 0 or p[-1] != 1 or np.any(np.diff(p) <= 0):
            raise ValueError("probabilities must ascend strictly from 0 to 1")
        if np.any(np.diff(q) < 0):
            raise ValueError("quantiles must not descend")

    @classmethod
    def from_sample(cls, sample: Sequence[float] | np.ndarray, probabilities: np.ndarray) -> "QuantileTable":
        """The quantiles of a sample of shape (n,) at these probabilities."""
        if len(sample) == 0:
            raise ValueError("a quantile table needs a sample of at least one value")
        return cls(probabilities, np.quantile(np.asarray(sample, dtype=float), probabilities))

    def at(self, probability: np.ndarray) -> np.ndarray:
        """The quantiles at any probabilities in [0, 1]; the same shape."""
        return np.interp(probability, self.probabilities, self.values)

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """`n` draws by inverse transform, shape (n,), float."""
        return self.at(rng.random(n))

    @property
    def mean(self) -> float:
        """The mean of what `sample` draws, exactly: the area under the piecewise linear quantile function."""
        middle = (self.values[1:] + self.values[:-1]) / 2
        return float(np.sum(np.diff(self.probabilities) * middle))
