"""The fast evaluator of a pipeline: three streams, each takes the first ready nano-operation of a given order.

An operation is ready when its dependencies have ended, and starts when its stream is idle and its share of the
execution units is free. Layers follow one another without a barrier; the period is what a layer adds. No operation runs
two layers ahead of another, for a period to mean anything: nano-batches that never wait for one another could drift
apart.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from papers.nanoflow.interference import Interference
from papers.nanoflow.nano_batches import STREAMS, Layer
from papers.nanoflow.polish import Schedule

_SLACK = 1e-9
_AHEAD = 2  # layers: an op of layer n waits for all of layer n - 2


class Choice(NamedTuple):
    """What the search decides: a priority (in layers, the lowest first) and a share for each op."""

    priorities: tuple[float, ...]
    shares: tuple[float, ...]


class Evaluator:
    """Periods of one layer's pipeline under any choice; holds the layer in flat arrays, for speed."""

    def __init__(self, layer: Layer, curves: Interference, first: int = 3, last: int = 7) -> None:
        self.layer = layer
        self.curves = curves
        self.first, self.last = first, last  # the period is the mean between the ends of these layers
        self._stream = np.array([STREAMS.index(op.stream) for op in layer.ops])
        self._work = [op.work for op in layer.ops]
        self._exponent = [curves.exponents[op.stream] for op in layer.ops]
        edges = [(edge.before, edge.after, edge.lag) for edge in layer.dependencies]
        self._edges = np.array(edges, dtype=np.int64).reshape(-1, 3)
        after, lag = self._edges[:, 1], self._edges[:, 2]
        self._waits = [np.bincount(some, minlength=len(layer.ops)) for some in (after[lag == 0], after)]

    def durations(self, shares: Sequence[float]) -> list[float]:
        """Microseconds of each op at its share."""
        return [
            work / share**exponent
            for work, share, exponent in zip(self._work, shares, self._exponent, strict=True)
        ]

    def period(self, choice: Choice) -> float:
        """Microseconds a layer, of the op that advances slowest; inf where a share is never free."""
        ends = self._ends(choice)
        if ends is None:
            return math.inf
        advanced = ends[:, self.last] - ends[:, self.first]
        return float(advanced.max()) / (self.last - self.first)

    def draft(self, choice: Choice) -> Schedule | None:
        """Starts in the middle of the run, as a periodic schedule to polish (nothing says that it is one already)."""
        ends = self._ends(choice)
        if ends is None:
            return None
        lengths = self.durations(choice.shares)
        middle = (self.first + self.last) // 2
        starts = tuple(float(end) - length for end, length in zip(ends[:, middle], lengths, strict=True))
        return Schedule(self.period(choice), starts, choice.shares)

    def _ends(self, choice: Choice) -> np.ndarray | None:
        """When each op of each layer ends, shape (ops, layers); None where a share is never free."""
        ends = np.full((len(self._work), self.last + 1 + _AHEAD), math.inf)
        priorities, shares = (np.array(values, dtype=float) for values in choice)
        lengths = np.array(self.durations(choice.shares))
        whole = compiled()(
            priorities, shares, lengths, self._stream, *self._waits, self._edges, self.last, ends
        )
        return ends if whole else None


def list_schedule(
    priorities: Any,
    shares: Any,
    lengths: Any,
    stream: Any,
    first_waits: Any,
    waits: Any,
    edges: Any,
    last: int,
    ends: Any,
) -> bool:
    """Fill `ends`, shape (ops, layers), until layer `last` has ended; False where a share is never free.

    first_waits, waits: for how many ops each waits in layer 0 and in later ones. edges: (before, after, lag), shape
    (edges, 3). One function over plain arrays, since numba compiles it as it stands.
    """
    count, layers = ends.shape
    missing = np.empty((layers, count), dtype=np.int64)
    missing[0] = first_waits
    missing[1:] = waits
    waiting = np.ones((layers, count), dtype=np.bool_)
    unfinished = np.full(layers, count)
    until = np.full(3, np.inf)  # end of what a stream runs
    runs = np.full(3, -1)  # and what: op, layer
    runs_in = np.zeros(3, dtype=np.int64)
    head, head_in, rank = np.empty(3, dtype=np.int64), np.zeros(3, dtype=np.int64), np.empty(3)
    opened, free, now = _AHEAD, 1.0 + _SLACK, 0.0
    while True:
        head[:] = -1
        for n in range(opened - _AHEAD, opened):  # earlier layers have ended
            for op in range(count):
                s = stream[op]
                if waiting[n, op] and not missing[n, op] and runs[s] < 0:
                    mine = priorities[op] + n
                    if head[s] < 0 or mine < rank[s] or (mine == rank[s] and op < head[s]):
                        head[s], head_in[s], rank[s] = op, n, mine
        for _ in range(3):  # the streams' first ones by priority, then by place
            s = -1
            for t in range(3):
                if head[t] >= 0 and (
                    s < 0 or rank[t] < rank[s] or (rank[t] == rank[s] and head[t] < head[s])
                ):
                    s = t
            if s < 0:
                break
            op, n = head[s], head_in[s]
            head[s] = -1
            if shares[op] <= free:
                free -= shares[op]
                waiting[n, op] = False
                runs[s], runs_in[s] = op, n
                until[s] = now + lengths[op]
        now = until.min()
        if now == np.inf:
            return False
        for s in range(3):
            op, n = runs[s], runs_in[s]
            if op < 0 or until[s] > now:
                continue
            ends[op, n] = now
            free += shares[op]
            runs[s] = -1
            until[s] = np.inf
            for k in range(len(edges)):
                if edges[k, 0] == op and n + edges[k, 2] < layers:
                    missing[n + edges[k, 2], edges[k, 1]] -= 1
            unfinished[n] -= 1
            while unfinished[opened - _AHEAD] == 0:
                if opened - _AHEAD == last:
                    return True
                opened += 1


@cache
def compiled() -> Callable[..., bool]:
    """`list_schedule`, compiled where numba is installed (the extra `kernels`), else as it stands: the same ends."""
    try:
        import numba
    except ImportError:
        return list_schedule
    return numba.njit(cache=True)(list_schedule)  # type: ignore[no-any-return]
