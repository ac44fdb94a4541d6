"""Copies between GPU and host as events: what is in flight, what must wait for what, and who waits.

vLLM waits for the copies of an iteration before it computes it. The Multithreading Swap Manager hands copies to worker
threads and goes on: a group of GPU blocks that is being copied out is nobody's until its own copy has ended, a request
that is being copied in joins the batch when its copy has ended, and an iteration that lacks blocks waits for just those
groups that give it enough.
"""

import math
from collections import deque
from dataclasses import astuple, dataclass, field
from functools import cache
from typing import NamedTuple

from common.hardware.copies import CopyCost, h100
from papers.fastswitch.block_groups import Piece, Run

HISTORY = 8  # swap-ins whose batch size and seconds the adaptive choice looks back on (inferred)


@dataclass(frozen=True)
class KVLayout:
    """A block's bytes: `unit_bytes` for K or V of one layer, 2 * `layers` of them, each its own copy call."""

    layers: int
    unit_bytes: int

    def calls(self, pieces: int) -> int:
        """Copy calls of so many pieces."""
        return 2 * self.layers * pieces

    def size(self, blocks: int) -> int:
        """Bytes of so many blocks."""
        return 2 * self.layers * self.unit_bytes * blocks

    def seconds(self, cost: CopyCost, pieces: list[Piece]) -> float:
        """Seconds of copying these pieces in one direction."""
        return cost.seconds(self.calls(len(pieces)), self.size(sum(piece.length for piece in pieces)))


@cache
def measured_cost(direction: str) -> CopyCost:
    """The H100's cost of copies to ten digits: the last digits of least squares depend on the processor.

    The library that solves it sums in another order where the processor has wider registers.
    """
    cost = h100(direction)
    return CopyCost(*(float(f"{one:.10g}") for one in astuple(cost)))


@dataclass
class Stream:
    """One direction of the wire: copies follow one another."""

    cost: CopyCost
    layout: KVLayout
    _free: float = field(default=0.0, init=False)

    def send(self, now: float, batches: list[list[Piece]]) -> list[float]:
        """When each batch of pieces has arrived, seconds; the batches are one swap, one after another."""
        start = max(now, self._free)
        ends = []
        calls = blocks = 0
        for batch in batches:
            calls += len(batch)
            blocks += sum(piece.length for piece in batch)
            ends.append(start + self.cost.seconds(self.layout.calls(calls), self.layout.size(blocks)))
        self._free = ends[-1] if ends else self._free
        return ends


@dataclass(eq=False)
class Transfer:
    """A copy that was ordered. end: s; the simulator knows it at once, a real server when it has ended."""

    end: float = math.inf


class Leaving(NamedTuple):
    """A run of GPU blocks that is being copied to the host; until that has ended nobody may have it."""

    transfer: Transfer
    run: Run


class InFlight:
    """Runs of GPU blocks under copy; copies end in the order in which they were ordered."""

    def __init__(self) -> None:
        self._leaving: list[Leaving] = []

    def __len__(self) -> int:
        return len(self._leaving)

    def add(self, transfer: Transfer, run: Run) -> None:
        self._leaving.append(Leaving(transfer, run))

    def ended(self, now: float) -> list[Run]:
        """Take out the runs whose copies have ended by `now`."""
        done = [one.run for one in self._leaving if one.transfer.end <= now]
        self._leaving = [one for one in self._leaving if one.transfer.end > now]
        return done

    def until(self, blocks: int) -> Transfer | None:
        """The copy with whose end `blocks` blocks will be free; None if all together are fewer."""
        for transfer, run in self._leaving:
            blocks -= run.length
            if blocks <= 0:
                return transfer
        return None

    @property
    def transfers(self) -> list[Transfer]:
        return [one.transfer for one in self._leaving]

    @property
    def blocks(self) -> int:
        """Blocks that are not free yet."""
        return sum(one.run.length for one in self._leaving)


class AdaptiveChoice:
    """Whether a swap-in should run beside the batch or be waited for, from a short history.

    Waiting costs every running request the seconds of the copy; running beside costs the newcomer the same, rounded up
    to whole iterations, for it can only join between two of them (inferred).
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=HISTORY)

    def note(self, running: int, seconds: float) -> None:
        """A swap-in of `seconds` beside `running` requests."""
        self._recent.append((running, seconds))

    def beside(self, running: int, seconds: float, iteration: float) -> bool:
        """Whether to go on meanwhile. seconds: the copy expected; iteration: seconds of one with today's batch."""
        if not running:
            return False
        batch = (running + sum(n for n, _ in self._recent)) / (len(self._recent) + 1)
        expected = (seconds + sum(s for _, s in self._recent)) / (len(self._recent) + 1)
        return batch * expected > iteration * math.ceil(expected / iteration)
