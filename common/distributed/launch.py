"""Run one function in several real processes that form a gloo process group on this machine.

    results = launch(work, world=2, arguments=(config,), seconds=60)   # work(rank, world, *arguments)

The group meets through a file and talks over the loopback interface. However a run ends (a result, an exception, a
killed rank, a time-out, or the death of the calling process), no process and no file of it stays behind.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

PR_SET_PDEATHSIG = 1  # of prctl(2)
SECONDS_TO_END = 5.0  # that processes are given to go after SIGKILL


class RankFailed(RuntimeError):
    """A rank raised, died or was late; the message names it, and `rank` is its number (None: time-out)."""

    def __init__(self, rank: int | None, message: str) -> None:
        super().__init__(message)
        self.rank = rank


def launch(
    function: Callable[..., Any],
    world: int,
    arguments: tuple[Any, ...] = (),
    seconds: float = 300.0,
    threads: int = 1,
) -> list[Any]:
    """What function(rank, world, *arguments) returned on each rank, in the order of ranks.

    function and arguments must be picklable (a function of a module). seconds: after which everything is stopped.
    threads: torch threads of each process. Raises RankFailed naming the first rank that raised or died, or the ranks
    that were still at work at the time-out.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="paperlab-ranks-") as folder:
        pipes, processes = [], []
        try:
            for rank in range(world):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank,
                    args=(
                        function,
                        rank,
                        world,
                        arguments,
                        f"{folder}/meet",
                        threads,
                        seconds,
                        theirs,
                        os.getpid(),
                    ),
                    daemon=True,
                )
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            return _collect(pipes, processes, time.monotonic() + seconds, seconds)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
            for process in processes:
                process.join(SECONDS_TO_END)
            for pipe in pipes:
                pipe.close()


def _collect(pipes: list[Connection], processes: list[Any], deadline: float, seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        open_ranks = [rank for rank in range(len(pipes)) if rank not in results]
        ready = wait([pipes[rank] for rank in open_ranks], max(0.0, deadline - time.monotonic()))
        if not ready:
            late = ", ".join(map(str, open_ranks))
            raise RankFailed(
                None, f"rank {late} of {len(pipes)} not finished after {seconds:g} s; all were stopped"
            )
        for rank in open_ranks:
            if pipes[rank] not in ready:
                continue
            try:
                good, value = pickle.loads(pipes[rank].recv_bytes())  # from our own child, over our own pipe
            except EOFError:
                processes[rank].join(SECONDS_TO_END)
                code = processes[rank].exitcode
                how = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code and code < 0
                    else f"exited with {code}"
                )
                raise RankFailed(rank, f"rank {rank} of {len(pipes)} {how} before it returned") from None
            if not good:
                raise RankFailed(rank, f"rank {rank} of {len(pipes)} raised:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank(
    function: Callable[..., Any],
    rank: int,
    world: int,
    arguments: tuple[Any, ...],
    meeting: str,
    threads: int,
    seconds: float,
    pipe: Connection,
    parent: int,
) -> None:
    _die_with(parent)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds),
        )
        message = (True, function(rank, world, *arguments))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        message = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(message))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere daemon processes end with it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)
