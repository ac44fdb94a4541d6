"""A plan strikes the rank, the place and the turn that it names, and nothing else."""

import pickle
import time

import psutil
import pytest
import torch
import torch.distributed as dist

from common.distributed.faults import Fault, Plan
from common.distributed.launch import RankFailed, launch


def visit(rank, world, plan, visits):
    """Seconds of each visit to the place; all ranks meet after each."""
    spent = []
    for _ in range(visits):
        begun = time.monotonic()
        plan.reached(rank, "here")
        spent.append(time.monotonic() - begun)
        dist.all_reduce(torch.ones(1))
    return spent


def test_a_rank_is_killed_at_its_turn():
    with pytest.raises(RankFailed, match="rank 1 of 2 was killed by SIGKILL"):
        launch(visit, 2, (Plan((Fault(1, "here", "kill", turn=3),)), 5), seconds=60)


def test_a_plan_that_names_another_place_or_a_later_turn_does_nothing():
    plan = Plan((Fault(1, "elsewhere", "kill"), Fault(0, "here", "kill", turn=4)))
    spent = launch(visit, 2, (plan, 3), seconds=60)
    assert len(spent) == 2 and max(max(each) for each in spent) < 0.2
    assert plan.unmet(["here"]) == [plan.faults[0]]


def test_a_stopped_rank_goes_on_and_a_slow_one_stays_slow():
    plan = Plan(
        (Fault(0, "here", "stop", turn=1, seconds=0.6), Fault(1, "here", "slow", turn=2, seconds=0.3))
    )
    stopped, slow = launch(visit, 2, (plan, 3), seconds=60)
    assert stopped[0] >= 0.5 and max(stopped[1:]) < 0.2
    assert slow[0] < 0.2 and min(slow[1:]) >= 0.3
    wakers = [
        p for p in psutil.process_iter(["cmdline"]) if "kill -CONT" in " ".join(p.info["cmdline"] or ())
    ]
    assert not wakers


def test_a_lost_link_fails_the_rank_that_waits_for_it():
    with pytest.raises(RankFailed, match="raised"):
        launch(visit, 2, (Plan((Fault(1, "here", "cut", turn=2),)), 3), seconds=30)


def test_a_plan_travels_to_other_processes_and_counts_for_itself():
    plan = pickle.loads(pickle.dumps(Plan((Fault(0, "here", "slow", turn=2, seconds=0.0),))))
    plan.reached(0, "here")
    plan.reached(1, "here")
    assert plan.turns == {(0, "here"): 1, (1, "here"): 1}


@pytest.mark.parametrize("changed", [{"kind": "explode"}, {"turn": 0}, {"seconds": -1.0}])
def test_faults_that_cannot_be_are_refused(changed):
    with pytest.raises(ValueError):
        Fault(**{"rank": 0, "at": "here", "kind": "kill"} | changed)
