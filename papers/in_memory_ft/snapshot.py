"""The trainer's side of a snapshot: buckets copied beside the next step, and what the next update waits for.

After an update nothing of the state changes until the next one, so that a thread copies this rank's m-th of it bucket
by bucket while the next batch goes forwards and backwards. Before the update the trainer waits for the copy (not for
the encoding, which reads the snapshot process's memory). Before the next snapshot all ranks agree, by a reduction of a
flag, that everybody's snapshot process has the last one complete: from then on it is the clean version.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.flat_state import FlatState, shard
from common.distributed.memory import Memory
from common.distributed.questions import call, connect
from common.distributed.throttled import Device
from papers.in_memory_ft.replicas import HEADER, Header, payload_bytes
from papers.in_memory_ft.snapshot_process import Region, Seat, Snapshot


@dataclass(frozen=True)
class Saving:
    """How a rank's snapshots are taken.

    every: steps between two. bucket: bytes of one turn of the copy engine. shards: among how many peers a replicated
    state is divided. synchronous: training waits for the copy.
    """

    every: int
    bucket: int = 1 << 20
    shards: int = 1
    synchronous: bool = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.bucket < 1 or self.shards < 1:
            raise ValueError(f"steps, bytes and shards are at least 1: {self}")


class Snapshots:
    """One rank's snapshots into the memory of its node's process."""

    def __init__(
        self,
        seat: Seat,
        saving: Saving,
        state: FlatState,
        reached: Callable[[str], None] = lambda place: None,
        persist: Callable[[int], str | None] = lambda version: None,
    ) -> None:
        """seat: of the snapshot process. persist: file of a version."""
        self.wire, self.device = connect(seat.address, seat.key), seat.copy
        self.saving, self.state, self.reached, self.persist = saving, state, reached, persist
        self.first, self.end = shard(state.nbytes, seat.node if saving.shards > 1 else 0, saving.shards)
        self.clean: int | None = None
        self.pending: int | None = None
        self.copied_bytes: list[int] = []  # of weights and moments, of each snapshot
        self.waited = 0.0  # seconds for which updates and snapshots waited
        self.copy_seconds = 0.0  # that copying took, of all snapshots
        self._memory: Memory | None = None
        self._thread = ThreadPoolExecutor(1)
        self._copied: Future[None] = Future()
        self._copied.set_result(None)
        self._complete = self._copied
        call(self.wire, "reserve", payload_bytes(state.nbytes, saving.shards))

    def before_update(self, step: int) -> None:
        """Wait until the copy of the state that this update changes is finished. Raises what a snapshot failed of."""
        self._wait_for(self._copied)

    def after_step(self, step: int, epoch: int, header: Callable[[], Header]) -> None:
        """Begin a snapshot where one is due; `step` updates were taken. All ranks call it.

        Raises, under its own name, the first error of any snapshot before it.
        """
        self._raise()
        if step % self.saving.every:
            return
        self.settle()
        self.reached("settled")
        self.pending = step
        snapshot = Snapshot(epoch, step, self.clean)
        self._copied = self._thread.submit(self._copy, snapshot, header().pack())
        self._complete = self._thread.submit(self._encode, snapshot, self._copied)
        if self.saving.synchronous:
            self.before_update(step)

    def settle(self) -> None:
        """Wait until all ranks' snapshot processes have the pending version complete; it becomes the clean one."""
        if self.pending is None:
            return
        self._wait_for(self._complete)
        least = torch.tensor(self.pending)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        if int(least) != self.pending:
            raise RuntimeError(f"ranks are out of step: version {self.pending} here, {int(least)} elsewhere")
        self.clean, self.pending = self.pending, None

    def stored(self, version: int) -> np.ndarray:
        """A complete version in the snapshot process's memory; uint8, a view. NoVersion where it has none."""
        return self._mapped(call(self.wire, "load", version))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _copy(self, snapshot: Snapshot, header: bytes) -> None:
        begun = time.monotonic()
        target = self._mapped(call(self.wire, "begin", snapshot))
        target[:HEADER] = np.frombuffer(header, np.uint8)
        self.copied_bytes.append(0)
        for start in range(self.first, self.end, self.saving.bucket):
            length = min(self.saving.bucket, self.end - start)
            if self.device is not None:
                self.device.pass_through(length)
            place = HEADER + start - self.first
            self.state.read(start, target[place : place + length])
            self.copied_bytes[-1] += length
            self.reached("bucket")
        self.copy_seconds += time.monotonic() - begun

    def _encode(self, snapshot: Snapshot, copied: Future[None]) -> None:
        """Have the snapshot process encode what was copied, and answer when the version is complete there."""
        copied.result()
        call(self.wire, "copied", snapshot, self.persist(snapshot.version))

    def _mapped(self, region: Region) -> np.ndarray:
        if self._memory is None or self._memory.address != region.address:
            self._memory = Memory.open(region.address)
        return region.of(self._memory)

    def _wait_for(self, done: Future[None]) -> None:
        begun = time.monotonic()
        done.exception()
        self.waited += time.monotonic() - begun
        self._raise()

    def _raise(self) -> None:
        for one in (self._copied, self._complete):
            if one.done():
                one.result()


def gather(
    state: FlatState, own: np.ndarray, shards: int, group: Any = None, network: Device | None = None
) -> None:
    """Write the whole state from this rank's shard and its peers'; each card passes what its node receives."""
    if shards == 1:
        state.write(0, own[: state.nbytes])
        return
    mine = torch.from_numpy(own.copy())
    parts = [torch.empty_like(mine) for _ in range(shards)]
    if network is not None:
        network.pass_through((shards - 1) * len(own))
    dist.all_gather(parts, mine, group=group)
    for index, part in enumerate(parts):
        first, end = shard(state.nbytes, index, shards)
        state.write(first, part.numpy()[: end - first])
