"""Processes that end with the one that started them, however that ended. Standard library."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

POLL = 0.3  # seconds
PR_SET_PDEATHSIG = 1  # Linux's prctl


def follow_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Send this process a signal once its parent (that process, if given) is gone."""
    expected = parent or os.getppid()

    def follow() -> None:
        while os.getppid() == expected:
            time.sleep(POLL)
        os.kill(os.getpid(), number)

    threading.Thread(target=follow, daemon=True, name="ends with its parent").start()


def killed_with_parent() -> None:
    """Have Linux kill this process at the end of the thread that started it, whatever this one is busy with.

    Only where that thread lives as long as its process does. Nothing where there is no such call.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
