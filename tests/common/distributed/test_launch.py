"""Process groups start, answer, and leave nothing behind however they end."""

import os
import signal
import subprocess
import sys
import time
import traceback

import psutil
import pytest
import torch
import torch.distributed as dist

from common.distributed.launch import RankFailed, launch


def add_ranks(rank, world, base):
    total = torch.tensor([float(rank + base)])
    dist.all_reduce(total)
    return rank, total.item(), torch.get_num_threads()


def fail_on_one(rank, world):
    if rank == 1:
        raise ValueError("no such luck")
    time.sleep(60)


def die_on_one(rank, world):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def die_while_the_other_waits(rank, world):
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.recv(torch.zeros(1), 1)


def fail_while_the_other_waits(rank, world):
    if rank == 1:
        raise ValueError("no such luck")
    dist.recv(torch.zeros(1), 1)


def answer_with_a_function(rank, world):
    return lambda: rank


def listening_addresses(rank, world):
    """Where this process and its group listen."""
    dist.barrier()
    return [c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]


def sleep_long(rank, world):
    time.sleep(60)


def ranks_of(pid):
    """Processes that were forked for a group: the children of the fork server."""
    servers = [c for c in psutil.Process(pid).children() if "forkserver" in " ".join(c.cmdline())]
    return [child for server in servers for child in server.children()]


def children():
    return ranks_of(os.getpid())


def test_every_rank_answers_in_order():
    assert launch(add_ranks, 2, (10,), seconds=60) == [(0, 21.0, 1), (1, 21.0, 1)]
    assert not children()


@pytest.mark.parametrize(
    "work,message",
    [
        (fail_on_one, "rank 1 of 2 raised ValueError: no such luck"),
        (die_on_one, "rank 1 of 2 was killed by SIGKILL"),
        (die_while_the_other_waits, "rank 1 of 2 was killed by SIGKILL"),
        (fail_while_the_other_waits, "rank 1 of 2 raised ValueError: no such luck"),
    ],
)
def test_a_failing_rank_is_named_and_the_others_are_stopped(work, message):
    start = time.monotonic()
    with pytest.raises(RankFailed, match=f"(?s){message}") as failed:
        launch(work, 2, seconds=60)
    assert failed.value.rank == 1
    assert time.monotonic() - start < 40, "nobody waits for the sleeping rank"
    assert not children()


def test_a_failure_is_one_line_and_its_cause_is_the_whole_trace():
    with pytest.raises(RankFailed) as failed:
        launch(fail_on_one, 2, seconds=60)
    assert str(failed.value) == "rank 1 of 2 raised ValueError: no such luck"
    shown = "".join(traceback.format_exception(failed.value))
    assert "in fail_on_one" in shown and "Traceback" in str(failed.value.__cause__)


def test_an_answer_that_cannot_be_sent_is_an_error_of_its_rank():
    with pytest.raises(RankFailed, match=r"(?s)rank [01] of 2 raised .*pickle"):
        launch(answer_with_a_function, 2, seconds=60)


def test_a_group_listens_on_the_loopback_interface_alone():
    addresses = sum(launch(listening_addresses, 2, seconds=60), [])
    assert addresses and set(addresses) == {"127.0.0.1"}


def test_a_late_group_is_stopped():
    with pytest.raises(RankFailed, match="rank 0, 1 of 2 not finished after 8 s"):
        launch(sleep_long, 2, seconds=8)
    assert not children()


def test_ranks_die_with_a_killed_parent_and_leave_no_file_but_the_fork_servers_folder(tmp_path):
    code = (
        "from common.distributed.launch import launch; "
        "from tests.common.distributed.test_launch import sleep_long; launch(sleep_long, 2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)})
    try:
        ranks = []
        deadline = time.monotonic() + 30
        while len(ranks) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
            ranks = ranks_of(parent.pid)
        assert len(ranks) == 2
        time.sleep(0.5)
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    assert all(left.name.startswith("pymp-") for left in tmp_path.iterdir())
