"""Event loops on real time, for what is run instead of simulated."""

import time
from collections.abc import Callable, Iterable
from heapq import heappop

from common.serving.loop import ARRIVAL, EventLoop
from common.serving.sequence import Sequence


class WallClock(EventLoop):
    """An event loop on the wall clock: `now` is when the event was due, in seconds since `run` was called.

    read, sleep: the clock, seconds from any origin, and how to wait on it.
    """

    def __init__(
        self,
        read: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self._read = read
        self._sleep = sleep
        self._origin = read()

    def clock(self) -> float:
        """Seconds since the run began."""
        return self._read() - self._origin

    def run(self, arrivals: Iterable[Sequence], submit: Callable[[Sequence], None]) -> None:
        """See EventLoop; what is due in the future is waited for."""
        self._origin = self._read()
        for sequence in arrivals:
            self.at(sequence.arrival, ARRIVAL, submit, sequence)
        while self._heap:
            early = self._heap[0][0] - self.clock()
            if early > 0:
                self._sleep(early)
            self.now, _, _, callback, argument = heappop(self._heap)
            callback(argument)


class ProcessorClock(WallClock):
    """Counts the processor time of this process and skips what it would wait: a run as on a machine of its own.

    Neighbours that take the core away do not show; what they take of caches and memory bandwidth does. Use one torch
    thread: the seconds of several add up.
    """

    def __init__(self) -> None:
        super().__init__(lambda: time.process_time() + self._skipped, self._skip)

    _skipped = 0.0

    def _skip(self, seconds: float) -> None:
        self._skipped += seconds
