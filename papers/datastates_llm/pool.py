"""The host buffer: one allocation for all checkpoints, used as a ring that is freed in the order it was filled.

Section 5.1 and 5.3 of the paper, and the rules of the authors' mem_pool.cpp: a region never wraps around the end; if
the gap there is too small, it starts again at 0 and waits until the oldest regions have moved on; only the oldest may
be released; who finds no room waits.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """Bytes start .. start + nbytes of the pool."""

    start: int
    nbytes: int


class Closed(RuntimeError):
    """The pool was closed while somebody waited for room."""


class HostPool:
    """Room for `nbytes` bytes; `buffer` is the memory, uint8 of shape (nbytes,).

    Pages are touched here, once, so that no checkpoint pays for them; pinned: also locked, for copies from a GPU.
    ValueError for a pool without room. `history` holds (seconds of the monotonic clock, bytes in use) of every change.
    """

    def __init__(self, nbytes: int, pinned: bool = False) -> None:
        if nbytes < 1:
            raise ValueError(f"a pool of {nbytes} bytes holds nothing: set the size of the host buffer")
        self.nbytes = nbytes
        self.buffer = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self.history: list[tuple[float, int]] = []
        self._regions: deque[Region] = deque()
        self._used = 0
        self._changed = threading.Condition()
        self._closed = False

    def allocate(self, nbytes: int) -> Region:
        """A region behind the youngest one; waits while there is no room. ValueError where it can never fit."""
        if not 0 < nbytes <= self.nbytes:
            raise ValueError(f"a tensor of {nbytes} bytes does not fit into a pool of {self.nbytes} bytes")
        with self._changed:
            while (start := self._place(nbytes)) is None:
                self._changed.wait()
                if self._closed:
                    raise Closed("the pool was closed")
            region = Region(start, nbytes)
            self._regions.append(region)
            self._count(nbytes)
        return region

    def release(self, region: Region) -> None:
        """Give back the oldest region. ValueError for any other: eviction is first in, first out."""
        with self._changed:
            if not self._regions or self._regions[0] != region:
                raise ValueError(f"{region} is not the oldest region: only that one can be released")
            self._regions.popleft()
            self._count(-region.nbytes)
            self._changed.notify_all()

    def view(self, region: Region) -> Tensor:
        """The memory of a region, uint8."""
        return self.buffer[region.start : region.start + region.nbytes]

    @property
    def used(self) -> int:
        """Bytes in regions now; the gap that is left at the end of a round does not count."""
        return self._used

    def close(self) -> None:
        """Whoever waits for room gets `Closed`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _place(self, nbytes: int) -> int | None:
        """Where a region can start now: behind the youngest, or again at 0; None where it has to wait."""
        if self._closed:
            raise Closed("the pool was closed")
        if not self._regions:
            return 0
        tail, youngest = self._regions[0].start, self._regions[-1]
        head = youngest.start + youngest.nbytes
        if youngest.start >= tail:  # in use: tail .. head; free: what is behind, then what is before
            if self.nbytes - head >= nbytes:
                return head
            return 0 if tail >= nbytes else None
        return head if tail - head >= nbytes else None

    def _count(self, more: int) -> None:
        self._used += more
        self.history.append((time.monotonic(), self._used))
