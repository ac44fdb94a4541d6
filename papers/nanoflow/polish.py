"""Stage II's polish: with a schedule's order fixed, the best starts and shares are a mixed-integer linear program.

Pairs that do not overlap keep their order, pairs that do may go on overlapping, and the shares of what overlaps sum to
at most 1. Then starts s, the period T and one binary for each op and level of share enter linearly:

    s_j + lag * T >= s_i + d_i,    d_i = sum_r x_ir * work_i / P(r),    sum_r x_ir = 1,    sum of r over a clique <= 1
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import NamedTuple

import numpy as np

from papers.nanoflow.interference import Interference
from papers.nanoflow.nano_batches import Layer

# Layers apart that two operations may overlap: a chain lasts one period, places span few.
_SHIFTS = np.arange(-4, 5)


class Schedule(NamedTuple):
    """A periodic schedule: starts (us) of one layer's ops, their shares, and when the next layer's follow."""

    period: float
    starts: tuple[float, ...]
    shares: tuple[float, ...]


@contextmanager
def silent() -> Iterator[None]:
    """Keeps what a compiled solver writes to the process's standard output out of notebooks and tables."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what the solver wrote may still stand in C's buffer
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def polish(
    layer: Layer, curves: Interference, draft: Schedule, levels: Sequence[Sequence[float]], *, nodes: int
) -> Schedule | None:
    """The best schedule that keeps the draft's order; None where none is found.

    levels: shares that each op may take, equally many for every op. nodes: limit of the branch and bound, so that time
    plays no part; where an op has one level a linear program is left, and one will do.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    n, count = len(layer.ops), len(levels[0])
    times = np.array(
        [
            [curves.seconds(op.stream, op.work, r) for r in row]
            for op, row in zip(layer.ops, levels, strict=True)
        ]
    )
    shares = np.array(levels)
    columns = n + 1 + n * count  # starts, period, choices
    rows: list[np.ndarray] = []
    low: list[float] = []

    def at_least(bound: float, values: np.ndarray, *ops: int) -> np.ndarray:
        """A new constraint: the chosen ones of these values of the ops sum to the bound or more."""
        row = np.zeros(columns)
        for op in ops:
            row[n + 1 + op * count : n + 1 + (op + 1) * count] = values[op]
        rows.append(row)
        low.append(bound)
        return row

    def follows(i: int, j: int, lag: int) -> None:
        """j, `lag` layers later, starts when i has ended."""
        row = at_least(0.0, -times, i)
        row[j] += 1
        row[i] -= 1
        row[n] = lag

    for edge in layer.dependencies:
        follows(edge.before, edge.after, edge.lag)
    for i in range(n):
        follows(i, i, 1)
    lengths = [curves.seconds(op.stream, op.work, r) for op, r in zip(layer.ops, draft.shares, strict=True)]
    margin = 1e-6 * draft.period
    overlaps: dict[tuple[int, int], list[int]] = {}
    for i, j in combinations(range(n), 2):
        at = draft.starts[j] + _SHIFTS * draft.period
        after = at >= draft.starts[i] + lengths[i] - margin
        ahead = at + lengths[j] <= draft.starts[i] + margin
        beside = overlaps[i, j] = _SHIFTS[~after & ~ahead].tolist()
        same = layer.ops[i].stream == layer.ops[j].stream
        if (same and beside) or not after.any() or not ahead.any():
            return None
        follows(i, j, int(_SHIFTS[after].min()))
        follows(j, i, -int(_SHIFTS[ahead].max()))
        if beside:
            at_least(-1.0, -shares, i, j)
    for i, j, k in combinations(range(n), 3):
        for a in overlaps[i, j]:
            for b in overlaps[i, k]:
                if b - a in overlaps[j, k]:
                    at_least(-1.0, -shares, i, j, k)
    for i in range(n):
        at_least(1.0, np.ones_like(shares), i)
        at_least(-1.0, -np.ones_like(shares), i)
    cost = np.zeros(columns)
    cost[n] = 1.0
    lower, upper = np.zeros(columns), np.ones(columns)
    lower[1:n], upper[1 : n + 1] = -np.inf, np.inf
    upper[0] = 0.0
    with silent():
        result = milp(
            cost,
            integrality=(np.arange(columns) > n).astype(int),
            bounds=Bounds(lower, upper),
            constraints=LinearConstraint(np.array(rows), np.array(low), np.inf),
            options={"node_limit": nodes, "mip_rel_gap": 1e-3},
        )
    if result.x is None:
        return None
    taken = result.x[n + 1 :].reshape(n, count).argmax(axis=1)
    chosen = tuple(float(row[level]) for row, level in zip(levels, taken, strict=True))
    return Schedule(float(result.x[n]), tuple(map(float, result.x[:n])), chosen)
