"""What a process owns as long as it lives: a file that it keeps locked, and that says where it runs.

Process numbers and birthdays mean nothing in another container or on another machine. A lock does: it falls with its
holder, however that ends, and whoever shares the kernel sees it, in whatever container. Between machines that share a
folder a lock is believed only where it is held; where it is free, its owner's machine decides.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from common.lab.errors import LabError

PATIENCE = 7 * 24 * 3600.0  # seconds after which what a machine out of sight left free counts as left behind


@contextmanager
def owned(path: Path, **said: str) -> Iterator[None]:
    """Own the file `path`, newly made, for as long as this process lives or the block lasts.

    `said` is kept in it beside this machine's name and boot (see `told`). Made and asked after (`abandoned`) under one
    lock of the caller's, so that nobody finds it before it is locked. LabError where it can't be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError as error:
        raise LabError(f"{path}: can't be written: {error.strerror}") from error
    try:
        with suppress(OSError):  # a file system without locks, where others leave it alone for ever
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(handle, json.dumps({"host": socket.gethostname(), "boot": boot(), **said}).encode())
        yield
    finally:
        os.close(handle)


def abandoned(path: Path) -> bool:
    """Whether the owner of this file is surely gone; one that can't be told dead lives. Without a file: True."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or not to be had here
        return False
    finally:
        age = time.time() - os.fstat(handle).st_mtime
        os.close(handle)
    owner = told(path)
    near = owner.get("boot") == boot() or owner.get("host") == socket.gethostname()
    return near or not owner or age > PATIENCE


def told(path: Path) -> dict[str, str]:
    """What the owner of a file said in it; empty where it ended before it could, or there is no file."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}


def boot() -> str:
    """Tells this run of this machine's kernel from any other; the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()} {int(psutil.boot_time())}"
