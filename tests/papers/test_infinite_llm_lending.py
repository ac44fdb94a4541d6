"""Loans between simulated instances: the coalesced engine against a stepped one, and plans against all there are."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.serving.cluster import Replicas, RoundRobin
from common.serving.engine import simulate
from common.serving.sequence import Sequence
from common.serving.workload import Workload
from papers.infinite_llm.lending import Lender, Lending
from papers.infinite_llm.planning import (
    Exchange,
    LendingLatency,
    Rules,
    Standing,
    Waiting,
    Wire,
    lent,
    move,
    placement,
    plan_loans,
    spare,
    speed,
)
from tests.common.serving.reference import SteppedInstance
from tests.common.serving.test_engine import DYADIC, assert_same

EXCHANGE = Exchange(
    2, 1.0, 8.0, Wire(64.0, 1 / 512), Wire(8.0, 1 / 128)
)  # dyadic, so that ties are ties in both engines
RULES = Rules(period=0.5, batch=6, busy=1.0, most_lent=0.75, heads=4, moved_per_step=64)


class SteppedLender(SteppedInstance, Lender):
    """A lender that computes one iteration at a time, and counts its blocks from scratch."""


def cluster(loop, lender, capacity, instances, rules, kept):
    """Instances in nodes of two, each a little slower than the one before.

    Where iterations of two instances ended at the same instant, a loan that ends with one of them could reach the other
    before or after its boundary: the engines may order ties of different instances differently.
    """
    made = []
    for name in range(instances):
        slower = replace(DYADIC, host_seconds=DYADIC.host_seconds + name * math.pi / 1000)
        made.append(lender(loop, name, name // 2, LendingLatency(slower, True), capacity))
    kept.append((Lending(loop, made, rules, EXCHANGE, 1024.0), made))
    return Replicas(made, RoundRobin())


def requests_that_fit(drawn, capacity, instances):
    """Prompts up to what the cluster holds together, some of them more than an instance does."""
    alone = capacity // 16
    together = (alone + (instances - 1) * int(RULES.most_lent * alone)) * 16 - 64
    arrival = np.sort(np.array([at / 16 for at, _, _ in drawn]))
    prompt = np.array([1 + round(share * min(together - 80, 3 * capacity)) for _, share, _ in drawn])
    return Workload(arrival, prompt, np.array([output for _, _, output in drawn]))


requests = st.lists(
    st.tuples(st.integers(0, 200), st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.4, 0.9]), st.integers(1, 60)),
    min_size=1,
    max_size=24,
)


@given(
    drawn=requests,
    capacity=st.integers(200, 600),
    instances=st.integers(2, 4),
    cancels=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_time_stamps_equal_the_stepped_ones_and_every_block_comes_back(drawn, capacity, instances, cancels):
    workload = requests_that_fit(drawn, capacity, instances)
    rules = replace(RULES, cancels=cancels)
    traces, kept = [], []
    for lender in (Lender, SteppedLender):
        traces.append(
            simulate(
                workload, lambda loop, kind=lender: cluster(loop, kind, capacity, instances, rules, kept)
            )
        )
    assert_same(*traces)
    (fast, _), (slow, _) = kept
    for counted in (
        "loans",
        "refused",
        "dropped",
        "moved_blocks",
        "placed_blocks",
        "cancelled",
        "remote_share",
    ):
        assert getattr(fast, counted) == getattr(slow, counted), counted
    for book, made in kept:
        assert not book.gathering
        for one in made:
            assert one.memory.free == one.manager.blocks and not one.manager.lent and not one.manager.borrowed
            assert not one.loans and not one.parts and one.near == one.far == 0
            assert one.times.remote == one.times.hosted == 0 and one.times.exchange_seconds == 0.0


def test_all_kinds_of_loans_are_made_in_such_workloads():
    """The test above would be empty if nothing was ever moved, placed, refused, dropped and cancelled."""
    rng = np.random.default_rng(0)
    kept = []
    shares = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.9])
    for _ in range(3):
        drawn = [
            (int(at), float(share), int(output))
            for at, share, output in zip(
                rng.integers(0, 100, 40), rng.choice(shares, 40), rng.integers(1, 60, 40), strict=True
            )
        ]
        workload = requests_that_fit(drawn, 400, 4)
        simulate(workload, lambda loop: cluster(loop, Lender, 400, 4, RULES, kept))
    for counted in ("moved_blocks", "placed_blocks", "refused", "dropped", "cancelled"):
        assert sum(getattr(book, counted) for book, _ in kept) > 0, counted
    assert any(book.remote_share and max(book.remote_share) > 0 for book, _ in kept)


def test_a_request_beyond_the_cluster_is_refused():
    with pytest.raises(ValueError, match="does not fit the cluster"):
        simulate(
            Workload(np.zeros(1), np.array([2000]), np.array([5])),
            lambda loop: cluster(loop, Lender, 400, 2, RULES, []),
        )


# Plans

FLAT = (1 / 16, 2.0**-20, 2.0**-12)  # reading the weights takes nearly all of an iteration
WEIGHTS = replace(DYADIC, decode_small=FLAT, decode_large=FLAT, host_seconds_per_token=2.0**-22)
CHEAP = Exchange(2, 1.0, 2.0**-12, Wire(2.0**20, 2.0**-16), Wire(2.0**16, 2.0**-12))


def standing(name, node=0, **changes):
    usual = {
        "times": WEIGHTS,
        "blocks": 100,
        "free": 50,
        "lent": 0,
        "lends": True,
        "decodes": 2,
        "context": 400,
        "remote": 0,
        "hosted": 0,
    }
    return Standing(name, node, **{**usual, **changes})


def waiting(index, blocks):
    return Waiting(Sequence(index, 0.0, blocks * 16, 10), blocks, blocks * 16)


def test_a_request_that_lacks_room_is_placed_at_a_neighbour_with_some():
    debtor = standing(0, free=10, waiting=(waiting(0, 30),))
    (plan,) = plan_loans({0: debtor, 1: standing(1)}, Rules(), CHEAP)
    assert plan[:2] == (0, 1) and plan.blocks == 20 and not plan.moves


@pytest.mark.parametrize(
    "why",
    [
        {"lends": False},
        {"free": 19 + 20},  # of 100 blocks it keeps 20
        {"lent": 65},
        {"hosted": 10**6, "decodes": 60},  # nothing wrong with it: the control
    ],
)
def test_who_has_no_room_or_needs_it_lends_none(why):
    debtor = standing(0, free=10, waiting=(waiting(0, 30),))
    plans = plan_loans({0: debtor, 1: standing(1, **why)}, Rules(), CHEAP)
    assert bool(plans) == ("hosted" in why)


def test_a_large_batch_borrows_no_more():
    for decodes, borrows in ((31, True), (32, False)):
        debtor = standing(0, free=10, waiting=(waiting(0, 30),), decodes=decodes)
        assert bool(plan_loans({0: debtor, 1: standing(1)}, Rules(batch=32), CHEAP)) == borrows


def test_a_wire_that_costs_more_than_is_gained_is_not_used():
    slow = Exchange(2, 1.0, 0.0, CHEAP.within, Wire(8.0, 10.0))
    debtor = standing(0, free=10, waiting=(waiting(0, 30),))
    assert not plan_loans({0: debtor, 1: standing(1, node=1)}, Rules(), slow)
    assert plan_loans({0: debtor, 1: standing(1, node=0)}, Rules(), slow)


def test_a_prompt_is_not_placed_over_a_wire_that_carries_it_slower_than_it_is_computed():
    debtor = standing(0, free=10, waiting=(waiting(0, 30),))
    far = {0: debtor, 1: standing(1, node=1)}
    computing = WEIGHTS.iteration([(30 * 16, 0)], 0, 0)[0]
    for share, plans in ((0.99, 1), (1.01, 0)):
        block = share * computing * CHEAP.across.bytes_per_s / 20
        assert len(plan_loans(far, Rules(), replace(CHEAP, block_bytes=block))) == plans
    prefilled = replace(CHEAP, block_bytes=1e9)
    assert plan_loans(far | {0: debtor._replace(prompts_cost=False)}, Rules(), prefilled)


loads = st.tuples(st.integers(0, 80), st.integers(0, 20), st.integers(1, 3000), st.integers(0, 60))


@given(st.lists(loads, min_size=2, max_size=3), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_a_loan_is_the_best_of_all_that_are_allowed(drawn, head):
    """Against an exhaustive search, where every size is tried and no creditor is left out."""
    known = {}
    for name, (free, decodes, context, movable) in enumerate(drawn):
        longest = Sequence(100 + name, 0.0, 5000, 10) if decodes else None
        known[name] = standing(
            name,
            free=free,
            decodes=decodes,
            context=context,
            longest=longest,
            movable=movable if decodes else 0,
            waiting=(waiting(name, head),) if name == 0 and free < head else (),
        )
    rules = Rules(pieces=60, period=1e9)
    debtor = known[0]
    gains: dict[tuple[bool, int, int], float] = {}
    for creditor, blocks, moves in product(list(known.values())[1:], range(1, 61), (True, False)):
        room = spare(creditor, rules)
        waits = bool(debtor.waiting) and blocks == head - debtor.free
        if blocks <= room and (blocks <= debtor.movable if moves else waits):
            after = lent(debtor, creditor, blocks, of_longest=moves)
            gain = sum(speed(one, CHEAP) for one in after)
            gains[moves, creditor.name, blocks] = gain - speed(debtor, CHEAP) - speed(creditor, CHEAP)
    for planner, moves in ((placement, False), (move, True)):
        best = max((gain for (kind, *_), gain in gains.items() if kind == moves), default=0.0)
        found = planner(debtor, known, rules, CHEAP)
        assert (found is not None) == (best > 0)
        if found is not None:
            plan = found[0]
            assert plan.moves == moves
            assert gains[moves, plan.creditor, plan.blocks] == pytest.approx(best)


def test_no_more_leaves_a_request_in_a_round_than_its_steps_carry():
    longest = Sequence(9, 0.0, 50_000, 10)
    attends = replace(WEIGHTS, decode_small=(1 / 16, 2.0**-16, 2.0**-12))
    debtor = standing(0, times=attends, blocks=5000, movable=2000, longest=longest, decodes=1, context=50_000)
    creditor = standing(1, times=attends, blocks=5000, free=4000, decodes=0, context=0)
    steps = 8.0 * speed(debtor, CHEAP)
    for tokens in (16, 32):
        rules = Rules(period=8.0, moved_per_step=tokens)
        (plan,) = plan_loans({0: debtor, 1: creditor}, rules, CHEAP)
        assert plan.moves and plan.blocks == int(steps * tokens / 16) > 1
