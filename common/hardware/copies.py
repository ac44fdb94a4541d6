"""What copies between host and device cost: `n` calls that move `size` bytes together.

    seconds = max(n * dispatch, size / bandwidth) + n * per_call + fixed

Dispatch hides behind the wire, or the wire behind dispatch; `per_call` is what no overlap hides. The four numbers are
fitted to pinned copies that this project timed on an H100 over PCIe 5 (tables/h100/copies.csv): 64 MiB in 1 to 4,096
equal calls, and single calls of `LEAST` bytes and more. A smaller single copy never took less than 18 us, launch and
event included, which has no share in a swap of hundreds of calls, and is left out.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np

COPIES = Path(__file__).parent / "tables" / "h100" / "copies.csv"
LEAST = 4 << 20  # bytes of the smallest single copy that is fitted
TO_DEVICE, TO_HOST = "h2d", "d2h"

# 16 lanes of PCIe 4 carry 31.5 GB/s; pinned copies reach about 25 (inferred; the H100's reach 55 of 63 over PCIe 5).
PCIE4_BYTES_PER_S = 25e9


@dataclass(frozen=True)
class CopyCost:
    """Seconds of `n` copy calls one after another in one direction; see the module's formula."""

    bandwidth: float  # bytes/s of the wire
    dispatch: float  # s a call, which the wire may hide
    per_call: float  # s a call, always
    fixed: float = 0.0  # s of the whole

    def seconds(self, calls: float, size: float) -> float:
        """Seconds of `calls` calls that move `size` bytes in all; 0 without a call."""
        if not calls:
            return 0.0
        wire = max(calls * self.dispatch, size / self.bandwidth)
        return wire + calls * self.per_call + self.fixed

    def over_pcie4(self) -> "CopyCost":
        """The same host and driver in front of a PCIe 4 x16 slot: the wire alone is slower."""
        return replace(self, bandwidth=PCIE4_BYTES_PER_S)

    def with_host_seconds(self, seconds: float) -> "CopyCost":
        """The same with `seconds` more a call, such as a loop in Python around it (0: free)."""
        return replace(self, per_call=self.per_call + seconds)

    def without_calls(self) -> "CopyCost":
        """The same with calls that cost nothing: what the wire alone would take."""
        return replace(self, dispatch=0.0, per_call=0.0)


@dataclass(frozen=True)
class Timed:
    """Measured copies: calls, bytes of all of them, and seconds, arrays of shape (n,)."""

    calls: np.ndarray
    size: np.ndarray
    seconds: np.ndarray

    def errors(self, cost: CopyCost) -> np.ndarray:
        """Relative errors of a cost, shape (n,)."""
        found = [cost.seconds(n, size) for n, size in zip(self.calls, self.size, strict=True)]
        return np.array(found) / self.seconds - 1


def timed(direction: str, path: Path = COPIES) -> Timed:
    """The pinned copies of one direction ("h2d" or "d2h") that the fit reads. KeyError for another direction."""
    if direction not in (TO_DEVICE, TO_HOST):
        raise KeyError(f"no direction {direction!r}; there is {TO_DEVICE!r} and {TO_HOST!r}")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["direction"] == direction]
    kept = [
        row
        for row in rows
        if row["kind"] == "pinned_blocks" or (row["kind"] == "pinned" and int(row["bytes"]) >= LEAST)
    ]
    return Timed(*(np.array([float(row[name]) for row in kept]) for name in ("calls", "bytes", "seconds")))


def dispatch_seconds(direction: str, path: Path = COPIES) -> float:
    """Seconds to issue one copy call without waiting for it: the mean over the run with the most calls."""
    with path.open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["kind"] == "pinned_blocks_dispatch_only" and row["direction"] == direction
        ]
    most = max(rows, key=lambda row: int(row["calls"]))
    return float(most["seconds"]) / int(most["calls"])


def fit(measured: Timed) -> CopyCost:
    """The cost of least squared relative error.

    The maximum splits the rows by bytes a call: below some size all are bound by dispatch, above it by the wire. For
    every split the problem is linear with coefficients of at least zero, and small enough to try every set of them.
    """
    sizes = measured.size / measured.calls
    best: tuple[float, CopyCost] | None = None
    for border in (0.0, *np.unique(sizes)):
        for cost in _candidates(measured, sizes <= border):
            error = float(np.sum(measured.errors(cost) ** 2))
            if best is None or error < best[0] - 1e-12:  # of equals, the one with fewest coefficients
                best = error, cost
    assert best is not None
    return best[1]


def _candidates(measured: Timed, bound_by_dispatch: np.ndarray) -> Iterator[CopyCost]:
    """Least squares over every set of coefficients that includes the wire, where none comes out negative."""
    columns = np.stack([
        np.where(bound_by_dispatch, 0.0, measured.size),
        np.where(bound_by_dispatch, measured.calls, 0.0),
        measured.calls,
        np.ones_like(measured.calls),
    ]) / measured.seconds  # fmt: skip
    for count in range(4):
        for others in combinations((1, 2, 3), count):
            chosen = [0, *others]
            solved = np.linalg.lstsq(columns[chosen].T, np.ones_like(measured.calls), rcond=None)[0]
            if solved[0] > 0 and np.all(solved >= 0):
                found = dict(zip(chosen, solved.tolist(), strict=True))
                yield CopyCost(1 / found[0], found.get(1, 0.0), found.get(2, 0.0), found.get(3, 0.0))


@cache
def h100(direction: str) -> CopyCost:
    """The cost fitted to this project's H100, pinned memory, PCIe 5; direction: "h2d" or "d2h"."""
    return fit(timed(direction))
