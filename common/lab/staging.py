"""Folders in which outputs are assembled, and the one step that puts them into place.

Each run has a folder of its own under outputs/.staging, so that nothing is ever half-written under outputs/<slug> and
runs beside each other never mix, and a temporary folder of its own, for all its processes. It owns them as long as it
lives; what a killed run left, processes too, is cleared by the next.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from common.lab.errors import LabError
from common.lab.files import locked
from common.lab.owned import abandoned, boot, owned, told
from common.lab.project import Project
from common.lab.workers import temporary_files

OWNER = "owner"
PREFIX = "paperlab-"  # of a run's temporary folder
LONGEST = 70  # characters of that folder's path: a socket in it may have some hundred


@contextlib.contextmanager
def staging(project: Project, slug: str) -> Iterator[Path]:
    """A folder of this process's own under outputs/.staging; what runs that are gone left there is cleared away.

    Meanwhile TMPDIR of this process, and of those it starts, is another folder of its own, where it was before.
    """
    token = secrets.token_hex(4)
    home = project.outputs / ".staging"
    folder, temporary = home / f"{slug}-{token}", Path(tempfile.gettempdir()) / f"{PREFIX}{token}"
    with contextlib.ExitStack() as held:
        with locked(_lock(project)):
            for other in [*home.iterdir()] if home.is_dir() else []:
                if abandoned(other / OWNER):
                    _clear(other)
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise LabError(f"{home}: can't be written: {error.strerror}") from error
            held.enter_context(owned(folder / OWNER, temporary=str(temporary)))
        try:
            with temporary_files(_short(temporary)):
                yield folder
        finally:
            with locked(_lock(project)):
                _clear(folder)


def sockets_of(workspace: Path) -> Path:
    """Where the kernel of a workspace has its sockets: their paths may have only some hundred characters."""
    return Path(tempfile.gettempdir()) / "kernel"


def _lock(project: Project) -> Path:
    return project.outputs / ".lock"


def _short(temporary: Path) -> Path:
    """Make a temporary folder; a path to it that leaves room for sockets."""
    temporary.mkdir(mode=0o700)
    if len(str(temporary)) <= LONGEST:
        return temporary
    link = _link(temporary)
    link.symlink_to(temporary)
    return link


def _link(temporary: Path) -> Path:
    return Path("/tmp") / temporary.name


def _clear(workspace: Path) -> None:
    """Remove a workspace; what a killed process had taken out of its place goes back, and what it started ends."""
    with contextlib.suppress(OSError):
        (workspace / "replaced").rename(Path((workspace / "target").read_text()))
    owner = told(workspace / OWNER)
    temporary = Path(owner.get("temporary", ""))
    if temporary.name.startswith(PREFIX) and owner.get("boot") == boot():
        _end_orphans(temporary)
    if temporary.name.startswith(PREFIX):
        if _link(temporary).is_symlink():
            _link(temporary).unlink(missing_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(workspace, ignore_errors=True)


def _end_orphans(temporary: Path) -> None:
    """Kill the processes that a run which is gone started, and theirs: those that have its temporary folder."""
    mine = {str(temporary), str(_link(temporary))}
    us = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in us and process.environ().get("TMPDIR") in mine:
                process.kill()


def put_into_place(project: Project, workspace: Path, folder: Path, target: Path) -> None:
    """Replace `target` by `folder` under a lock; an earlier `target` is removed only once the new one stands."""
    with locked(_lock(project)):
        old = workspace / "replaced"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            (workspace / "target").write_text(str(target))  # where _clear would put it back
            if target.exists():
                target.rename(old)
            folder.rename(target)
        except OSError as error:
            if old.exists() and not target.exists():
                old.rename(target)
            raise LabError(f"{target}: can't be written: {error.strerror}") from error
        (workspace / "target").unlink()
