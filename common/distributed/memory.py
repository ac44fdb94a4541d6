"""Memory without a name that one process owns and others map (Linux).

    memory = Memory.make(1 << 20)              # in the owner
    other = Memory.open(memory.address)        # in another process; the address can be sent to it

It outlives those who opened it, whatever killed them, and is gone when its owner is gone and the last mapping closed:
the kernel counts. Nothing has to be unlinked, so nothing can be left behind, and no resource tracker of a dying process
takes it away from the others.
"""

import mmap
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """Where another process finds a memory."""

    pid: int
    descriptor: int
    nbytes: int


class Memory:
    """Bytes shared by processes; `view` is writable."""

    def __init__(self, descriptor: int, nbytes: int, address: Address) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, nbytes)
        self.view = memoryview(self._map)
        self.address = address

    @classmethod
    def make(cls, nbytes: int) -> "Memory":
        """Zeros, owned by this process. ValueError for no bytes, OSError where there is no such memory."""
        if nbytes < 1:
            raise ValueError(f"a memory has at least one byte, not {nbytes}")
        if sys.platform != "linux":
            raise OSError("memory that processes share without a name needs Linux")
        descriptor = os.memfd_create("paperlab", os.MFD_CLOEXEC)
        os.truncate(descriptor, nbytes)
        return cls(descriptor, nbytes, Address(os.getpid(), descriptor, nbytes))

    @classmethod
    def open(cls, address: Address) -> "Memory":
        """The memory of another process, or of this one. ProcessLookupError if its owner has closed it or is gone."""
        try:
            descriptor = os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(f"process {address.pid}, which owned this memory, is gone") from None
        return cls(descriptor, address.nbytes, address)

    def close(self) -> None:
        """Unmap it here. BufferError while arrays still look at it."""
        self.view.release()
        self._map.close()
        os.close(self._descriptor)
