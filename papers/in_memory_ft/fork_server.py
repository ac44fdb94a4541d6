"""Python's fork server with this paper's modules loaded, so that a restarted trainer is up in a moment."""

import multiprocessing
import sys
from multiprocessing import forkserver

MODULES = [
    "torch",
    "torch.distributed",
    "torch._dynamo",  # see replicas.py
    "papers.in_memory_ft.engines",
    "papers.in_memory_ft.overhead",
]


def load_ahead() -> None:
    """Start the server with MODULES in it. One that runs already, such as the lab's, stays as it is."""
    if sys.platform == "linux":
        multiprocessing.set_forkserver_preload(MODULES)
        forkserver.ensure_running()
