"""Started processes outlive groups; groups restart; nothing outlives the fleet, however it ends."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from common.distributed.faults import Fault, Plan
from common.distributed.fleet import Fleet, RankFailed
from common.distributed.memory import Memory
from tests.common.distributed.test_launch import ranks_of


def keep(connection, nbytes):
    """Own a memory, tell its address, answer sums of its bytes until asked to end."""
    memory = Memory.make(nbytes)
    connection.send(memory.address)
    while connection.recv() == "sum":
        connection.send(int(np.frombuffer(memory.view, np.uint8).sum()))


def fill_then_die(rank, world, address, plan):
    """Each rank writes its half of the memory; a rank whose turn it is dies afterwards."""
    memory = Memory.open(address)
    half = memory.address.nbytes // world
    memory.view[rank * half : (rank + 1) * half] = bytes([rank + 1]) * half
    dist.barrier()
    plan.reached(rank, "filled")
    dist.barrier()
    return world


def count(rank, world, plan):
    total = torch.ones(1)
    plan.reached(rank, "here")
    dist.all_reduce(total)
    return int(total)


def echo(connection):
    while True:
        connection.send(connection.recv())


def sleep_with_memory(rank, world, address):
    Memory.open(address)
    time.sleep(60)


def segments():
    """Memories that some process still holds."""
    found = []
    for process in psutil.process_iter(["pid"]):
        try:
            folder = f"/proc/{process.pid}/fd"
            found += [
                f"{process.pid}/{fd}"
                for fd in os.listdir(folder)
                if "memfd:paperlab" in os.readlink(f"{folder}/{fd}")
            ]
        except OSError:
            continue
    return found


def test_a_keeper_and_its_memory_survive_the_killed_group():
    with Fleet() as fleet:
        keeper = fleet.start("keeper", keep, 1000)
        address = keeper.connection.recv()
        plan = Plan((Fault(0, "filled", "kill"), Fault(1, "filled", "kill")))
        with pytest.raises(RankFailed, match="was killed by SIGKILL") as failed:
            fleet.run(fill_then_die, 2, (address, plan), seconds=60)
        assert failed.value.died == (0, 1)
        assert keeper.alive
        keeper.connection.send("sum")
        assert keeper.connection.recv() == 500 * 1 + 500 * 2
    assert not keeper.alive and not ranks_of(os.getpid())


def test_a_killed_keeper_takes_its_memory_with_it():
    with Fleet() as fleet:
        keeper = fleet.start("keeper", keep, 1000)
        address = keeper.connection.recv()
        keeper.kill()
        assert not keeper.alive
        with pytest.raises(ProcessLookupError, match="is gone"):
            Memory.open(address)
        with pytest.raises(EOFError):
            keeper.connection.recv()


def test_a_group_restarts_smaller_and_the_failures_are_told():
    worlds = {0: 3, 1: 2}

    def plan(failures):
        attempt = len(failures)
        faults = (Fault(2, "here", "kill"),) if attempt == 0 else ()
        return worlds[attempt], (Plan(faults),)

    with Fleet() as fleet:
        results, failures = fleet.run_elastic(count, plan, restarts=1, seconds=60)
    assert results == [2, 2]
    assert [(one.rank, one.died) for one in failures] == [(2, (2,))]


def test_restarts_have_an_end():
    with Fleet() as fleet, pytest.raises(RankFailed, match="rank 0 of 1 was killed"):
        fleet.run_elastic(count, lambda _: (1, (Plan((Fault(0, "here", "kill"),)),)), restarts=2, seconds=60)


def test_an_exception_leaves_nothing():
    with pytest.raises(ZeroDivisionError), Fleet() as fleet:
        fleet.start("echo", echo)
        raise ZeroDivisionError
    assert not ranks_of(os.getpid())


NESTED = """
import sys, threading
from common.distributed.fleet import Fleet
from tests.common.distributed.test_fleet import keep, sleep_with_memory
with Fleet() as fleet:
    keeper = fleet.start("keeper", keep, 1 << 20)
    address = keeper.connection.recv()
    fleet.run(sleep_with_memory, 2, (address,), seconds=60)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "stopped rank"])
def test_no_process_memory_or_port_outlives_a_killed_caller(how, tmp_path):
    before = set(segments())
    caller = subprocess.Popen(
        [sys.executable, "-c", NESTED], env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL
    )
    try:
        deadline, forked = time.monotonic() + 40, []
        while time.monotonic() < deadline and (len(forked) < 3 or len(segments()) < len(before) + 3):
            time.sleep(0.1)
            forked = ranks_of(caller.pid)
        assert len(forked) == 3 and len(segments()) >= len(before) + 3
        if how == "stopped rank":
            forked[1].send_signal(signal.SIGSTOP)
        caller.send_signal(
            signal.SIGINT if how == "SIGINT" else signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL
        )
        caller.wait(20)
        if how == "stopped rank":  # whoever stopped it wakes it: a process that stands still can't end
            forked[1].send_signal(signal.SIGCONT)
    finally:
        caller.kill()
    _, alive = psutil.wait_procs(forked, timeout=10)
    assert not alive
    assert set(segments()) <= before
    listening = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert not listening & {process.pid for process in forked}


def test_a_failure_travels_with_what_it_knows():
    again = pickle.loads(pickle.dumps(RankFailed(1, "rank 1 of 2 died", (1,))))
    assert (again.rank, str(again), again.died) == (1, "rank 1 of 2 died", (1,))


def test_a_memory_has_bytes_and_can_be_closed_once_nobody_looks():
    with pytest.raises(ValueError, match="at least one byte"):
        Memory.make(0)
    memory = Memory.make(8)
    other = Memory.open(memory.address)
    other.view[3] = 7
    assert memory.view[3] == 7
    array = np.frombuffer(memory.view, np.uint8)
    with pytest.raises(BufferError):
        memory.close()
    del array
