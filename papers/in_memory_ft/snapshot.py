"""The trainer's side of a snapshot: buckets copied beside the next step, and what the next update waits for.

After an update nothing of the state changes until the next one, so that a thread copies this rank's m-th of it bucket
by bucket while the next batch goes forwards and backwards. Before the update the trainer waits for the copy (not for
the encoding, which reads the snapshot process's memory). Before the next snapshot all ranks agree, by a reduction of a
flag, that everybody's snapshot process has the last one complete: from then on it is the clean version.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.flat_state import FlatState, shard
from common.distributed.memory import Memory
from common.distributed.questions import call
from common.distributed.throttled import Device
from common.distributed.traffic import Wire
from papers.in_memory_ft.snapshot_process import Region, Snapshot
from papers.in_memory_ft.state import HEADER, Header, payload_bytes

Mode = Literal["bucketed", "whole", "synchronous"]


@dataclass(frozen=True)
class Saving:
    """How a rank's snapshots are taken.

    every: steps between two. bucket: bytes of one turn of the copy engine. mode: "bucketed" and "whole" (one copy, in a
    thread both), or "synchronous". shards: among how many peers a replicated state is divided. device: the copy engine.
    """

    every: int
    bucket: int = 1 << 20
    mode: Mode = "bucketed"
    shards: int = 1
    device: Device | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.bucket < 1 or self.shards < 1:
            raise ValueError(f"steps, bytes and shards are at least 1: {self}")


class Snapshots:
    """One rank's snapshots into the memory of its node's process."""

    def __init__(
        self,
        wire: Wire,
        slot: int,
        index: int,
        saving: Saving,
        state: FlatState,
        reached: Callable[[str], None] = lambda place: None,
        persist: Callable[[int], str | None] = lambda version: None,
    ) -> None:
        """wire: to the snapshot process. slot: this rank's there. index: of its shard. persist: file of a version."""
        self.wire, self.slot, self.saving, self.state = wire, slot, saving, state
        self.first, self.end = shard(state.nbytes, index, saving.shards)
        self.reached, self.persist = reached, persist
        self.clean: int | None = None
        self.pending: int | None = None
        self.copied_bytes: list[int] = []  # of weights and moments, of each snapshot
        self.largest_bucket = 0
        self.waited = 0.0  # seconds for which updates and snapshots waited
        self.copy_seconds = 0.0  # that copying took, of all snapshots
        self._memory: Memory | None = None
        self._free, self._complete = threading.Event(), threading.Event()
        self._free.set()
        self._failed: BaseException | None = None
        self._tasks: queue.Queue = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        call(wire, "reserve", slot, payload_bytes(state.nbytes, saving.shards))
        self._thread.start()

    def before_update(self, step: int) -> None:
        """Wait until the copy of the state that this update changes is finished. Raises what a snapshot failed of."""
        begun = time.monotonic()
        self._free.wait()
        self.waited += time.monotonic() - begun
        self._raise()

    def after_step(self, step: int, epoch: int, header: Callable[[], Header]) -> None:
        """Begin a snapshot where one is due; `step` updates were taken. All ranks call it.

        Raises, under its own name, the first error of any snapshot before it.
        """
        self._raise()
        if step % self.saving.every:
            return
        self.settle()
        self.reached("settled")
        snapshot = Snapshot(epoch, step, self.clean)
        self._free.clear()
        self._complete.clear()
        self.pending = step
        self._tasks.put((snapshot, header().pack()))
        if self.saving.mode == "synchronous":
            self.before_update(step)

    def settle(self) -> None:
        """Wait until all ranks' snapshot processes have the pending version complete; it becomes the clean one."""
        if self.pending is None:
            return
        begun = time.monotonic()
        self._complete.wait()
        self.waited += time.monotonic() - begun
        self._raise()
        if dist.is_initialized():
            least = torch.tensor(self.pending)
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
            if int(least) != self.pending:
                raise RuntimeError(
                    f"version {self.pending} here, {int(least)} elsewhere: ranks are out of step"
                )
        self.clean, self.pending = self.pending, None

    def close(self) -> None:
        """End the thread."""
        self._tasks.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            snapshot, header = task
            try:
                begun = time.monotonic()
                region = call(self.wire, "begin", self.slot, snapshot)
                self._copy(self._mapped(region), header)
                self.copy_seconds += time.monotonic() - begun
                self._free.set()
                self.reached("copied")
                call(self.wire, "copied", self.slot, snapshot, self.persist(snapshot.version))
            except BaseException as error:
                self._failed = self._failed or error
            self._free.set()
            self._complete.set()

    def _mapped(self, region: Region) -> np.ndarray:
        if self._memory is None or self._memory.address != region.address:
            self._memory = Memory.open(region.address)
        return np.frombuffer(self._memory.view, np.uint8)[region.start : region.start + region.nbytes]

    def _copy(self, target: np.ndarray, header: bytes) -> None:
        target[:HEADER] = np.frombuffer(header, np.uint8)
        size = self.end - self.first
        bucket = size if self.saving.mode == "whole" else self.saving.bucket
        copied = 0
        for start in range(0, size, bucket):
            length = min(bucket, size - start)
            if self.saving.device is not None:
                self.saving.device.pass_through(length)
            self.state.read(self.first + start, target[HEADER + start : HEADER + start + length])
            copied += length
            self.largest_bucket = max(self.largest_bucket, length)
            self.reached("bucket")
        self.copied_bytes.append(copied)
