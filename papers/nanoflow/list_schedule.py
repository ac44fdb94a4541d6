"""The fast evaluator of a pipeline: three streams, each starts its next nano-operation as soon as it may.

That is how the streams of a GPU run: in order, waiting for events. An operation waits for its dependencies and until its
share of the execution units is free. Layers follow one another without a barrier; the period is what a layer adds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from papers.nanoflow.interference import Interference
from papers.nanoflow.nano_batches import STREAMS, Layer

SLACK = 1e-9


class Choice(NamedTuple):
    """What the search decides: a place in the order (layers; the fraction orders a stream) and a share for each op."""

    places: tuple[float, ...]
    shares: tuple[float, ...]


class Evaluator:
    """Periods of one layer's pipeline under any choice; holds the layer in flat lists, for speed."""

    def __init__(self, layer: Layer, curves: Interference, layers: int = 8, measured: int = 3) -> None:
        self.layer = layer
        self.curves = curves
        self.layers = layers  # simulated
        self.measured = measured  # the last ones, whose mean is the period
        self.stream = [STREAMS.index(op.stream) for op in layer.ops]
        self.before: list[list[tuple[int, int]]] = [[] for _ in layer.ops]
        for edge in layer.dependencies:
            self.before[edge.after].append((edge.before, edge.lag))

    def durations(self, shares: Sequence[float]) -> list[float]:
        """Microseconds of each op at its share."""
        return [
            self.curves.seconds(op.stream, op.work, share)
            for op, share in zip(self.layer.ops, shares, strict=True)
        ]

    def period(self, choice: Choice) -> float:
        """Mean microseconds between the ends of the last layers; inf for an order that blocks itself."""
        ends = self.ends(choice)
        if ends is None:
            return math.inf
        last = [max(row[n] for row in ends) for n in (self.layers - 1 - self.measured, self.layers - 1)]
        return (last[1] - last[0]) / self.measured

    def ends(self, choice: Choice) -> list[list[float]] | None:
        """When each op of each layer ends, as [op][layer]; None for an order that blocks itself."""
        places, shares = choice
        durations = self.durations(shares)
        layers, before = self.layers, self.before
        lowest = math.floor(min(places))
        queues: list[list[tuple[float, int, int]]] = [[], [], []]
        for op, place in enumerate(places):
            queue = queues[self.stream[op]]
            for n in range(layers):
                queue.append((place - lowest + n, op, n))
        for queue in queues:
            queue.sort()
        ends = [[math.inf] * layers for _ in places]
        heads = [0, 0, 0]
        until = [math.inf, math.inf, math.inf]  # end of what a stream runs
        held = [0.0, 0.0, 0.0]
        free, now = 1.0 + SLACK, 0.0
        left = sum(map(len, queues))
        while left:
            waiting = [
                (queues[s][heads[s]], s)
                for s in (0, 1, 2)
                if until[s] == math.inf and heads[s] < len(queues[s])
            ]
            waiting.sort()
            for (_, op, n), s in waiting:
                share = shares[op]
                if share > free:
                    continue
                for other, lag in before[op]:
                    if n >= lag and ends[other][n - lag] > now:
                        break
                else:
                    free -= share
                    held[s] = share
                    until[s] = ends[op][n] = now + durations[op]
                    heads[s] += 1
                    left -= 1
            now = min(until)
            if now == math.inf:
                return None
            for s in (0, 1, 2):
                if until[s] <= now:
                    free += held[s]
                    until[s] = math.inf
        return ends
