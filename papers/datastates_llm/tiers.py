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

from common.distributed.throttled import Device
from papers.datastates_llm.file_format import pieces

CHUNK = 4 << 20  # bytes between two looks at a device
Item = TypeVar("Item")


@dataclass(frozen=True)
class Span:
    """What a tier did, and when (seconds of the monotonic clock). kind: copy, write, or pin."""

    kind: str
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
        for start, end in pieces(len(source), CHUNK):
            if self.device is not None:
                self.device.pass_through(end - start)
            target[start:end].copy_(source[start:end])
        self.spans.append(Span("copy", label, begun, time.monotonic(), len(source)))


@dataclass
class StreamCopier(Copier):
    """The same on a GPU: on a stream of its own, behind the update but beside all that follows."""

    stream: Any = None

    def begin(self) -> None:
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())

    def copy(self, target: Tensor, source: Tensor, label: str = "") -> None:
        begun = time.monotonic()
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        self.stream.synchronize()
        self.spans.append(Span("copy", label, begun, time.monotonic(), len(source)))


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
        self.spans.append(Span("write", label, begun, time.monotonic(), len(view)))


class GrowingFile:
    """A file under another name until all its parts are written and forced to the disk.

    parts: writes that are to come. Who sees the final name sees a whole file.
    """

    def __init__(self, path: Path, parts: int) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".part")
        self.descriptor = os.open(self.partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        self._left, self._open = parts, True
        self._lock = threading.Lock()

    @property
    def unsealed(self) -> bool:
        """Whether it still has its other name."""
        return self._open

    def written(self) -> bool:
        """Count that one part is there; whether it was the last, so that the file is to be sealed."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def seal(self) -> None:
        """Force it to the disk and give it its name."""
        os.fsync(self.descriptor)
        os.close(self.descriptor)
        self._open = False
        publish(self.partial, self.path)

    def abandon(self) -> None:
        """Take away what is there of a file that was not sealed."""
        if self._open:
            self._open = False
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


class FirstError:
    """The first thing that went wrong in any thread of an engine; what follows from it is not kept."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def keep(self, error: BaseException) -> None:
        """Keep an error unless there was one before."""
        with self._lock:
            self.error = self.error or error

    def check(self) -> None:
        """Raise it, if there is one."""
        if self.error is not None:
            raise self.error


class Tier(Generic[Item]):
    """A thread that handles items in the order in which they were put.

    An error of `handle` ends all tiers that share `first`: what follows is dropped, `broken` is called, and `wait`
    raises the first error of them all.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Item], None],
        broken: Callable[[], None] = lambda: None,
        first: FirstError | None = None,
    ) -> None:
        self._queue: queue.Queue[Item | None] = queue.Queue()
        self._handle, self._broken = handle, broken
        self.first = first or FirstError()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        self._queue.put(item)

    def wait(self) -> None:
        """Until all that was put so far is handled."""
        self._queue.join()
        self.first.check()

    def close(self) -> None:
        """Handle what is left, then end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self.first.error is None:
                    self._handle(item)
            except BaseException as error:
                self.first.keep(error)
                self._broken()
            finally:
                self._queue.task_done()
        self._queue.task_done()
