"""Folders in which outputs are assembled, and the one step that puts them into place.

Each run has a folder of its own under outputs/.staging, so that nothing is ever half-written under outputs/<slug> and
runs beside each other never mix; what a killed run left is cleared by the next.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from common.lab.errors import LabError
from common.lab.files import locked
from common.lab.project import Project


@contextlib.contextmanager
def staging(project: Project, slug: str) -> Iterator[Path]:
    """A folder of this process's own under outputs/.staging; those of processes that are gone are cleared away."""
    home = project.outputs / ".staging"
    me = psutil.Process()
    folder = home / f"{slug}-{me.pid}-{int(me.create_time())}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise LabError(f"{home}: can't be written: {error.strerror}") from error
    for other in home.iterdir():
        if not _owned(other.name):
            _clear(other)
    try:
        yield folder
    finally:
        _clear(folder)


def _clear(workspace: Path) -> None:
    """Remove a workspace; what a killed process had taken out of its place goes back."""
    with contextlib.suppress(OSError):
        (workspace / "replaced").rename(Path((workspace / "target").read_text()))
    for folder in (workspace, sockets_of(workspace)):
        shutil.rmtree(folder, ignore_errors=True)


def sockets_of(workspace: Path) -> Path:
    """Where the kernel of a workspace has its sockets: their paths may have only some hundred characters."""
    return Path("/tmp") / f"paperlab-{workspace.name.rpartition('-')[2]}"


def _owned(name: str) -> bool:
    """Whether the process that made a staging folder still lives."""
    try:
        _, pid, born, _ = name.rsplit("-", 3)
        return abs(psutil.Process(int(pid)).create_time() - int(born)) < 2
    except (ValueError, psutil.NoSuchProcess):
        return False


def put_into_place(project: Project, workspace: Path, folder: Path, target: Path) -> None:
    """Replace `target` by `folder` under a lock; an earlier `target` is removed only once the new one stands."""
    with locked(project.outputs / ".lock"):
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
