"""Devices of a set rate that several processes share: storage, a copy engine, a link.

A page cache takes a gigabyte in no time and proves nothing about a disk. Here every transfer waits for its turn on a
device that serves one request after another at so many bytes a second, whichever process asks:

    disk = Device.make(folder / "disk", bytes_per_s=400e6)    # picklable: hand it to other processes
    disk.write(path, data); disk.read(path); disk.pass_through(nbytes)

The turn is a number in a small file under an advisory lock, which the kernel releases when a process is killed. Bytes
that passed are counted in the same file.
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATE = struct.Struct("<dQQ")  # seconds of the monotonic clock at which the device is free; bytes; requests
CHUNK = 4 << 20  # bytes of one turn, so that long transfers of several processes share the device


@dataclass(frozen=True)
class Device:
    """A rate in bytes per second, and the file that holds whose turn it is. Linux: one clock for all processes."""

    place: Path
    bytes_per_s: float
    chunk: int = CHUNK

    @classmethod
    def make(cls, place: Path, bytes_per_s: float, chunk: int = CHUNK) -> "Device":
        """A device that is free and has passed nothing. ValueError for a rate or a chunk that is not positive."""
        if not bytes_per_s > 0 or chunk < 1:
            raise ValueError(
                f"a device passes bytes: rate {bytes_per_s}, chunk {chunk} are not both positive"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(STATE.pack(0.0, 0, 0))
        return cls(place, bytes_per_s, chunk)

    def pass_through(self, nbytes: int) -> float:
        """Wait as long as the device needs for these bytes, behind those who asked before; seconds waited."""
        begun = time.monotonic()
        for start in range(0, nbytes, self.chunk):
            self._turn(min(self.chunk, nbytes - start))
        return time.monotonic() - begun

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Write a file and force it to the real disk, at the device's rate. Nothing is atomic here: rename yourself."""
        view = memoryview(data).cast("B")
        with path.open("wb") as file:
            for start in range(0, len(view), self.chunk):
                part = view[start : start + self.chunk]
                self._turn(len(part))
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def read(self, path: Path, offset: int = 0, nbytes: int | None = None) -> bytearray:
        """Read a file, or a part of it, at the device's rate. EOFError where the part reaches beyond the end."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            wanted = size - offset if nbytes is None else nbytes
            if offset < 0 or wanted < 0 or offset + wanted > size:
                raise EOFError(f"{path}: bytes {offset} to {offset + wanted} of {size} can't be read")
            found = bytearray(wanted)
            view = memoryview(found)
            file.seek(offset)
            for start in range(0, wanted, self.chunk):
                part = view[start : start + self.chunk]
                self._turn(len(part))
                file.readinto(part)
        return found

    @property
    def passed_bytes(self) -> int:
        """Bytes that all processes sent through so far."""
        with self._state() as (_, passed, _requests, _write):
            return passed

    def _turn(self, nbytes: int) -> None:
        """Take the next free moments of the device, and wait until they are over."""
        with self._state() as (free, passed, requests, write):
            ends = max(time.monotonic(), free) + nbytes / self.bytes_per_s
            write(ends, passed + nbytes, requests + 1)
        time.sleep(max(0.0, ends - time.monotonic()))

    @contextmanager
    def _state(self) -> Iterator[tuple]:
        descriptor = os.open(self.place, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            free, passed, requests = STATE.unpack(os.pread(descriptor, STATE.size, 0))
            yield free, passed, requests, lambda *state: os.pwrite(descriptor, STATE.pack(*state), 0)
        finally:
            os.close(descriptor)
