"""A temporary folder that is gone when whoever made it is gone, however that went.

    with scratch("job-") as folder: ...

A shell in a session of its own waits at the other end of a pipe: it removes the folder when the pipe breaks, which the
kernel does for a process that was killed too. Linux and macOS.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 1  # that processes which die with their caller are given, before the folder goes


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """An empty folder for the block."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    command = ["sh", "-c", f'read -r _ || {{ sleep {SECONDS}; rm -rf -- "$0"; }}', str(folder)]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        watcher.communicate(b"done\n")
