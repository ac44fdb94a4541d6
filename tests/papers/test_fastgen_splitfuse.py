"""Dynamic SplitFuse against the step-by-step engine, a literal reading of MII's scheduler, and cases by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.serving.batch import Plan, Scheduler, Slot
from common.serving.clients import ClosedLoop
from common.serving.cluster import Replicas, RoundRobin
from common.serving.engine import Instance, simulate
from common.serving.latency import FittedLatency
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.fastgen.splitfuse import WHOLE, DynamicSplitFuse, SplitWithoutFuse
from tests.common.serving.reference import SteppedInstance
from tests.common.serving.test_engine import DYADIC, PLAIN, assert_same, capacities, dyadic_arrivals

POLICIES: dict[str, Scheduler] = {
    "splitfuse": DynamicSplitFuse(budget=16, max_sequences=6),
    "tiny budget": DynamicSplitFuse(budget=3, max_sequences=2),
    "whole prompts": DynamicSplitFuse(budget=WHOLE, max_sequences=6),
    "no fuse": SplitWithoutFuse(budget=16, max_sequences=6),
}


def serve(
    kind: type[Instance],
    policy: Scheduler,
    requests: Workload,
    memory: Callable[[], PagedMemory],
    clients: int = 0,
    latency: FittedLatency = DYADIC,
) -> Trace:
    instances: list[Instance] = []

    def build(loop: EventLoop) -> Replicas:
        instances.append(kind(loop, latency, memory(), policy, records_tokens=True))
        return Replicas(instances, RoundRobin())

    trace = simulate(requests, build, ClosedLoop(clients) if clients else None)
    for instance in instances:
        if isinstance(instance, SteppedInstance):
            instance.audit()
        assert instance.memory.free == instance.memory.capacity, "a finished request keeps blocks"
    return trace


@pytest.mark.parametrize("policy", POLICIES)
@given(workload=dyadic_arrivals, capacity=capacities, clients=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_coalesced_time_stamps_equal_the_stepped_ones(
    policy: str, workload: Workload, capacity: tuple[int, int, float], clients: int
) -> None:
    tokens, block, _ = capacity
    arguments = (POLICIES[policy], workload, lambda: PagedMemory(tokens, block, 0.0), clients)
    assert_same(serve(Instance, *arguments), serve(SteppedInstance, *arguments))


@given(workload=dyadic_arrivals, capacity=capacities, budget=st.integers(1, 40), sequences=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_no_pass_exceeds_budget_sequences_or_memory_and_every_token_comes_out(
    workload: Workload, capacity: tuple[int, int, float], budget: int, sequences: int
) -> None:
    tokens, block, _ = capacity
    watched = Watched(DynamicSplitFuse(budget, sequences))
    trace = serve(SteppedInstance, watched, workload, lambda: PagedMemory(tokens, block, 0.0))
    assert max(watched.sizes) <= budget
    assert max(watched.sequences) <= sequences
    assert [len(times) for times in trace.token_times] == workload.output.tolist()
    assert all(np.all(np.diff(times) > 0) for times in trace.token_times)


class Watched:
    """A policy that notes how many tokens and sequences each planned pass has, and which prompts."""

    head_only = True

    def __init__(self, policy: Scheduler) -> None:
        self.policy = policy
        self.sizes = [0]
        self.sequences = [0]
        self.passes: list[tuple[int, list[tuple[int, int]]]] = []  # decodes; (request, tokens) of each chunk

    def plan(self, slot: Slot) -> Plan:
        plan = self.policy.plan(slot)
        decodes = len(slot.group) if plan.decode else 0
        if plan.chunks or decodes:
            self.passes.append((decodes, [(sequence.index, tokens) for sequence, tokens in plan.chunks]))
            self.sizes.append(decodes + sum(tokens for _, tokens in plan.chunks))
            self.sequences.append(decodes + len(plan.chunks))
        return plan


def workload(*rows: tuple[float, int, int]) -> Workload:
    return Workload(*(np.array(column) for column in zip(*rows, strict=True)))


def passes(policy: Scheduler, requests: Workload, kv_tokens: int = 10_000, block: int = 16) -> list[object]:
    watched = Watched(policy)
    serve(SteppedInstance, watched, requests, lambda: PagedMemory(kv_tokens, block, 0.0), latency=PLAIN)
    return list(watched.passes)


def test_long_prompts_are_split_and_short_ones_fused_to_fill_the_budget_exactly() -> None:
    ran = passes(DynamicSplitFuse(budget=10), workload((0.0, 24, 3), (0.0, 3, 2), (0.0, 9, 1)))
    assert ran == [
        (0, [(0, 10)]),
        (0, [(0, 10)]),
        (0, [(0, 4), (1, 3), (2, 3)]),  # the remainder first, then two prompts, the last one split
        (2, [(2, 6)]),  # generation first, and counted: 2 + 6 of 10, with nothing else waiting
        (1, []),
    ]


def test_generation_is_counted_in_the_budget() -> None:
    ran = passes(DynamicSplitFuse(budget=4), workload((0.0, 2, 9), (0.0, 2, 9), (1.0, 8, 1)))
    assert ran[:2] == [(0, [(0, 2)]), (1, [(1, 2), (2, 1)])]
    assert ran[2:6] == [(2, [(2, 2)])] * 3 + [(2, [(2, 1)])]


def test_a_prompt_starts_only_when_all_of_it_fits_though_a_piece_would() -> None:
    # Four blocks of 4 tokens. The first request holds two of them, the second's prompt needs three.
    ran = passes(DynamicSplitFuse(budget=4), workload((0.0, 6, 2), (0.0, 10, 1)), kv_tokens=16, block=4)
    assert ran == [(0, [(0, 4)]), (0, [(0, 2)]), (1, []), (0, [(1, 4)]), (0, [(1, 4)]), (0, [(1, 2)])]


def test_where_nothing_can_run_the_last_request_with_kv_is_computed_again() -> None:
    # Four blocks of 4 tokens, two requests of 7 + 6 tokens. Both want a third block for their ninth token.
    requests = workload((0.0, 7, 6), (0.0, 7, 6))
    ran = passes(DynamicSplitFuse(budget=16), requests, kv_tokens=16, block=4)
    assert ran == [
        (0, [(0, 7)]),
        (1, [(1, 7)]),  # request 0 stores its eighth token
        (1, []),  # and stalls, for no third block is free, while request 1 stores its eighth
        # both stall: request 1 is evicted, and its 7 + 2 tokens need three blocks, which it finds when 0 has ended
        (0, [(0, 1)]),
        (1, []),
        (1, []),
        (1, []),
        (0, [(1, 9)]),
        (1, []),
        (1, []),
        (1, []),
    ]
    trace = serve(Instance, DynamicSplitFuse(16), requests, lambda: PagedMemory(16, 4, 0.0))
    assert trace.preemptions.tolist() == [0, 1]


def test_without_fuse_a_pass_is_a_piece_of_one_prompt_or_generation() -> None:
    ran = passes(SplitWithoutFuse(budget=10), workload((0.0, 14, 2), (0.0, 3, 2)))
    assert ran == [(0, [(0, 10)]), (0, [(0, 4)]), (0, [(1, 3)]), (2, [])]


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="room for a token and a sequence"):
        DynamicSplitFuse(budget=0)
