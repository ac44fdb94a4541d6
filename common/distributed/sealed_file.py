"""Files that are there whole or not at all, and whose checksum says whether they still are what was written."""

import os
import threading
import zlib
from pathlib import Path

import numpy as np

from common.distributed.throttled import Device


class Damaged(RuntimeError):
    """Bytes that are not those whose checksum was taken; the message says which."""


def checksum(block: np.ndarray | bytes) -> int:
    """CRC-32 of bytes."""
    return zlib.crc32(block)  # type: ignore[arg-type]


def write_sealed(path: Path, data: np.ndarray, disk: Device | None = None) -> None:
    """A uint8 array as a file with its checksum at the end, renamed when it is whole; at the disk's rate if given."""
    part = path.with_suffix(f".part{os.getpid()}-{threading.get_ident()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = data.tobytes() + checksum(data.tobytes()).to_bytes(4, "little")
    try:
        if disk is None:
            part.write_bytes(whole)
        else:
            disk.write(part, whole)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_sealed(path: Path, disk: Device | None = None) -> np.ndarray:
    """What `write_sealed` wrote; uint8. Damaged where the checksum does not fit."""
    whole = np.frombuffer(bytearray(path.read_bytes()) if disk is None else disk.read(path), np.uint8)
    if len(whole) < 4 or checksum(whole[:-4]) != int.from_bytes(whole[-4:].tobytes(), "little"):
        raise Damaged(f"{path} is not what was written")
    return whole[:-4]
