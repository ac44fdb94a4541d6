"""Event loops on real time, for what is run instead of simulated."""

import time
from collections.abc import Callable, Iterable
from heapq import heappop
from queue import Empty, SimpleQueue
from typing import Any

from common.serving.loop import ARRIVAL, COPY, EventLoop
from common.serving.sequence import Sequence


class WallClock(EventLoop):
    """An event loop on the wall clock: `now` is when the event was due, in seconds since `run` was called.

    read, sleep: the clock, seconds from any origin, and how to wait on it. outside: other threads that may still
    `post`; the run does not end before they are done. Only the run's own thread may change it.
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
        self.outside = 0
        self._posted: SimpleQueue[tuple[Callable[[Any], None], Any]] = SimpleQueue()

    def clock(self) -> float:
        """Seconds since the run began."""
        return self._read() - self._origin

    def post(self, callback: Callable[[Any], None], argument: Any = None) -> None:
        """From any thread: call `callback(argument)` on the run's own thread, after the event under way."""
        self._posted.put((callback, argument))

    def _take_posted(self, seconds: float | None) -> bool:
        """Make what has been posted an event of now; wait for it at most so long (None: until it comes)."""
        try:
            callback, argument = (
                self._posted.get(timeout=seconds) if seconds != 0 else self._posted.get_nowait()
            )
        except Empty:
            return False
        self.at(self.clock(), COPY, callback, argument)
        return True

    def run(self, arrivals: Iterable[Sequence], submit: Callable[[Sequence], None]) -> None:
        """See EventLoop; what is due in the future is waited for."""
        self._origin = self._read()
        for sequence in arrivals:
            self.at(sequence.arrival, ARRIVAL, submit, sequence)
        while self._take_posted(0.0) or self._heap or self.outside:
            early = self._heap[0][0] - self.clock() if self._heap else None
            if self.outside and (early is None or early > 0):
                self._take_posted(early)
                continue
            if early is not None and early > 0:
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
