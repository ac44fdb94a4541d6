"""Virtual memory without physical memory behind it, and pages that are mapped there on demand: Linux instead of CUDA.

    CUDA driver                      here
    cuMemAddressReserve              mmap(PROT_NONE, MAP_NORESERVE)
    cuMemCreate                      a page of one memfd, touched once
    cuMemMap and cuMemSetAccess      mmap(MAP_FIXED | MAP_SHARED) of that page over the reserved address
    cuMemUnmap                       mmap(PROT_NONE) over it

An access to a reserved address without a page is a fault. ctypes releases the interpreter lock during a call, so that
another thread computes meanwhile. Source: vAttention (ASPLOS 2025), Section 5 (driver calls).
"""

import ctypes
import errno
import mmap
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PROT_NONE = 0
MAP_FIXED = 0x10  # <asm-generic/mman-common.h>
MAP_NORESERVE = 0x4000
FAILED = ctypes.c_void_p(-1).value


def require_linux() -> None:
    """OSError with one line on any other system."""
    if not sys.platform.startswith("linux"):
        raise OSError(f"vattention maps memory with Linux's mmap and memfd; this is {sys.platform}")


def _libc() -> ctypes.CDLL:
    require_linux()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


class PagePool:
    """All physical pages, created up front: one memfd of `pages` pages of `page_bytes`, each touched once."""

    def __init__(self, pages: int, page_bytes: int) -> None:
        require_linux()
        if page_bytes < 1 or page_bytes % mmap.PAGESIZE:
            raise ValueError(f"a page of {page_bytes} bytes is no multiple of the system's {mmap.PAGESIZE}")
        if pages < 0:
            raise ValueError(f"a pool has no {pages} pages")
        self.pages, self.page_bytes = pages, page_bytes
        self.fd = os.memfd_create("kv-pages")
        self._close = weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, pages * page_bytes)
        if pages:
            try:
                os.posix_fallocate(self.fd, 0, pages * page_bytes)  # zeroed here, not in a later map
            except OSError as error:
                raise MemoryError(f"no {pages * page_bytes} bytes of physical pages: {error}") from error


class Reservation:
    """A range of virtual addresses with nothing behind it until pages are mapped."""

    def __init__(self, size: int) -> None:
        self._lib = _libc()
        if size < 1:
            raise ValueError(f"a reservation has no {size} bytes")
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        base = self._lib.mmap(None, size, PROT_NONE, flags, -1, 0)
        if base is None or base == FAILED:
            raise _error(f"reserving {size} bytes of virtual memory")
        self.address: int = base
        self._release = weakref.finalize(self, self._lib.munmap, base, size)

    def map(self, offset: int, pool: PagePool, page: int) -> None:
        """Put page number `page` of the pool behind the addresses from `offset` bytes on."""
        size = pool.page_bytes
        if not 0 <= offset <= self.size - size or not 0 <= page < pool.pages or offset % mmap.PAGESIZE:
            raise ValueError(
                f"page {page} at byte {offset} lies outside the pool or the reservation, or across pages"
            )
        access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
        got = self._lib.mmap(self.address + offset, size, access, flags, pool.fd, page * size)
        if got != self.address + offset:
            raise _error(f"mapping a page at byte {offset}")

    def unmap(self, offset: int, size: int) -> None:
        """Leave the addresses reserved with nothing behind them; the page keeps its contents in the pool."""
        if size < 1 or not 0 <= offset <= self.size - size or (offset | size) % mmap.PAGESIZE:
            raise ValueError(f"{size} bytes at {offset} lie outside the reservation, or are no whole pages")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        got = self._lib.mmap(self.address + offset, size, PROT_NONE, flags, -1, 0)
        if got != self.address + offset:
            raise _error(f"unmapping {size} bytes at {offset}")

    def tensor(self, dtype: type[np.generic] = np.float32) -> Tensor:
        """The whole range as a flat tensor, which keeps the reservation alive; reading an unmapped part faults."""
        raw = _array_type(self.size).from_address(self.address)
        raw.owner = self
        return torch.from_numpy(np.frombuffer(raw, dtype=dtype))


def _array_type(size: int) -> Any:
    """A ctypes array of bytes whose instances can carry an attribute."""
    return type("Bytes", (ctypes.c_char * size,), {})


def process_memory() -> tuple[int, int]:
    """(virtual, resident) bytes of this process, from /proc/self/statm."""
    require_linux()
    virtual, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(virtual) * mmap.PAGESIZE, int(resident) * mmap.PAGESIZE


def _error(doing: str) -> OSError:
    number = ctypes.get_errno()
    hint = "; the process has too many mappings (vm.max_map_count)" if number == errno.ENOMEM else ""
    return OSError(number, f"{doing}: {os.strerror(number)}{hint}")
