"""The clock of a simulation, and the callbacks due on it."""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from common.serving.sequence import Sequence

# Order of events at the same instant: requests arrive before all else, then copies end, then
# iterations, upstream instances (prefill) before downstream ones (decode).
ARRIVAL, COPY, UPSTREAM, DOWNSTREAM = 0, 1, 2, 3

QUIET_TICKS = 1000  # in a row, with nothing else due: then nothing will ever happen


class EventLoop:
    """A clock in seconds and the callbacks due on it.

    unfinished: requests of the run that have not ended. on_finish: told of every request that ends, at its last token.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.unfinished = 0
        self.on_finish: Callable[[Sequence], None] | None = None
        self._heap: list[tuple[float, int, int, Callable[[Any], None], Any]] = []
        self._count = 0
        self._arriving = False
        self._ticks_due = 0
        self._quiet = 0

    def at(self, time: float, rank: int, callback: Callable[[Any], None], argument: Any = None) -> None:
        """Call `callback(argument)` at `time`; ties go by rank, then by the order of asking."""
        self._count += 1
        heappush(self._heap, (time, rank, self._count, callback, argument))

    def every(self, seconds: float, rank: int, callback: Callable[[], None]) -> None:
        """Call `callback()` in `seconds` and again every `seconds` while a request of the run is unfinished.

        Give it a rank below the iterations' (COPY), so that it comes before those that end at the same instant. The
        calls end, too, when for QUIET_TICKS of them nothing else was due: the system has stalled.
        """
        if not seconds > 0:
            raise ValueError(f"a period must be positive seconds, not {seconds}")

        def tick(_: None) -> None:
            self._ticks_due -= 1
            callback()
            self._quiet = 0 if self._arriving or len(self._heap) > self._ticks_due else self._quiet + 1
            if self.unfinished and self._quiet < QUIET_TICKS:
                self._ticks_due += 1
                self.at(self.now + seconds, rank, tick)

        self._ticks_due += 1
        self.at(self.now + seconds, rank, tick)

    def finished(self, sequence: Sequence) -> None:
        """A request has ended: its last token is out now."""
        self.unfinished -= 1
        if self.on_finish is not None:
            self.on_finish(sequence)

    def run(self, arrivals: Iterable[Sequence], submit: Callable[[Sequence], None]) -> None:
        """Submit every sequence at its arrival (ascending) and run until nothing is due any more."""
        heap = self._heap
        self._arriving = True
        for sequence in arrivals:
            due = sequence.arrival
            while heap and heap[0][0] < due:
                self.now, _, _, callback, argument = heappop(heap)
                callback(argument)
            self.now = due
            submit(sequence)
        self._arriving = False
        while heap:
            self.now, _, _, callback, argument = heappop(heap)
            callback(argument)
