"""Run time of training with four checkpoint engines: bytes as a fluid through copy engine, host buffer and storage.

All ranks take the same steps; an update, or a `save` that blocks, waits for the slowest. What a rank has in its host
buffer is a level that copies raise and storage lowers, so that the end of each copy is a closed form; no event is
simulated. Tensors have no size here: the gap that a ring leaves at its end is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

EngineName = Literal["sync", "async", "snapshot", "datastates"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@dataclass(frozen=True)
class Phases:
    """Seconds of an iteration: forward and backward, in which the state rests, and the update."""

    compute: float
    update: float

    @property
    def total(self) -> float:
        return self.compute + self.update


@dataclass(frozen=True)
class Rank:
    """One rank: bytes of its checkpoint, rates in bytes/s, bytes of host memory, seconds to enqueue a checkpoint.

    copy: pinned, to the host. pageable: to memory that is not pinned. pin: to allocate and pin memory. serialise: all
    that a synchronous save does but the write. storage: what reaches the file of this rank.
    """

    nbytes: float
    copy: float
    pageable: float
    pin: float
    serialise: float
    storage: float
    buffer: float
    enqueue: float


@dataclass(frozen=True)
class Switches:
    """For controls. lazy False: copies within `save`. background False: writes within it too.

    pool False: allocates and pins for each checkpoint as a whole, and frees it when all of it is written.
    """

    lazy: bool = True
    pool: bool = True
    background: bool = True


@dataclass(frozen=True)
class Run:
    """Seconds: of the whole run with its last flush, and for each checkpoint what it kept training from going on."""

    total: float
    blocked: tuple[float, ...]


class Buffer:
    """Bytes of one rank that wait in host memory for storage, as time passes."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.level, self.now = rank, 0.0, 0.0

    def at(self, time: float) -> None:
        """Let time pass without a copy."""
        self.level = max(0.0, self.level - self.rank.storage * max(0.0, time - self.now))
        self.now = max(self.now, time)

    def empty_at(self) -> float:
        """When storage has all, if nothing more comes."""
        return self.now + self.level / self.rank.storage

    def take(self, time: float, rate: float) -> float:
        """Copy a checkpoint from `time` on at `rate`, or as fast as room comes free; when it is in the buffer."""
        self.at(time)
        nbytes, room = self.rank.nbytes, self.rank.buffer - self.level
        gain = rate - self.rank.storage
        until_full = room / gain if gain > 0 else float("inf")
        if nbytes / rate <= until_full:
            seconds = nbytes / rate
            self.level = max(0.0, self.level + gain * seconds)
        else:
            seconds = until_full + (nbytes - rate * until_full) / self.rank.storage
            self.level = self.rank.buffer
        self.now += seconds
        return self.now


def simulate(
    engine: EngineName,
    ranks: Sequence[Rank],
    phases: Phases,
    steps: int,
    interval: int,
    switches: Switches = Switches(),
) -> Run:
    """Steps with a checkpoint after every `interval`-th update (0: never); as `train` of training.py.

    `blocked` counts what `save` takes and what the next update waits. ValueError where a checkpoint that is allocated
    as a whole does not fit into host memory.
    """
    whole = engine == "async" or (engine == "datastates" and not switches.pool)
    if whole and any(rank.nbytes > rank.buffer for rank in ranks):
        raise ValueError("a checkpoint that is allocated at once does not fit into host memory")
    buffers = [Buffer(rank) for rank in ranks]
    now, copied = 0.0, 0.0
    blocked: list[float] = []
    for step in range(1, steps + 1):
        now += phases.compute
        if copied > now:
            blocked[-1] += copied - now
            now = copied
        now += phases.update
        if interval and step % interval == 0 and step < steps:
            back, copied = _save(engine, buffers, now, switches)
            blocked.append(back - now)
            now = back
    end = max([now, copied, *(buffer.empty_at() for buffer in buffers)])
    return Run(end, tuple(blocked))


def _save(
    engine: EngineName, buffers: Sequence[Buffer], now: float, switches: Switches
) -> tuple[float, float]:
    """When `save` returns, and when the last rank's copy is in host memory."""
    ends, copied = [], [now]
    for buffer in buffers:
        rank = buffer.rank
        if engine == "sync":
            ends.append(now + rank.nbytes / rank.serialise + rank.nbytes / rank.storage)
        elif engine == "async":
            begun = max(now, buffer.empty_at()) + rank.nbytes / rank.pin
            buffer.at(begun + rank.nbytes / rank.copy)
            buffer.level = rank.nbytes  # written only when the last of it is there
            ends.append(buffer.now)
        elif engine == "snapshot":
            ends.append(buffer.take(now, rank.pageable))
        else:
            begun = now + rank.enqueue
            if not switches.pool:
                buffer.at(begun)
                fits = buffer.level + rank.nbytes <= rank.buffer
                begun = (begun if fits else buffer.empty_at()) + rank.nbytes / rank.pin
            copied.append(buffer.take(begun, rank.copy))
            ends.append(begun if switches.lazy else copied[-1])
            if not switches.background:
                ends.append(buffer.empty_at())
    return max(ends), max(copied)
