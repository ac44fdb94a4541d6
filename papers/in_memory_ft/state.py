"""A rank's training state as one stretch of bytes: weights and moments, which peers share, and a header of its own."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.training.sharded.zero import Fragment

MAGIC = b"in-mem-1"
FIELDS = struct.Struct(
    "<8sQQQQ"
)  # magic, step, data position, bytes of the whole state, bytes of the generator
HEADER = 5120  # bytes: the fields and torch's CPU generator (5,056 bytes)


@dataclass(frozen=True)
class Header:
    """What a rank has beside weights and moments: steps taken, windows read, the generator of its dropout."""

    step: int
    position: int
    state_bytes: int
    rng: Tensor

    def pack(self) -> bytes:
        """HEADER bytes. ValueError for a generator that does not fit."""
        rng = self.rng.numpy().tobytes()
        if FIELDS.size + len(rng) > HEADER:
            raise ValueError(f"a generator's state of {len(rng)} bytes does not fit a header of {HEADER}")
        fields = FIELDS.pack(MAGIC, self.step, self.position, self.state_bytes, len(rng))
        return (fields + rng).ljust(HEADER, b"\0")

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> "Header":
        """What `pack` made. ValueError for anything else."""
        magic, step, position, state_bytes, rng_bytes = FIELDS.unpack_from(data)
        if magic != MAGIC:
            raise ValueError("this is no snapshot of a training state")
        rng = bytearray(data[FIELDS.size : FIELDS.size + rng_bytes])
        return cls(step, position, state_bytes, torch.frombuffer(rng, dtype=torch.uint8).clone())


class FlatState:
    """Tensors one after another as bytes, without copying them; reading and writing touch any stretch."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._views = [tensor.detach().reshape(-1).view(torch.uint8).numpy() for tensor in tensors]
        self._starts = np.cumsum([0] + [len(view) for view in self._views])

    @classmethod
    def of(cls, fragments: Sequence[Fragment]) -> "FlatState":
        """Weights and both moments of a rank's fragments; views of the live tensors."""
        return cls([tensor for f in fragments for tensor in (f.weight, f.exp_avg, f.exp_avg_sq)])

    @property
    def nbytes(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, into: np.ndarray) -> None:
        """Copy bytes from `start` on into a uint8 array."""
        for view, begin, place in self._parts(start, len(into)):
            into[place : place + len(view) - begin] = view[begin:]

    def write(self, start: int, data: np.ndarray) -> None:
        """Copy a uint8 array over the bytes from `start` on."""
        for view, begin, place in self._parts(start, len(data)):
            view[begin:] = data[place : place + len(view) - begin]

    def _parts(self, start: int, length: int) -> list[tuple[np.ndarray, int, int]]:
        """The views that a stretch touches, cut at its end, with where it begins in each and in the stretch."""
        if start < 0 or start + length > self.nbytes:
            raise ValueError(f"bytes {start} to {start + length} are not within a state of {self.nbytes}")
        found, end = [], start + length
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for index in range(first, len(self._views)):
            low = int(self._starts[index])
            if low >= end:
                break
            begin = max(start - low, 0)
            found.append((self._views[index][: end - low], begin, low + begin - start))
        return found

    def digest(self, *more: bytes) -> str:
        """sha256 over all bytes and some more, in hexadecimal."""
        found = hashlib.sha256()
        for view in self._views:
            found.update(view)  # type: ignore[arg-type]
        for one in more:
            found.update(one)
        return found.hexdigest()


def shard(state_bytes: int, index: int, shards: int) -> tuple[int, int]:
    """First byte and end of one of `shards` slices that differ by a byte at most."""
    if not 0 <= index < shards:
        raise ValueError(f"there is no shard {index} of {shards}")
    return state_bytes * index // shards, state_bytes * (index + 1) // shards


def payload_bytes(state_bytes: int, shards: int) -> int:
    """Bytes that hold any rank's header and shard."""
    return HEADER + -(-state_bytes // shards)
