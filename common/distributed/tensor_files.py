"""Safetensors files read in parts and written whole, with every byte counted and, if asked, at a device's rate."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.distributed.throttled import Device


class CheckpointError(RuntimeError):
    """Files that are no checkpoint, or not a whole one, or one that does not fit."""


@dataclass
class Storage:
    """One process's way to files. device: whose rate it keeps to (None: as fast as the machine goes).

    held and most_held: bytes of tensors that a conversion holds, now and at most.
    """

    device: Device | None = None
    read_bytes: int = 0
    written_bytes: int = 0
    held: int = 0
    most_held: int = 0

    @contextmanager
    def open(self, path: Path) -> Iterator["Opened"]:
        """A file to read parts of. CheckpointError where it is missing or no safetensors file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                yield Opened(self, file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {error}") from error

    def write(self, path: Path, tensors: Mapping[str, Tensor], about: Any) -> None:
        """A safetensors file with JSON beside its tensors; it appears whole or not at all."""
        from safetensors.torch import save_file

        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _beside(path)
        if self.device is not None:
            self.device.pass_through(nbytes)
        save_file(dict(tensors), part, {"about": json.dumps(about)})
        part.replace(path)
        self.written_bytes += nbytes

    @contextmanager
    def holding(self, nbytes: int) -> Iterator[None]:
        """While something of this size is in memory."""
        self.held += nbytes
        self.most_held = max(self.most_held, self.held)
        try:
            yield
        finally:
            self.held -= nbytes


class Opened:
    """An open file."""

    def __init__(self, storage: Storage, file: Any) -> None:
        self._storage, self._file = storage, file

    @property
    def about(self) -> Any:
        """The JSON beside the tensors."""
        return json.loads(self._file.metadata()["about"])

    @property
    def names(self) -> list[str]:
        return list(self._file.keys())

    def size(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def part(self, name: str, *where: slice) -> Tensor:
        """The elements of a tensor at these slices; nothing else of the file is read."""
        found = self._file.get_slice(name)[where or ...]
        storage = self._storage
        if storage.device is not None:
            storage.device.pass_through(found.nbytes)
        storage.read_bytes += found.nbytes
        return found


def _beside(path: Path) -> Path:
    """A name that no other process and no other thread writes to."""
    return path.with_name(f"{path.name}.part{os.getpid()}.{threading.get_ident()}")


def write_json(path: Path, content: Any) -> None:
    """A JSON file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    part.write_text(json.dumps(content, indent=1, sort_keys=True), "utf-8")
    part.replace(path)


def read_json(path: Path) -> Any:
    """CheckpointError where there is none, or something else."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
