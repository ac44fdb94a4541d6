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

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.flat_state import FlatState, shard
from common.distributed.memory import Memory
from common.distributed.questions import call
from common.distributed.throttled import Device
from common.distributed.traffic import Wire
from papers.in_memory_ft.replicas import HEADER, Header, payload_bytes
from papers.in_memory_ft.snapshot_process import Region, Snapshot


@dataclass(frozen=True)
class Saving:
    """How a rank's snapshots are taken.

    every: steps between two. bucket: bytes of one turn of the copy engine. shards: among how many peers a replicated
    state is divided. device: the copy engine. synchronous: training waits for the copy.
    """

    every: int
    bucket: int = 1 << 20
    shards: int = 1
    device: Device | None = None
    synchronous: bool = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.bucket < 1 or self.shards < 1:
            raise ValueError(f"steps, bytes and shards are at least 1: {self}")


class Snapshots:
    """One rank's snapshots into the memory of its node's process."""

    def __init__(
        self,
        wire: Wire,
        index: int,
        saving: Saving,
        state: FlatState,
        reached: Callable[[str], None] = lambda place: None,
        persist: Callable[[int], str | None] = lambda version: None,
    ) -> None:
        """wire: to the snapshot process. index: of this rank's shard. persist: file of a version."""
        self.wire, self.saving, self.state = wire, saving, state
        self.first, self.end = shard(state.nbytes, index, saving.shards)
        self.reached, self.persist = reached, persist
        self.clean: int | None = None
        self.pending: int | None = None
        self.copied_bytes: list[int] = []  # of weights and moments, of each snapshot
        self.waited = 0.0  # seconds for which updates and snapshots waited
        self.copy_seconds = 0.0  # that copying took, of all snapshots
        self._memory: Memory | None = None
        self._free, self._complete = threading.Event(), threading.Event()
        self._free.set()
        self._failed: BaseException | None = None
        self._tasks: queue.Queue = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        call(wire, "reserve", payload_bytes(state.nbytes, saving.shards))
        self._thread.start()

    def before_update(self, step: int) -> None:
        """Wait until the copy of the state that this update changes is finished. Raises what a snapshot failed of."""
        self._wait_for(self._free)

    def after_step(self, step: int, epoch: int, header: Callable[[], Header]) -> None:
        """Begin a snapshot where one is due; `step` updates were taken. All ranks call it.

        Raises, under its own name, the first error of any snapshot before it.
        """
        self._raise()
        if step % self.saving.every:
            return
        self.settle()
        self.reached("settled")
        self._free.clear()
        self._complete.clear()
        self.pending = step
        self._tasks.put((Snapshot(epoch, step, self.clean), header().pack()))
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

    def close(self) -> None:
        """End the thread."""
        self._tasks.put(None)
        self._thread.join()

    def _wait_for(self, event: threading.Event) -> None:
        begun = time.monotonic()
        event.wait()
        self.waited += time.monotonic() - begun
        self._raise()

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            snapshot, header = task
            try:
                begun = time.monotonic()
                self._copy(self._mapped(call(self.wire, "begin", snapshot)), header)
                self.copy_seconds += time.monotonic() - begun
                self._free.set()
                call(self.wire, "copied", snapshot, self.persist(snapshot.version))
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
        self.copied_bytes.append(0)
        for start in range(self.first, self.end, self.saving.bucket):
            length = min(self.saving.bucket, self.end - start)
            if self.saving.device is not None:
                self.saving.device.pass_through(length)
            place = HEADER + start - self.first
            self.state.read(start, target[place : place + length])
            self.copied_bytes[-1] += length
            self.reached("bucket")
