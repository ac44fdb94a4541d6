"""Faults that a plan says: who, when, how. The same plan hits the same place every time.

    plan = Plan((Fault(rank=1, at="after shard", kind="kill", turn=2),))
    plan.reached(rank, "after shard")     # in the code under test, at places that have a name

A process does it to itself, at the very instruction: a killer outside would hit another place in every run. SIGKILL
cannot be caught, so that nothing is cleaned up; SIGSTOP leaves a process that holds its sockets and answers nobody.
"""

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

Kind = Literal["kill", "stop", "slow", "cut"]


@dataclass(frozen=True)
class Fault:
    """What happens to a rank when it reaches a named place for the turn-th time (from 1).

    kill: SIGKILL. stop: SIGSTOP, and SIGCONT after `seconds`. slow: it sleeps `seconds`, this time and every time
    after. cut: its TCP connections are shut down, as if its link was lost. ValueError for anything else.
    """

    rank: int
    at: str
    kind: Kind
    turn: int = 1
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"a fault is one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if self.turn < 1 or self.seconds < 0:
            raise ValueError(f"turns count from 1 and seconds from 0, not {self.turn} and {self.seconds:g}")


@dataclass
class Plan:
    """Faults still to come, and how often each place was reached in this process; picklable."""

    faults: tuple[Fault, ...] = ()
    turns: Counter[tuple[int, str]] = field(default_factory=Counter)

    def reached(self, rank: int, place: str) -> None:
        """Count that a rank is at a place, and have happen what the plan says. Without a fault it costs nothing."""
        self.turns[rank, place] += 1
        turn = self.turns[rank, place]
        for fault in self.faults:
            if (fault.rank, fault.at) != (rank, place):
                continue
            if turn == fault.turn or (fault.kind == "slow" and turn > fault.turn):
                _happen(fault)

    def unmet(self, places: Iterable[str]) -> list[Fault]:
        """Faults at places that the code under test does not have: a plan that cannot strike."""
        known = set(places)
        return [fault for fault in self.faults if fault.at not in known]


def _happen(fault: Fault) -> None:
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "stop":
        # a stopped process cannot wake itself; the one that wakes it ends by itself, whatever becomes of this one
        subprocess.Popen(
            ["sh", "-c", f"sleep {fault.seconds:f}; kill -CONT {os.getpid()}"], start_new_session=True
        )
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.kind == "slow":
        time.sleep(fault.seconds)
    else:
        cut_connections()


def cut_connections() -> int:
    """Shut down every connected TCP socket of this process (Linux); how many there were."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            own = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with own:
            try:
                if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM:
                    own.getpeername()  # a socket that listens has none, and stays
                    own.shutdown(socket.SHUT_RDWR)
                    found += 1
            except OSError:
                continue
    return found
