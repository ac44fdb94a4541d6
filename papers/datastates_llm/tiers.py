"""Storage tiers: a thread and a first-in-first-out queue each, the copy engine in front, the file behind.

The device tier copies tensor after tensor into the host pool and hands each on at once; the host tier writes it to its
place in the file and frees the pool. Both threads spend their time in copies, writes and waits, which do without
Python's lock.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from common.distributed.throttled import CHUNK, Device
from papers.datastates_llm.file_format import pieces

Item = TypeVar("Item")


@dataclass(frozen=True)
class Span:
    """A copy or a write of a part of a checkpoint: when (seconds of the monotonic clock), and its bytes."""

    label: str
    start: float
    end: float
    nbytes: int


@dataclass
class Copier:
    """Copies from the device into host memory. device: the copy engine's rate; None: as fast as it goes."""

    device: Device | None = None
    spans: list[Span] = field(default_factory=list)

    def begin(self) -> None:
        """Called when a checkpoint is enqueued: what was computed until now is what gets copied."""

    def copy(self, target: Tensor, source: Tensor, label: str = "") -> None:
        """source to target, both uint8 of one dimension and of the same length; waits until it is there."""
        begun = time.monotonic()
        self._move(target, source)
        self.spans.append(Span(label, begun, time.monotonic(), len(source)))

    def _move(self, target: Tensor, source: Tensor) -> None:
        for start, end in pieces(len(source), CHUNK):
            if self.device is not None:
                self.device.pass_through(end - start)
            target[start:end].copy_(source[start:end])


@dataclass
class StreamCopier(Copier):
    """The same on a GPU: on a stream of its own, behind the update but beside all that follows."""

    stream: Any = None

    def begin(self) -> None:
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())

    def _move(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        self.stream.synchronize()


@dataclass
class Storage:
    """Writes at the rate of a shared device (None: as fast as the disk), whoever writes."""

    device: Device | None = None
    spans: list[Span] = field(default_factory=list)

    def write(self, descriptor: int, content: bytes | memoryview, offset: int, label: str = "") -> None:
        """content to its place in an open file."""
        view, begun = memoryview(content).cast("B"), time.monotonic()
        for start, end in pieces(len(view), CHUNK):
            if self.device is not None:
                self.device.pass_through(end - start)
            while start < end:
                start += os.pwrite(descriptor, view[start:end], offset + start)
        self.spans.append(Span(label, begun, time.monotonic(), len(view)))


class GrowingFile:
    """A file under another name until all its parts are written and forced to the disk.

    parts: writes that are to come. Who sees the final name sees a whole file.
    """

    def __init__(self, path: Path, parts: int = 1) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".part")
        self.descriptor = os.open(self.partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        self.open = True
        self._left, self._lock = parts, threading.Lock()

    def written(self) -> bool:
        """Count that one part is there; whether it was the last, so that the file is to be sealed."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def seal(self) -> None:
        """Force it to the disk and give it its name."""
        os.fsync(self.descriptor)
        os.close(self.descriptor)
        self.open = False
        publish(self.partial, self.path)

    def abandon(self) -> None:
        """Take away what is there of a file that was not sealed."""
        if self.open:
            self.open = False
            os.close(self.descriptor)
            self.partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Rename so that the name is on the disk too."""
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Errors(list[BaseException]):
    """What went wrong in the threads of an engine, the first first: the others follow from it."""

    def check(self) -> None:
        """Raise the first, if there is one."""
        if self:
            raise self[0]


class Tier(Generic[Item]):
    """A thread that handles items in the order in which they were put.

    An error of `handle` ends all tiers that share `errors`: what follows is dropped, `broken` is called, and `wait`
    raises the first error of them all.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Item], None],
        broken: Callable[[], None] = lambda: None,
        errors: Errors | None = None,
    ) -> None:
        self._queue: queue.Queue[Item | None] = queue.Queue()
        self._handle, self._broken = handle, broken
        self.errors = Errors() if errors is None else errors
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        self._queue.put(item)

    def wait(self) -> None:
        """Until all that was put so far is handled."""
        self._queue.join()
        self.errors.check()

    def close(self) -> None:
        """Handle what is left, then end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if not self.errors:
                    self._handle(item)
            except BaseException as error:
                self.errors.append(error)
                self._broken()
            finally:
                self._queue.task_done()
        self._queue.task_done()
