"""Closed loops, conversations, boundaries between iterations and periodic calls."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.serving.batch import Plan, Slot
from common.serving.clients import ClosedLoop, Sessions
from common.serving.engine import Instance, simulate
from common.serving.latency import a100_latency
from common.serving.loop import COPY, QUIET_TICKS
from common.serving.memory import PagedMemory, ReservedMemory
from common.serving.schedulers import ChunkedPrefill, IterationLevel, PrefillFirst
from common.serving.workload import Workload
from tests.common.serving.reference import SteppedInstance
from tests.common.serving.test_engine import PLAIN, assert_same, requests, workload

LATENCY = a100_latency("vllm", "opt-13b", 1)
POLICIES = {
    "iteration-level": IterationLevel(max_sequences=6),
    "prefill-first": PrefillFirst(max_tokens=64, max_sequences=6),
    "chunked": ChunkedPrefill(budget=16, max_sequences=6),
}
streams = requests(st.floats(0, 20, allow_nan=False))


def serve(instance_type, policy, requests_, clients, between=None, period=0.37):
    """Serve on one instance; `between(instance)`, if given, is called at iteration boundaries, every `period`."""

    def build(loop):
        instance = instance_type(
            loop, LATENCY, PagedMemory(300, 16), policy, host_blocks=50, records_tokens=True
        )
        if between is not None:
            loop.every(period, COPY, lambda: instance.at_boundary(lambda: between(instance)))
        return instance

    return simulate(requests_, build, clients)


def serve_plainly(requests_, clients, kv_tokens=1000):
    build = lambda loop: Instance(loop, PLAIN, PagedMemory(kv_tokens), PrefillFirst())  # noqa: E731
    return simulate(requests_, build, clients)


def test_a_closed_loop_sends_the_next_request_when_one_ends():
    trace = serve_plainly(workload(*[(0.0, 10, 4)] * 5), ClosedLoop(1))
    seconds = (2 + 10) + 3
    assert trace.arrival.tolist() == [0, seconds, 2 * seconds, 3 * seconds, 4 * seconds]
    assert trace.finish.tolist() == (trace.arrival + seconds).tolist()


@given(requests_=streams, clients=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_a_closed_loop_never_holds_more_requests_than_clients_and_serves_them_all(requests_, clients):
    trace = serve_plainly(requests_, ClosedLoop(clients))
    held = [int(np.sum((trace.arrival <= at) & (trace.finish > at))) for at in trace.arrival]
    assert max(held) <= clients
    assert np.all(trace.finish > trace.arrival)


def test_the_next_turn_of_a_conversation_arrives_after_the_time_to_think():
    requests_ = workload((1.0, 10, 4), (1.0, 5, 2), (1.0, 8, 1), (100.0, 7, 1))
    trace = serve_plainly(requests_, Sessions(np.array([0, 0, 0, 1]), np.array([9.0, 2.5, 4.0, 0.0])))
    assert trace.arrival[0] == 1 and trace.arrival[3] == 100
    assert trace.arrival[1] == trace.finish[0] + 2.5
    assert trace.arrival[2] == trace.finish[1] + 4.0


def test_sessions_that_do_not_fit_the_workload_are_refused():
    with pytest.raises(ValueError, match="2 turns do not describe a workload of 1 requests"):
        serve_plainly(workload((0.0, 1, 1)), Sessions(np.array([0, 0]), np.zeros(2)))
    with pytest.raises(ValueError, match="non-negative"):
        Sessions(np.array([0]), np.array([-1.0]))
    with pytest.raises(ValueError, match="at least one client"):
        ClosedLoop(0)


@pytest.mark.parametrize("policy", POLICIES)
@given(requests_=streams, clients=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_a_closed_loop_gives_the_same_time_stamps_coalesced_and_stepped(policy, requests_, clients):
    assert_same(
        serve(Instance, POLICIES[policy], requests_, ClosedLoop(clients)),
        serve(SteppedInstance, POLICIES[policy], requests_, ClosedLoop(clients)),
    )


def preempt_last(instance):
    group = instance.slots[0].group
    if len(group) > 1:
        instance.slots[0].preempt(group.last(), swap=False)


@pytest.mark.parametrize("policy", POLICIES)
@given(requests_=streams)
@settings(max_examples=30, deadline=None)
def test_changes_at_boundaries_give_the_same_time_stamps_coalesced_and_stepped(policy, requests_):
    assert_same(
        serve(Instance, POLICIES[policy], requests_, None, preempt_last, period=3.3),
        serve(SteppedInstance, POLICIES[policy], requests_, None, preempt_last, period=3.3),
    )


def test_a_boundary_lies_between_iterations_and_comes_at_once_when_nothing_runs():
    seen = []

    def build(loop):
        instance = Instance(loop, PLAIN, PagedMemory(1000), PrefillFirst())
        for at in (5.0, 14.5, 50.0):
            loop.at(at, COPY, lambda _: instance.at_boundary(lambda: seen.append(loop.now)))
        return instance

    simulate(workload((0.0, 10, 8)), build)  # prefill until 12, then a token a second until 19
    assert seen == [12.0, 15.0, 50.0]


@dataclass
class AskedOften:
    """Decodes what it admits, and wants to be asked again after a number of iterations."""

    steps: int | None
    head_only: bool = True
    asked: int = 0

    def plan(self, slot: Slot) -> Plan:
        self.asked += 1
        plan = PrefillFirst().plan(slot)
        return Plan(plan.chunks, plan.decode, plan.steady, self.steps)


def test_a_plan_stands_for_as_many_iterations_as_it_says():
    traces = {}
    for steps in (None, 7):
        policy = AskedOften(steps)
        traces[steps] = simulate(
            workload((0.0, 10, 71)),
            lambda loop, policy=policy: Instance(loop, PLAIN, PagedMemory(1000), policy, records_tokens=True),
        )
        # the prompt, each stretch of 70 decode iterations, and the look at an empty instance
        assert policy.asked == 1 + (1 if steps is None else 10) + 1
    assert_same(traces[None], traces[7])


def test_periodic_calls_end_with_the_requests():
    ticks = []

    def build(loop):
        loop.every(4.0, COPY, lambda: ticks.append(loop.now))
        return Instance(loop, PLAIN, PagedMemory(1000), PrefillFirst())

    trace = simulate(workload((0.0, 10, 4), (30.0, 1, 1)), build)
    assert ticks == [4.0 * n for n in range(1, 10)] and trace.finish.max() == 33.0


def test_a_stall_is_noticed_although_periodic_calls_go_on():
    @dataclass(frozen=True)
    class Nothing:
        head_only: bool = True

        def plan(self, slot):
            return Plan([], False)

    ticks = []

    def build(loop):
        loop.every(1.0, COPY, lambda: ticks.append(loop.now))
        loop.every(2.0, COPY, lambda: None)
        return Instance(loop, PLAIN, PagedMemory(1000), Nothing())

    with pytest.raises(RuntimeError, match="stalled with 1 of 1"):
        simulate(workload((0.0, 10, 4)), build)
    assert len(ticks) <= QUIET_TICKS


def test_a_period_must_be_positive():
    with pytest.raises(ValueError, match="positive seconds"):
        simulate(workload((0.0, 1, 1)), lambda loop: loop.every(0.0, COPY, lambda: None))


def test_scheduling_delay_counts_until_the_first_chunk_begins():
    trace = serve_plainly(workload((0.0, 10, 1), (3.0, 5, 1)), None)
    assert trace.started.tolist() == [0.0, 12.0]
    assert trace.scheduling_delay.tolist() == [0.0, 9.0]


def test_a_named_sequence_is_admitted_before_the_head_of_the_queue():
    @dataclass(frozen=True)
    class HighestPriority:
        head_only: bool = False

        def plan(self, slot):
            if slot.size or not slot.instance.waiting:
                return Plan([], True)
            chosen = slot.admit(max(slot.instance.waiting, key=lambda one: one.priority))
            return Plan([(chosen, chosen.goal)], False)

    class Prioritised(Instance):
        def submit(self, sequence):
            sequence.priority = sequence.index
            super().submit(sequence)

    trace = simulate(
        workload((0.0, 10, 1), (1.0, 10, 1), (2.0, 10, 1)),
        lambda loop: Prioritised(loop, PLAIN, PagedMemory(1000), HighestPriority()),
    )
    assert trace.finish.tolist() == [12.0, 36.0, 24.0]


def test_memory_can_reserve_the_longest_sequence_for_everyone():
    requests_ = workload((0.0, 10, 5), (0.0, 10, 5))

    def build(longest):
        memory = ReservedMemory(100, 1, longest)
        return lambda loop: Instance(loop, PLAIN, memory, IterationLevel())

    together = simulate(requests_, build(50))
    assert together.started[1] < together.finish[0]
    one_by_one = simulate(requests_, build(51))
    assert one_by_one.started[1] == one_by_one.finish[0]
    with pytest.raises(ValueError, match="exceeds the 14 reserved"):
        simulate(requests_, build(14))
    with pytest.raises(ValueError, match="101 reserved tokens never fit"):
        simulate(requests_, build(101))


def test_a_closed_loop_can_be_used_again():
    clients = ClosedLoop(2)
    requests_ = Workload(np.zeros(6), np.full(6, 10), np.full(6, 3))
    assert_same(serve_plainly(requests_, clients), serve_plainly(requests_, clients))


def test_the_stages_of_a_pipeline_are_busy_or_in_a_bubble():
    from dataclasses import replace

    instances = []

    def build(loop):
        instances.append(
            Instance(loop, replace(PLAIN, stages=2), PagedMemory(1000), PrefillFirst(max_tokens=10))
        )
        return instances[0]

    simulate(workload((0.0, 10, 1), (0.0, 10, 1), (100.0, 10, 1)), build)
    (pipe,) = instances
    first, later = replace(PLAIN, stages=2).iteration([(10, 0)], 0, 0)
    assert pipe.stage_busy == [3 * first, 3 * later]
    assert pipe.active_seconds == pytest.approx((first + max(first, later) + later) + (first + later))
