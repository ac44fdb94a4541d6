"""The engine: enqueue after the update, copy during forward and backward, write while copying, wait before the update.

    engine.save(state, path)          # right after the update; returns when everything is enqueued
    ...forward, backward...
    engine.before_update()            # only now, and only if copies are not finished
    ...update...
    engine.finish()                   # all that was saved is on the disk

Section 5.1 of the paper; threads, queues and order of calls are those of the authors' engine (gpu_tier.cpp,
host_tier.cpp).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from papers.datastates_llm.file_format import Entry, plan, raw
from papers.datastates_llm.pool import HostPool, Region
from papers.datastates_llm.tiers import Copier, Errors, GrowingFile, Storage, Tier

Hook = Callable[[Path], None]


class Engine(Protocol):
    """What a training loop asks of a checkpoint engine; each of the three calls blocks for as long as it must."""

    def save(self, state: Mapping[str, Any], path: Path) -> None: ...
    def before_update(self) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Part:
    """A tensor on its way: its own memory, the file, and its place there."""

    source: Tensor
    file: GrowingFile
    offset: int
    label: str


class DataStates:
    """Lazy, streaming checkpoints through a pool of `pool_bytes`.

    on_tensor, on_file: called by the engine's threads with a file's path after each tensor that is written, and once
    it is whole. Switches for controls: lazy False waits for the copies within `save`; stream False writes nothing
    before all is copied (and needs a pool for the whole state); wait False lets the update go on beside unfinished
    copies.
    """

    def __init__(
        self,
        copier: Copier,
        storage: Storage,
        pool_bytes: int,
        *,
        on_tensor: Hook = lambda path: None,
        on_file: Hook = lambda path: None,
        lazy: bool = True,
        stream: bool = True,
        wait: bool = True,
        pinned: bool = False,
    ) -> None:
        self.copier, self.storage = copier, storage
        self.pool = HostPool(pool_bytes, pinned)
        self.lazy, self.stream, self.wait = lazy, stream, wait
        self._on_tensor, self._on_file = on_tensor, on_file
        self._held: list[tuple[_Part, Region]] = []  # copied, but not to be written yet (stream False)
        self._files: list[GrowingFile] = []  # not sealed yet
        self._errors = Errors()
        ends = (self.pool.close, self._errors)  # whoever waits for room is let go
        self._device = Tier[tuple[_Part, bool]]("device to host", self._to_host, *ends)
        self._host = Tier[tuple[_Part, Region | None]]("host to file", self._to_file, *ends)
        self._parser = Tier[tuple[GrowingFile, bytes | None, int]]("header", self._head, *ends)

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        """Enqueue a state whose tensors stay as they are until `before_update` returns.

        Errors as in `plan`, and the first error of any thread since the engine was made.
        """
        self._errors.check()
        layout = plan(state)
        parts = [entry for entry in layout.entries if entry.nbytes]
        sizes = [entry.nbytes for entry in parts]
        needed, what = (max(sizes, default=0), "largest tensor") if self.stream else (sum(sizes), "state")
        if needed > self.pool.nbytes:
            raise ValueError(f"the {what} takes {needed} bytes, the host buffer has {self.pool.nbytes}")
        file = GrowingFile(path, len(parts) + 2)
        self._files = [*(one for one in self._files if one.open), file]
        self.copier.begin()
        on_device, on_host = by_place(parts)
        for entry in on_device:
            part = _Part(raw(entry.tensor), file, entry.offset, entry.key)
            self._device.put((part, entry is on_device[-1]))
        for entry in on_host:  # nothing else keeps these from changing
            self._host.put((_Part(raw(entry.tensor.clone()), file, entry.offset, entry.key), None))
        self._parser.put((file, layout.head, 0))
        self._parser.put((file, layout.lean, layout.lean_offset))
        if not self.lazy:
            self._device.wait()

    def before_update(self) -> None:
        """Until every tensor that was saved is in host memory. Raises the first error of any thread."""
        self._errors.check()
        if self.wait:
            self._device.wait()

    def finish(self) -> None:
        """Until every file is whole on the disk."""
        for tier in (self._device, self._host, self._parser):
            tier.wait()

    def close(self) -> None:
        """Write what is left, end the threads, and take away files that an error left half written."""
        for tier in (self._device, self._host, self._parser):
            tier.close()
        for file in self._files:
            file.abandon()

    def _to_host(self, item: tuple[_Part, bool]) -> None:
        part, last = item
        region = self.pool.allocate(len(part.source))  # waits for room: back-pressure
        self.copier.copy(self.pool.view(region), part.source, part.label)
        self._held.append((part, region))
        if self.stream or last:
            for staged in self._held:
                self._host.put(staged)
            self._held = []

    def _to_file(self, item: tuple[_Part, Region | None]) -> None:
        part, region = item
        memory = part.source if region is None else self.pool.view(region)
        self.storage.write(part.file.descriptor, memory.numpy().data, part.offset, part.label)
        if region is not None:
            self.pool.release(region)
        self._on_tensor(part.file.path)
        if part.file.written():
            self._parser.put((part.file, None, 0))  # elsewhere: the next file's tensors need not wait for it

    def _head(self, item: tuple[GrowingFile, bytes | None, int]) -> None:
        file, content, offset = item
        if content is not None:
            self.storage.write(file.descriptor, content, offset, "header")
        if content is None or file.written():
            file.seal()
            self._on_file(file.path)


def by_place(parts: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """What goes through the copy engine, and what is in host memory already; all on a CPU plays the device's part."""
    gpu = any(entry.tensor.device.type != "cpu" for entry in parts)
    on_host = [entry for entry in parts if gpu and entry.tensor.device.type == "cpu"]
    return [entry for entry in parts if not gpu or entry.tensor.device.type != "cpu"], on_host
