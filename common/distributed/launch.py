"""Run one function in several real processes that form a gloo process group on this machine.

    results = launch(work, world=2, arguments=(config,), seconds=60)   # work(rank, world, *arguments)

The group meets at a port of the loopback interface that the caller opens and the kernel closes. However a run ends (a
result, an exception, a killed rank, a time-out, or the death of the calling process), no process and no port of it
stays behind, and it writes no file.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

PR_SET_PDEATHSIG = 1  # of prctl(2)
SECONDS_TO_END = 5.0  # that processes are given to go after SIGKILL
SECONDS_TO_BLAME = 0.5  # that others are given to fail too, when one has: the first failure caused the rest


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

    function and arguments must be picklable (a function of a module), and so must be what it returns. seconds: after
    which everything is stopped. threads: torch threads of each process. Raises RankFailed naming the rank that died or
    raised first, or the ranks that were still at work at the time-out.
    """
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[Any] = []
    with socket.create_server(("127.0.0.1", 0), backlog=world) as meeting:
        port = meeting.getsockname()[1]
        try:
            for rank in range(world):
                ours, theirs = context.Pipe(duplex=False)
                call = (function, rank, world, arguments)
                server = meeting if rank == 0 else None
                process = context.Process(
                    target=_rank,
                    args=(call, port, server, threads, seconds, theirs, os.getpid()),
                    daemon=True,
                )
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            return _collect(pipes, processes, seconds)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
            for process in processes:
                process.join(SECONDS_TO_END)
            for pipe in pipes:
                pipe.close()


def _collect(pipes: list[Connection], processes: list[Any], seconds: float) -> list[Any]:
    deadline = time.monotonic() + seconds
    results: dict[int, Any] = {}
    failures: list[tuple[float, int, str]] = []  # when, which rank, how
    while len(results) + len(failures) < len(pipes):
        answered = results.keys() | {rank for _, rank, _ in failures}
        open_ranks = [rank for rank in range(len(pipes)) if rank not in answered]
        ready = wait([pipes[rank] for rank in open_ranks], max(0.0, deadline - time.monotonic()))
        if not ready and failures:
            break
        if not ready:
            late = ", ".join(map(str, open_ranks))
            raise RankFailed(
                None, f"rank {late} of {len(pipes)} not finished after {seconds:g} s; all were stopped"
            )
        for rank in open_ranks:
            if pipes[rank] not in ready:
                continue
            try:
                good, value, at = pickle.loads(
                    pipes[rank].recv_bytes()
                )  # from our own child, over our own pipe
            except EOFError:
                failures.append(
                    (0.0, rank, _how_it_died(processes[rank]))
                )  # nobody dies of another's failure
                continue
            if good:
                results[rank] = value
            else:
                failures.append((at, rank, f"raised:\n{value}"))
        if failures:
            deadline = min(deadline, time.monotonic() + SECONDS_TO_BLAME)
    if failures:
        _, rank, how = min(failures)
        raise RankFailed(rank, f"rank {rank} of {len(pipes)} {how}")
    return [results[rank] for rank in range(len(pipes))]


def _how_it_died(process: Any) -> str:
    process.join(SECONDS_TO_END)
    code = process.exitcode
    if code and code < 0:
        return f"was killed by {signal.Signals(-code).name} before it returned"
    return f"exited with {code} before it returned"


def _rank(
    call: tuple[Callable[..., Any], int, int, tuple[Any, ...]],
    port: int,
    server: socket.socket | None,
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
    function, rank, world, arguments = call
    limit = timedelta(seconds=seconds)
    try:
        store = dist.TCPStore(
            "127.0.0.1",
            port,
            world,
            is_master=server is not None,
            timeout=limit,
            master_listen_fd=server.detach() if server else None,  # else it would listen on every interface
        )
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
        result = function(rank, world, *arguments)
        dist.barrier()
        dist.destroy_process_group()
        message = pickle.dumps((True, result, time.monotonic()))
    except BaseException:
        message = pickle.dumps((False, traceback.format_exc(), time.monotonic()))
    pipe.send_bytes(message)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere daemon processes end with it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)
