"""Worker processes that begin with a paper's libraries loaded.

`Runtime.map` forks its workers from Python's fork server. Left alone, that server is empty, and every pool of workers
imports torch and transformers anew, some 3 to 8 s. `warm_up` starts it early, beside an experiment's first steps, and
has it import, once, what the experiment imports (common/lab/preloaded.py). Nothing but time depends on it.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from multiprocessing import forkserver

from common.lab.closure import imported
from common.lab.project import Project

PRELOAD = "PAPERLAB_PRELOAD"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def warm_up(project: Project, slug: str) -> None:
    """Start the fork server with all that a paper's experiment imports; it returns at once.

    On one thread: a process may be forked safely only while no library has started another. A server that runs
    already stays as it is.
    """
    forkserver.set_forkserver_preload(["common.lab.preloaded"])
    with environment({PRELOAD: json.dumps(sorted(imported(project, slug))), **ONE_THREAD}):
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
