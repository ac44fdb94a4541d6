"""Tensors as one stretch of bytes, and slices of it: what replicas of one state share out among them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class FlatState:
    """Tensors one after another as bytes, without copying them; reading and writing touch any stretch."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._views = [tensor.detach().reshape(-1).view(torch.uint8).numpy() for tensor in tensors]
        self._starts = np.cumsum([0] + [len(view) for view in self._views])

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
