"""Who sends a workload's requests: an open stream, clients that wait for their answers, or conversations.

An open stream sends each request at its arrival, whatever became of the others. A closed loop holds the number of
requests in the system instead: a client sends its next request when its last one ended. In a conversation the next turn
follows the last answer after some time to think.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from common.serving.workload import Workload


class Clients(Protocol):
    """Decides when each request of a workload is sent."""

    def first(self, workload: Workload) -> list[tuple[float, int]]:
        """Requests sent without waiting for another: (seconds, index), ascending."""

    def after(self, index: int) -> tuple[float, int] | None:
        """What the end of request `index` brings about: (seconds later, index of the request sent then)."""


@dataclass
class ClosedLoop:
    """`clients` clients, each with one request in the system; the workload's arrivals are ignored.

    Requests are sent in the order of the workload, by whichever client is free.
    """

    clients: int
    _next: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ValueError(f"a closed loop needs at least one client, not {self.clients}")

    def first(self, workload: Workload) -> list[tuple[float, int]]:
        self._total = len(workload)
        self._next = min(self.clients, self._total)
        return [(0.0, index) for index in range(self._next)]

    def after(self, index: int) -> tuple[float, int] | None:
        if self._next == self._total:
            return None
        self._next += 1
        return 0.0, self._next - 1


@dataclass
class Sessions:
    """Conversations: a first turn is sent at its arrival, a later one `think` seconds after the turn before it ended.

    session, think: arrays of shape (requests,): whose turn a request is, and the seconds between the end of the
    session's previous turn and this one (unused for first turns). Turns follow one another in the workload's order; the
    arrivals of later turns are ignored.
    """

    session: np.ndarray
    think: np.ndarray
    _following: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if np.shape(self.session) != np.shape(self.think) or np.ndim(self.session) != 1:
            raise ValueError(
                "session and think must be equally long rows, not of shapes "
                f"{np.shape(self.session)} and {np.shape(self.think)}"
            )
        if not np.all(np.isfinite(self.think)) or np.any(np.asarray(self.think) < 0):
            raise ValueError("the time to think must be finite, non-negative seconds")

    def first(self, workload: Workload) -> list[tuple[float, int]]:
        if len(workload) != len(self.session):
            raise ValueError(
                f"{len(self.session)} turns do not describe a workload of {len(workload)} requests"
            )
        self._following = {}
        last: dict[int, int] = {}
        begin = []
        for index, session in enumerate(self.session.tolist()):
            if session in last:
                self._following[last[session]] = index
            else:
                begin.append((float(workload.arrival[index]), index))
            last[session] = index
        return begin

    def after(self, index: int) -> tuple[float, int] | None:
        following = self._following.get(index)
        return None if following is None else (float(self.think[following]), following)
