"""Processes of this machine that outlive one another, but not the fleet they belong to.

    with Fleet() as fleet:
        keeper = fleet.start("keeper 0", keep, 1 << 20)              # keep(connection, nbytes) in a process of its own
        address = keeper.connection.recv()
        losses = fleet.run(train, world=4, arguments=(address,), seconds=60)   # train(rank, world, address), over gloo

A group of ranks ends as a whole: when one dies, raises or is late, all of them are stopped, while started processes go
on. However a fleet ends (normally, by an exception, or because the process that made it was killed), no process, port
or shared memory of it stays behind. On Linux processes are forked from Python's fork server, which has imported torch;
after a SIGKILL of the caller the empty temporary folder of that server (pymp-*) is all that remains.
"""

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

SECONDS_TO_END = 5.0  # that processes are given to go after SIGKILL
SECONDS_TO_BLAME = 0.5  # that others are given to fail too, when one has: the first failure caused the rest
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
Plan = Callable[
    ["tuple[RankFailed, ...]"], tuple[int, tuple[Any, ...]]
]  # failures so far -> world, arguments


class RankFailed(RuntimeError):
    """A rank raised, died or was late; the message names it, in the last line of its error; the cause is its Trace.

    rank: the first one to fail (None: time-out). died: all ranks whose process ended before it answered, by itself.
    """

    def __init__(self, rank: int | None, message: str, died: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rank = rank
        self.died = died

    def __reduce__(self) -> tuple:
        return type(self), (self.rank, str(self), self.died)


class Trace(Exception):
    """The whole trace of an error in another process: the cause of a RankFailed, shown where traces are."""

    def __str__(self) -> str:
        return f"in that process:\n{self.args[0]}"


class Started:
    """A process of a fleet, and the caller's end of its connection."""

    def __init__(self, name: str, process: Any, connection: Connection) -> None:
        self.name, self.process, self.connection = name, process, connection

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.join(SECONDS_TO_END)


class Fleet:
    """Starts processes and groups; a context manager at whose end all are gone."""

    def __init__(self) -> None:
        self._context: Any = multiprocessing.get_context(METHOD)
        if (
            METHOD == "forkserver"
        ):  # has no effect on a server that runs, such as the lab's, which has more in it
            self._context.set_forkserver_preload(["torch", "torch.distributed"])
        self._started: list[Started] = []

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, name: str, function: Callable[..., Any], *arguments: Any) -> Started:
        """Run function(connection, *arguments), of a module, in a process that no group takes down with it.

        An exception there is printed and ends that process, as its return does; the connection is closed then.
        """
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_alone, args=(function, theirs, arguments), name=name, daemon=True
        )
        process.start()
        theirs.close()
        started = Started(name, process, ours)
        self._started.append(started)
        return started

    def run(
        self,
        function: Callable[..., Any],
        world: int,
        arguments: tuple[Any, ...] = (),
        seconds: float = 300.0,
        threads: int = 1,
    ) -> list[Any]:
        """What function(rank, world, *arguments) returned on each rank of a new gloo group, in the order of ranks.

        function and arguments must be picklable (a function of a module), and so must be what it returns. seconds:
        after which everything is stopped. threads: torch threads of each process. Raises RankFailed naming the rank
        that died or raised first, or the ranks that were still at work at the time-out.
        """
        pipes: list[Connection] = []
        processes: list[Any] = []
        with socket.create_server(("127.0.0.1", 0), backlog=world) as meeting:
            port = meeting.getsockname()[1]
            try:
                for rank in range(world):
                    ours, theirs = self._context.Pipe(duplex=False)
                    call = (function, rank, world, arguments)
                    server = meeting if rank == 0 else None
                    process = self._context.Process(
                        target=_rank, args=(call, port, server, threads, seconds, theirs), daemon=True
                    )
                    process.start()
                    theirs.close()
                    pipes.append(ours)
                    processes.append(process)
                return _collect(pipes, processes, seconds)
            finally:
                _end(processes)
                for pipe in pipes:
                    pipe.close()

    def run_elastic(
        self,
        function: Callable[..., Any],
        plan: Plan,
        restarts: int = 3,
        seconds: float = 300.0,
        threads: int = 1,
    ) -> tuple[list[Any], tuple[RankFailed, ...]]:
        """`run`, and again with a new group when a rank fails; the results, and the failures before them.

        plan: asked before each attempt, with the failures so far, for (world, arguments) of it; the place to start
        what was lost with them. RankFailed when as many restarts as allowed did not help; seconds are those of each.
        """
        failures: list[RankFailed] = []
        while True:
            world, arguments = plan(tuple(failures))
            try:
                return self.run(function, world, arguments, seconds, threads), tuple(failures)
            except RankFailed as failure:
                if len(failures) == restarts:
                    raise
                failures.append(failure)

    def close(self) -> None:
        """Kill whatever still runs."""
        _end([one.process for one in self._started])
        for one in self._started:
            one.connection.close()
        self._started.clear()


def _end(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join(SECONDS_TO_END)


def _collect(pipes: list[Connection], processes: list[Any], seconds: float) -> list[Any]:
    deadline = time.monotonic() + seconds
    results: dict[int, Any] = {}
    failures: list[tuple[float, int, str]] = []  # when, which rank, how
    traces: dict[int, str] = {}
    died: list[int] = []
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
                )  # of our own child, over our own pipe
            except EOFError:
                failures.append(
                    (0.0, rank, _how_it_died(processes[rank]))
                )  # nobody dies of another's failure
                died.append(rank)
                continue
            if good:
                results[rank] = value
            else:
                line, traces[rank] = value
                failures.append((at, rank, f"raised {line}"))
        if failures:
            deadline = min(deadline, time.monotonic() + SECONDS_TO_BLAME)
    if failures:
        _, rank, how = min(failures)
        failure = RankFailed(rank, f"rank {rank} of {len(pipes)} {how}", tuple(sorted(died)))
        raise failure from (Trace(traces[rank]) if rank in traces else None)
    return [results[rank] for rank in range(len(pipes))]


def _how_it_died(process: Any) -> str:
    process.join(SECONDS_TO_END)
    code = process.exitcode
    if code and code < 0:
        return f"was killed by {signal.Signals(-code).name} before it returned"
    return f"exited with {code} before it returned"


def _alone(function: Callable[..., Any], connection: Connection, arguments: tuple[Any, ...]) -> None:
    _end_with_the_caller()
    _torch_threads(1)
    with connection:
        function(connection, *arguments)


def _rank(
    call: tuple[Callable[..., Any], int, int, tuple[Any, ...]],
    port: int,
    server: socket.socket | None,
    threads: int,
    seconds: float,
    pipe: Connection,
) -> None:
    _end_with_the_caller()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    import torch.distributed as dist

    _torch_threads(threads)
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
    except BaseException as error:
        told = "".join(traceback.format_exception_only(error)).strip(), traceback.format_exc()
        message = pickle.dumps((False, told, time.monotonic()))
    pipe.send_bytes(message)
    if (
        dist.is_initialized()
    ):  # after a failure: where processes are not forked, its threads would abort this one
        dist.destroy_process_group()


def _torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _end_with_the_caller() -> None:
    """Have a thread end this process when the one that asked for it is gone, however that went."""
    caller = multiprocessing.parent_process()
    assert caller is not None

    def watch() -> None:
        wait([caller.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="ends with the caller").start()
