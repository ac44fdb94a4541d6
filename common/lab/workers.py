"""Worker processes that begin with a paper's libraries loaded.

`Runtime.map` forks its workers from Python's fork server. Left alone, that server is empty, and every pool of workers
imports torch and transformers anew, some 3 to 8 s. `warm_up` starts it early, beside an experiment's first steps, and
has it import, once, what the experiment imports (common/lab/preloaded.py). Nothing but time depends on it.
"""

import contextlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import current_process, forkserver, util
from pathlib import Path
from typing import Any

from common.lab.closure import imported
from common.lab.project import Project

PRELOAD, KILLED = "PAPERLAB_PRELOAD", "PAPERLAB_KILLED_WITH_PARENT"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def warm_up(project: Project, slug: str) -> None:
    """Start the fork server with all that a paper's experiment imports; it returns at once.

    On one thread: a process may be forked safely only while no library has started another. A server that runs
    already stays as it is.
    """
    forkserver.set_forkserver_preload(["common.lab.preloaded"])
    lasting = (
        threading.current_thread() is threading.main_thread()
    )  # Linux means the thread that started a process
    preload = {PRELOAD: json.dumps(sorted(imported(project, slug))), KILLED: "1" if lasting else ""}
    with environment({**preload, **ONE_THREAD}):
        forkserver.ensure_running()


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that this process and those it starts have for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """This process and those it starts have their temporary files in `folder`, the fork server's socket too.

    A fork server that was started meanwhile ends with the block, for its socket goes.
    """
    before = tempfile.tempdir
    try:
        with environment({"TMPDIR": str(folder)}):
            tempfile.tempdir = None  # the library looks up TMPDIR once
            yield
    finally:
        tempfile.tempdir = before
        kept: dict[str, object] = current_process()._config  # type: ignore[attr-defined]
        sockets = str(kept.get("tempdir") or "")
        if Path(sockets).is_relative_to(folder):
            _end_fork_server()
            for at_exit in [*util._finalizer_registry.values()]:  # type: ignore[attr-defined]
                if sockets in (at_exit._args or ()):
                    at_exit()  # it removes the folder of the sockets, and would miss it later
            kept.pop("tempdir", None)


def _end_fork_server() -> None:
    """By the method that Python's own tests use, for there is no public one; without waiting for its workers."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_pid is not None:
        with contextlib.suppress(OSError):
            os.kill(server._forkserver_pid, signal.SIGKILL)
            server._stop()
