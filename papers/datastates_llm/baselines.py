"""What the paper compares with, on the same copy engine, storage and host memory (Section 6.2).

Synchronous      DeepSpeed's default: copy to host memory, torch.save, nothing else meanwhile
Asynchronous     CheckFreq, LightCheck, AsyncCheckpointIO: allocate and copy at once, write in the background, one
                 checkpoint at a time
Snapshot         TorchSnapshot: chunks copied and written by several threads, a file each; training waits until all
                 are in host memory
"""

import os
import threading
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from papers.datastates_llm.file_format import Plan, apart, load, pieces, plan, raw, tensors_of, together
from papers.datastates_llm.tiers import Copier, GrowingFile, Storage, Tier, publish

THREADS = 4  # flush threads a GPU (Section 6.2)


class Synchronous:
    """torch.save of host copies, while training waits."""

    def __init__(self, copier: Copier, storage: Storage) -> None:
        self.copier, self.storage = copier, storage

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        """Until the file is on the disk."""
        self.copier.begin()
        lean, tensors = apart(state)
        host = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in tensors.items()}
        for key, tensor in tensors.items():
            self.copier.copy(raw(host[key]), raw(tensor), key)
        file = GrowingFile(path)
        try:
            torch.save(together(lean, host), cast(IO[bytes], _Sink(self.storage, file.descriptor)))
            file.seal()
        finally:
            file.abandon()

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
        self._writer.errors.check()

    def finish(self) -> None:
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()

    def _write(self, item: tuple[Plan, list[Tensor], Path]) -> None:
        layout, copies, path = item
        file = GrowingFile(path)
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
        """Until every chunk is in host memory; raises what broke the writing of one before.

        `path` becomes a folder: the file of `file_format` in pieces, which are numbered.
        """
        self.before_update()
        layout = plan(state)
        folder = path.with_name(path.name + ".part")
        folder.mkdir(parents=True)
        self.copier.begin()
        chunks = [
            (raw(entry.tensor)[start:end], entry.key)
            for entry in layout.entries
            for start, end in pieces(entry.nbytes, self.chunk)
        ]
        staged = [
            self._copying.submit(self._stage, source, folder / f"{number:06d}", key)
            for number, (source, key) in enumerate(chunks, 1)
        ]
        writes = [one.result() for one in staged]
        self._pending.append(self._writing.submit(self._seal, writes, layout, folder, path))

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
        try:
            with target.open("wb") as file:
                self.storage.write(file.fileno(), host.numpy().data, 0, label)
                os.fsync(file.fileno())
        finally:
            with self._room:
                self._free += len(host)
                self._room.notify_all()

    def _seal(self, writes: list[Future], layout: Plan, folder: Path, path: Path) -> None:
        for one in writes:
            one.result()
        (folder / f"{0:06d}").write_bytes(layout.head)
        (folder / f"{len(writes) + 1:06d}").write_bytes(layout.lean)
        publish(folder, path)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, whichever engine wrote it."""
    if path.is_dir():
        whole = path.with_name(path.name + ".whole")
        whole.write_bytes(b"".join(piece.read_bytes() for piece in sorted(path.iterdir())))
        return read(whole)
    if zipfile.is_zipfile(path):  # torch.save's
        return tensors_of(torch.load(path, weights_only=True))
    return tensors_of(load(path))
