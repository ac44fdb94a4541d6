"""Temporary folders that are gone with the process that made them, however that ended.

    room = Room("paperlab-ucp-")         # clears first what processes that are gone left under this prefix
    save(room.path / "checkpoint", ...)
                                         # gone when `room` is, at the end of the process at the latest

Whoever owns a folder holds a lock on it; a lock falls with its holder, kill -9 included, and then the next Room of the
same prefix removes what is left. Where the file system has no locks, folders of others are left alone.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEW = ".new"  # the end of a folder's name until it is locked: nobody clears such a one


class Room:
    """A folder, `path`, that lives as long as this object; a context manager for who wants it gone sooner."""

    def __init__(self, prefix: str) -> None:
        clear_abandoned(prefix)
        made = Path(tempfile.mkdtemp(prefix=f".{prefix}", suffix=NEW))
        handle = _locked(made)
        self.path = made.with_name(made.name.removeprefix(".").removesuffix(NEW))
        made.rename(self.path)
        self._close = weakref.finalize(self, _remove, self.path, handle)

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        self._close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def clear_abandoned(prefix: str) -> list[Path]:
    """Remove the folders of this prefix whose owner is gone; their paths."""
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with _free(path) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)
                found.append(path)
    return found


@contextmanager
def _free(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock on a folder; then this block does."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(handle)


def _locked(folder: Path) -> int:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _remove(path: Path, handle: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(handle)
