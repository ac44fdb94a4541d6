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

_SHIFTS = range(
    -4, 5
)  # layers apart that two operations may overlap; a chain lasts one period, places span few


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


def durations(layer: Layer, curves: Interference, shares: Sequence[float]) -> np.ndarray:
    """Microseconds of each op at its share, shape (ops,)."""
    return np.array(
        [curves.seconds(op.stream, op.work, share) for op, share in zip(layer.ops, shares, strict=True)]
    )


def polish(
    layer: Layer,
    curves: Interference,
    draft: Schedule,
    levels: Sequence[Sequence[float]],
    *,
    whole: bool = True,
    nodes: int = 2000,
) -> Schedule | None:
    """The best schedule that keeps the draft's order; None where none is found.

    levels: shares that each op may take, equally many for every op. whole: False lets an op mix levels, which bounds
    what whole levels can reach and is no schedule. nodes: limit of the branch and bound, so that time plays no part.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    n, count = len(layer.ops), len(levels[0])
    times = np.array(
        [
            [curves.seconds(op.stream, op.work, r) for r in row]
            for op, row in zip(layer.ops, levels, strict=True)
        ]
    )
    columns = n + 1 + n * count  # starts, period, choices
    rows: list[tuple[dict[int, float], float]] = []  # coefficients, lower bound

    def choices(op: int, values: Sequence[float] | np.ndarray, sign: float) -> dict[int, float]:
        return {n + 1 + op * count + r: sign * float(value) for r, value in enumerate(values)}

    def order(i: int, j: int, lag: int) -> None:
        if i == j:
            rows.append(({n: float(lag), **choices(i, times[i], -1.0)}, 0.0))
        else:
            rows.append(({j: 1.0, i: -1.0, n: float(lag), **choices(i, times[i], -1.0)}, 0.0))

    for edge in layer.dependencies:
        order(edge.before, edge.after, edge.lag)
    lasting = durations(layer, curves, draft.shares)
    overlaps: dict[tuple[int, int], list[int]] = {}
    for i in range(n):
        order(i, i, 1)
    for i, j in combinations(range(n), 2):
        start, end = draft.starts[i], draft.starts[i] + lasting[i]
        same = layer.ops[i].stream == layer.ops[j].stream
        margin = 1e-6 * draft.period
        middle = []
        for k in _SHIFTS:
            begin = draft.starts[j] + k * draft.period
            if begin < end - margin and begin + lasting[j] > start + margin:
                middle.append(k)
        if same and middle:
            return None
        at = draft.starts[j] + np.array(_SHIFTS) * draft.period
        after = [k for k, b in zip(_SHIFTS, at, strict=True) if b >= end - margin and k not in middle]
        ahead = [
            k
            for k, b in zip(_SHIFTS, at, strict=True)
            if b + lasting[j] <= start + margin and k not in middle
        ]
        if not after or not ahead:
            return None
        order(i, j, min(after))
        order(j, i, -max(ahead))
        overlaps[i, j] = middle
        if middle:
            rows.append(({**choices(i, levels[i], -1.0), **choices(j, levels[j], -1.0)}, -1.0))
    for i, j, k in combinations(range(n), 3):
        for a in overlaps[i, j]:
            for b in overlaps[i, k]:
                if b - a in overlaps[j, k]:
                    held = {
                        **choices(i, levels[i], -1.0),
                        **choices(j, levels[j], -1.0),
                        **choices(k, levels[k], -1.0),
                    }
                    rows.append((held, -1.0))
    for i in range(n):
        rows.append((choices(i, [1.0] * count, 1.0), 1.0))
        rows.append((choices(i, [1.0] * count, -1.0), -1.0))
    where = [(row, column) for row, (found, _) in enumerate(rows) for column in found]
    data = [value for found, _ in rows for value in found.values()]
    matrix = csr_array((data, np.array(where).T), shape=(len(rows), columns))
    cost = np.zeros(columns)
    cost[n] = 1.0
    low = np.concatenate([np.full(n, -np.inf), [0.0], np.zeros(n * count)])
    low[0] = 0.0
    high = np.concatenate([np.full(n, np.inf), [np.inf], np.ones(n * count)])
    high[0] = 0.0
    with silent():
        result = milp(
            cost,
            integrality=np.concatenate([np.zeros(n + 1), np.full(n * count, int(whole))]),
            bounds=Bounds(low, high),
            constraints=LinearConstraint(matrix, [bound for _, bound in rows], np.inf),
            options={"node_limit": nodes, "mip_rel_gap": 1e-3},
        )
    if result.x is None:
        return None
    x = result.x[n + 1 :].reshape(n, count)
    shares = [
        float(mine[int(row.argmax())]) if whole else float(row @ np.array(mine))
        for row, mine in zip(x, levels, strict=True)
    ]
    return Schedule(float(result.x[n]), tuple(map(float, result.x[:n])), tuple(shares))
