"""What the paper compares with, on the same copy engine, storage and host memory (Section 6.2).

Synchronous      DeepSpeed's default: copy to host memory, torch.save, nothing else meanwhile
Asynchronous     CheckFreq, LightCheck, AsyncCheckpointIO: allocate and copy at once, write in the background, one
                 checkpoint at a time
Snapshot         TorchSnapshot: chunks copied and written by several threads, a file each; training waits until all
                 are in host memory
"""

import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from papers.datastates_llm.file_format import DTYPES, NAMES, Plan, pieces, plan, raw
from papers.datastates_llm.tiers import Copier, GrowingFile, Storage, Tier, publish

THREADS = 4  # flush threads a GPU (Section 6.2)


class Synchronous:
    """torch.save of host copies, while training waits."""

    def __init__(self, copier: Copier, storage: Storage) -> None:
        self.copier, self.storage = copier, storage

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        """Until the file is on the disk."""
        self.copier.begin()
        host = _on_host(state, self.copier)
        partial = path.with_name(path.name + ".part")
        descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        try:
            torch.save(host, cast(IO[bytes], _Sink(self.storage, descriptor)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        publish(partial, path)

    def before_update(self) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class _Sink:
    """What torch.save writes to: a file behind a storage device."""

    def __init__(self, storage: Storage, descriptor: int) -> None:
        self._storage, self._descriptor, self._at = storage, descriptor, 0

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        self._storage.write(self._descriptor, view, self._at)
        self._at += len(view)
        return len(view)

    def flush(self) -> None: ...


def _on_host(node: Any, copier: Copier) -> Any:
    """The same nested state with a fresh host copy of each tensor."""
    if isinstance(node, Tensor):
        host = torch.empty(node.shape, dtype=node.dtype)
        if node.numel():
            copier.copy(raw(host), raw(node))
        return host
    if isinstance(node, Mapping):
        return {name: _on_host(child, copier) for name, child in node.items()}
    if isinstance(node, list):
        return [_on_host(child, copier) for child in node]
    return node


class Asynchronous:
    """Host memory for every tensor allocated and filled while training waits; a thread writes the file.

    host_bytes: memory that it may hold. ValueError for a state that is larger.
    """

    def __init__(self, copier: Copier, storage: Storage, host_bytes: int, pinned: bool = False) -> None:
        self.copier, self.storage, self.host_bytes, self.pinned = copier, storage, host_bytes, pinned
        self._writer = Tier[tuple[Plan, list[Tensor], Path]]("writer", self._write)

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        """Until the checkpoint before is written and this one is in host memory. Raises what broke the writer."""
        layout = plan(state)
        nbytes = sum(entry.nbytes for entry in layout.entries)
        if nbytes > self.host_bytes:
            raise ValueError(f"a state of {nbytes} bytes does not fit into {self.host_bytes} of host memory")
        self._writer.wait()
        self.copier.begin()
        copies = []
        for entry in layout.entries:
            host = torch.empty(entry.nbytes, dtype=torch.uint8, pin_memory=self.pinned)
            if entry.nbytes:
                self.copier.copy(host, raw(entry.tensor), entry.key)
            copies.append(host)
        self._writer.put((layout, copies, path))

    def before_update(self) -> None:
        self._writer.first.check()

    def finish(self) -> None:
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()

    def _write(self, item: tuple[Plan, list[Tensor], Path]) -> None:
        layout, copies, path = item
        file = GrowingFile(path, 1)
        self.storage.write(file.descriptor, layout.head, 0, "header")
        for entry, host in zip(layout.entries, copies, strict=True):
            self.storage.write(file.descriptor, host.numpy().data, entry.offset, entry.key)
        self.storage.write(file.descriptor, layout.lean, layout.lean_offset, "header")
        file.seal()


class Snapshot:
    """Chunks of at most `chunk` bytes, each into host memory of its own and from there into a file of its own.

    host_bytes: what chunks in host memory may take together; a chunk that finds no room waits for one to be written.
    """

    def __init__(self, copier: Copier, storage: Storage, host_bytes: int, chunk: int = 16 << 20) -> None:
        if chunk > host_bytes:
            raise ValueError(f"chunks of {chunk} bytes do not fit into {host_bytes} of host memory")
        self.copier, self.storage, self.chunk = copier, storage, chunk
        self._free, self._room = host_bytes, threading.Condition()
        self._copying = ThreadPoolExecutor(THREADS, "copy")
        self._writing = ThreadPoolExecutor(THREADS, "write")
        self._pending: list[Future] = []

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        """Until every chunk is in host memory. `path` becomes a folder with chunks and a manifest.

        Raises what broke the writing of one before.
        """
        self.before_update()
        layout = plan(state)
        partial = path.with_name(path.name + ".part")
        partial.mkdir(parents=True)
        self.copier.begin()
        staged: list[Future] = []
        manifest: list[tuple[str, int, int]] = []
        for entry in layout.entries:
            for start, end in pieces(entry.nbytes, self.chunk):
                target = partial / f"{len(manifest):06d}"
                manifest.append((entry.key, start, end))
                part = raw(entry.tensor)[start:end]
                staged.append(self._copying.submit(self._stage, part, target, entry.key))
        writes = [one.result() for one in staged]
        shapes = {e.key: [DTYPES[e.tensor.dtype], list(e.tensor.shape)] for e in layout.entries}
        content = json.dumps({"chunks": manifest, "tensors": shapes, "lean": layout.lean.decode()})
        self._pending.append(self._writing.submit(self._seal, writes, content, partial, path))

    def before_update(self) -> None:
        for one in self._pending:
            if one.done():
                one.result()

    def finish(self) -> None:
        for one in self._pending:
            one.result()
        self._pending = []

    def close(self) -> None:
        self._copying.shutdown()
        self._writing.shutdown()

    def _stage(self, source: Tensor, target: Path, label: str) -> Future:
        with self._room:
            self._room.wait_for(lambda: self._free >= len(source))
            self._free -= len(source)
        host = torch.empty(len(source), dtype=torch.uint8)
        self.copier.copy(host, source, label)
        return self._writing.submit(self._write, host, target, label)

    def _write(self, host: Tensor, target: Path, label: str) -> None:
        descriptor = os.open(target, os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            self.storage.write(descriptor, host.numpy().data, 0, label)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            with self._room:
                self._free += len(host)
                self._room.notify_all()

    def _seal(self, writes: list[Future], content: str, partial: Path, path: Path) -> None:
        for one in writes:
            one.result()
        (partial / "manifest.json").write_text(content)
        publish(partial, path)


def load_snapshot(path: Path) -> dict[str, Tensor]:
    """The tensors of a snapshot by key."""
    content = json.loads((path / "manifest.json").read_text())
    memory: dict[str, bytearray] = {key: bytearray() for key in content["tensors"]}
    for index, (key, _start, _end) in enumerate(content["chunks"]):
        memory[key] += (path / f"{index:06d}").read_bytes()
    return {
        key: torch.frombuffer(memory[key], dtype=NAMES[dtype]).view(shape)
        if memory[key]
        else torch.empty(shape, dtype=NAMES[dtype])
        for key, (dtype, shape) in content["tensors"].items()
    }
