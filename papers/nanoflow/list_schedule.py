"""The fast evaluator of a pipeline: three streams, each takes the first ready nano-operation of a given order.

An operation is ready when its dependencies have ended, and starts when its stream is idle and its share of the
execution units is free. Layers follow one another without a barrier; the period is what a layer adds. No operation runs
two layers ahead of another, for a period to mean anything: nano-batches that never wait for one another could drift
apart.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

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
    """Periods of one layer's pipeline under any choice; holds the layer in flat lists, for speed."""

    def __init__(self, layer: Layer, curves: Interference, first: int = 3, last: int = 7) -> None:
        self.layer = layer
        self.curves = curves
        self.first, self.last = first, last  # the period is the mean between the ends of these layers
        self._layers = last + 3  # the last ones only for company: they are not waited for
        self._stream = [STREAMS.index(op.stream) for op in layer.ops]
        self._work = [op.work for op in layer.ops]
        self._exponent = [curves.exponents[op.stream] for op in layer.ops]
        self._after: list[list[tuple[int, int]]] = [[] for _ in layer.ops]
        self._needs = [0] * len(layer.ops)
        self._needs_at_first = [0] * len(layer.ops)
        for edge in layer.dependencies:
            self._after[edge.before].append((edge.after, edge.lag))
            self._needs[edge.after] += 1
            self._needs_at_first[edge.after] += edge.lag == 0

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
        first, last = self.first, self.last
        return max(row[last] - row[first] for row in ends) / (last - first)

    def draft(self, choice: Choice) -> Schedule | None:
        """Starts in the middle of the run, as a periodic schedule to polish (nothing says that it is one already)."""
        ends = self._ends(choice)
        if ends is None:
            return None
        lengths = self.durations(choice.shares)
        middle = (self.first + self.last) // 2
        starts = tuple(row[middle] - length for row, length in zip(ends, lengths, strict=True))
        return Schedule(self.period(choice), starts, choice.shares)

    def _ends(self, choice: Choice) -> list[list[float]] | None:
        """When each op of each layer ends, as [op][layer]; None where a share is never free."""
        priorities, shares = choice
        lengths = self.durations(shares)
        layers, after, stream, count = self._layers, self._after, self._stream, len(shares)
        missing = [list(self._needs_at_first)] + [list(self._needs) for _ in range(layers - 1)]
        unfinished = [count] * layers
        opened = _AHEAD  # layers that may run
        ready: list[list[tuple[float, int, int]]] = [[], [], []]
        held_back: list[tuple[float, int, int]] = []
        for n in range(opened):
            for op in range(count):
                if not missing[n][op]:
                    ready[stream[op]].append((priorities[op] + n, op, n))
        for n in range(opened, layers):
            held_back += [(priorities[op] + n, op, n) for op in range(count) if not missing[n][op]]
        ends = [[math.inf] * layers for _ in shares]
        until = [math.inf, math.inf, math.inf]  # end of what a stream runs
        running: list[tuple[float, int, int] | None] = [None, None, None]
        free, now = 1.0 + _SLACK, 0.0
        while True:
            heads = [(min(ready[s]), s) for s in (0, 1, 2) if running[s] is None and ready[s]]
            heads.sort()
            for item, s in heads:
                share = shares[item[1]]
                if share <= free:
                    free -= share
                    ready[s].remove(item)
                    running[s] = item
                    until[s] = now + lengths[item[1]]
            now = min(until)
            if now == math.inf:
                return None
            for s in (0, 1, 2):
                ended = running[s]
                if ended is None or until[s] > now:
                    continue
                _, op, n = ended
                ends[op][n] = now
                free += shares[op]
                running[s] = None
                until[s] = math.inf
                for follower, lag in after[op]:
                    m = n + lag
                    if m < layers:
                        missing[m][follower] -= 1
                        if not missing[m][follower]:
                            entry = (priorities[follower] + m, follower, m)
                            (ready[stream[follower]] if m < opened else held_back).append(entry)
                unfinished[n] -= 1
                while not unfinished[opened - _AHEAD]:
                    if opened - _AHEAD == self.last:
                        return ends
                    for entry in [entry for entry in held_back if entry[2] == opened]:
                        held_back.remove(entry)
                        ready[stream[entry[1]]].append(entry)
                    opened += 1
