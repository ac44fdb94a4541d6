"""The coalesced engine against the step-by-step one, and against cases that can be done by hand."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.serving.cluster import LeastLoad, Replicas, RoundRobin
from common.serving.engine import Instance, simulate
from common.serving.latency import FittedLatency, Line, a100_latency
from common.serving.memory import PagedMemory, ReservedMemory
from common.serving.schedulers import ChunkedPrefill, IterationLevel, PrefillFirst, RequestLevel
from common.serving.workload import Workload
from tests.common.serving.reference import SteppedInstance

SCHEDULERS = {
    "request-level": RequestLevel(max_sequences=6),
    "iteration-level": IterationLevel(max_sequences=6),
    "prefill-first": PrefillFirst(max_tokens=64, max_sequences=6),
    "prefill-first-swap": PrefillFirst(max_tokens=64, max_sequences=6, swap=True),
    "chunked": ChunkedPrefill(budget=16, max_sequences=6),
    "chunked-swap": ChunkedPrefill(budget=16, max_sequences=6, swap=True),
}


@dataclass(frozen=True)
class BentLatency:
    """Piecewise linear in the context with two breakpoints, to exercise the end of a line."""

    stages: int = 1

    def _decode(self, decodes: int, context: int) -> tuple[float, float, float]:
        for until, intercept, slope in ((40, 0.25, 0.0), (90, 0.125, 1 / 256), (math.inf, 0.5, 1 / 512)):
            if context < until:
                return intercept + decodes / 64, slope, until
        raise AssertionError

    def iteration(self, chunks, decodes, context):
        seconds = sum(new / 32 + new * cached / 1024 for new, cached in chunks)
        if decodes:
            intercept, slope, _ = self._decode(decodes, context)
            seconds += intercept + slope * context
        return seconds / self.stages, seconds / self.stages

    def decode_line(self, decodes, context):
        return Line(*(self._decode(decodes, context)))


# Dyadic coefficients and arrivals: sums are exact in binary, so that even ties must come out alike.
DYADIC = FittedLatency(
    (1 / 8, 1 / 64, 1 / 4096),
    (1 / 16, 1 / 512, 1 / 128),
    (1 / 32, 1 / 1024, 1 / 64),
    4,
    1,
    1 / 64,
    1 / 32,
    1 / 2048,
)


def run(
    instance_type, latency, scheduler, memory, workload, replicas=1, dispatcher=RoundRobin, swap=(0, 0.0)
):
    instances = []

    def build(loop):
        instances.extend(
            instance_type(
                loop,
                latency,
                memory(),
                scheduler,
                host_blocks=swap[0],
                swap_seconds_per_block=swap[1],
                records_tokens=True,
            )
            for _ in range(replicas)
        )
        return Replicas(instances, dispatcher())

    trace = simulate(workload, build)
    for instance in instances:
        if isinstance(instance, SteppedInstance):
            instance.audit()
        assert instance.memory.free == instance.memory.capacity, "a finished request keeps blocks"
    return trace


def assert_same(one, other, relative=1e-9):
    np.testing.assert_allclose(one.first_token, other.first_token, rtol=relative)
    np.testing.assert_allclose(one.finish, other.finish, rtol=relative)
    np.testing.assert_array_equal(one.preemptions, other.preemptions)
    for mine, theirs in zip(one.token_times, other.token_times, strict=True):
        assert len(mine) == len(theirs)
        np.testing.assert_allclose(mine, theirs, rtol=relative)


def requests(arrival):
    return st.lists(st.tuples(arrival, st.integers(1, 60), st.integers(1, 50)), min_size=1, max_size=25).map(
        lambda rows: Workload(*(np.array(column) for column in zip(*sorted(rows), strict=True)))
    )


dyadic_arrivals = requests(st.integers(0, 400).map(lambda x: x / 16))
real_arrivals = requests(st.floats(0, 20, allow_nan=False))
capacities = st.tuples(st.integers(130, 600), st.sampled_from([1, 4, 16]), st.sampled_from([0.0, 0.05]))


@pytest.mark.parametrize("policy", SCHEDULERS)
@given(
    workload=dyadic_arrivals,
    capacity=capacities,
    replicas=st.integers(1, 3),
    least=st.booleans(),
    bent=st.booleans(),
    host=st.sampled_from([0, 5, 1000]),
)
@settings(max_examples=80, deadline=None)
def test_coalesced_time_stamps_equal_the_stepped_ones(
    policy, workload, capacity, replicas, least, bent, host
):
    scheduler = SCHEDULERS[policy]
    reserved = policy in ("request-level", "iteration-level")
    memory = (lambda: ReservedMemory(*capacity[:2])) if reserved else (lambda: PagedMemory(*capacity))
    latency = BentLatency() if bent else DYADIC
    arguments = (
        latency,
        scheduler,
        memory,
        workload,
        replicas,
        LeastLoad if least else RoundRobin,
        (host, 1 / 256),
    )
    assert_same(run(Instance, *arguments), run(SteppedInstance, *arguments))


@pytest.mark.parametrize("policy", SCHEDULERS)
@given(workload=real_arrivals, capacity=capacities)
@settings(max_examples=60, deadline=None)
def test_published_coefficients_and_real_arrivals_agree_to_1e_9(policy, workload, capacity):
    reserved = policy in ("request-level", "iteration-level")
    memory = (lambda: ReservedMemory(*capacity[:2])) if reserved else (lambda: PagedMemory(*capacity))
    arguments = (
        a100_latency("vllm", "opt-13b", 1),
        SCHEDULERS[policy],
        memory,
        workload,
        1,
        RoundRobin,
        (50, 1e-4),
    )
    assert_same(run(Instance, *arguments), run(SteppedInstance, *arguments))


@pytest.mark.parametrize("policy", SCHEDULERS)
@given(workload=dyadic_arrivals, capacity=capacities, stages=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_pipelined_time_stamps_equal_the_stepped_ones(policy, workload, capacity, stages):
    reserved = policy in ("request-level", "iteration-level")
    memory = (lambda: ReservedMemory(*capacity[:2])) if reserved else (lambda: PagedMemory(*capacity))
    arguments = (
        replace(DYADIC, stages=stages),
        SCHEDULERS[policy],
        memory,
        workload,
        1,
        RoundRobin,
        (50, 1 / 256),
    )
    assert_same(run(Instance, *arguments), run(SteppedInstance, *arguments))


# By hand: latencies of whole numbers, one instance.
PLAIN = FittedLatency(
    (2.0, 1.0, 0.0),
    (1.0, 0.0, 0.0),
    (1.0, 0.0, 0.0),
    stage_seconds=0,
    host_seconds=0,
    host_seconds_per_token=0,
)


def workload(*rows):
    return Workload(*(np.array(column) for column in zip(*rows, strict=True)))


def serve(scheduler, memory, requests_, latency=PLAIN):
    return run(Instance, latency, scheduler, memory, requests_)


def test_a_lone_request_takes_its_prefill_and_one_iteration_a_further_token():
    trace = serve(PrefillFirst(), lambda: PagedMemory(1000), workload((3.0, 10, 4)))
    assert trace.first_token[0] == 3 + 2 + 10
    assert trace.finish[0] == 15 + 3 * 1
    assert trace.token_times[0].tolist() == [15, 16, 17, 18]


def test_prefill_first_delays_running_decodes_and_chunked_prefill_does_not():
    requests_ = workload((0.0, 4, 30), (10.0, 20, 2))
    first = serve(PrefillFirst(), lambda: PagedMemory(1000), requests_)
    gaps = np.diff(first.token_times[0])
    assert gaps.max() == 1 + (2 + 20), "an iteration of decode waits for a whole prompt"
    chunked = serve(ChunkedPrefill(budget=5, max_sequences=4), lambda: PagedMemory(1000), requests_)
    assert np.diff(chunked.token_times[0]).max() == 2 + 5, "no iteration holds more than the budget"


def test_request_level_batches_return_together_and_make_newcomers_wait():
    trace = serve(
        RequestLevel(), lambda: ReservedMemory(1000), workload((0.0, 3, 2), (0.0, 5, 9), (1.0, 1, 1))
    )
    assert trace.finish[0] == (2 + 3) + 1, "the first request started alone"
    assert trace.first_token[1] > trace.finish[0], "the second waits although the batch had room"
    batch = serve(
        RequestLevel(), lambda: ReservedMemory(1000), workload((0.0, 3, 1), (0.5, 5, 9), (0.5, 5, 2))
    )
    assert batch.finish[1] == batch.finish[2], "the short request waits for its longest companion"


def test_iteration_level_lets_a_newcomer_join_and_a_finished_request_leave():
    trace = serve(IterationLevel(), lambda: ReservedMemory(1000), workload((0.0, 3, 20), (6.0, 5, 2)))
    assert trace.first_token[1] < trace.finish[0]
    assert trace.finish[1] < trace.finish[0]


def test_memory_bounds_the_batch_and_a_finished_request_frees_its_blocks():
    trace = serve(PrefillFirst(), lambda: PagedMemory(32, 16, 0.0), workload((0.0, 17, 10), (0.0, 17, 10)))
    assert trace.first_token[1] == trace.finish[0] + 2 + 17, (
        "two prompts of two blocks each do not fit into two"
    )


def test_overflow_recomputes_the_last_admitted_and_all_tokens_still_come_out():
    requests_ = workload((0.0, 16, 40), (1.0, 16, 40))
    for scheduler in (PrefillFirst(), PrefillFirst(swap=True)):
        trace = run(Instance, PLAIN, scheduler, lambda: PagedMemory(96, 16, 0.0), requests_, swap=(100, 0.5))
        assert trace.preemptions.tolist() == [0, 1]
        assert [len(times) for times in trace.token_times] == [40, 40]
        assert all(np.all(np.diff(times) > 0) for times in trace.token_times)


def test_pipeline_stages_raise_throughput_but_not_the_latency_of_one_request():
    many = workload(*[(0.0, 8, 2)] * 16)
    one = workload((0.0, 8, 2))
    flat = PLAIN
    piped = replace(PLAIN, stages=4)
    policy = PrefillFirst(max_tokens=8)
    memory = lambda: PagedMemory(10_000)  # noqa: E731
    assert serve(policy, memory, one, piped).finish[0] == pytest.approx(
        serve(policy, memory, one, flat).finish[0]
    )
    assert (
        serve(policy, memory, many, piped).finish.max() < 0.5 * serve(policy, memory, many, flat).finish.max()
    )


def test_round_robin_alternates_and_least_load_prefers_the_emptier_instance():
    requests_ = workload((0.0, 50, 50), (0.1, 1, 1), (5.0, 1, 1), (60.0, 1, 1))
    robin = run(Instance, PLAIN, PrefillFirst(), lambda: PagedMemory(1000), requests_, replicas=2)
    least = run(Instance, PLAIN, PrefillFirst(), lambda: PagedMemory(1000), requests_, 2, LeastLoad)
    assert robin.ttft[2] > 40, "the third request queues behind the long one"
    assert least.ttft[2] == 3, "it goes where nothing runs"


def test_a_request_that_never_fits_is_refused_with_advice():
    with pytest.raises(ValueError, match="never fits into 4 KV blocks.*filter the workload"):
        serve(PrefillFirst(), lambda: PagedMemory(64, 16, 0.0), workload((0.0, 60, 60)))


def test_little_law_holds_for_a_single_server_queue():
    """With one request at a time and deterministic service this is M/D/1: mean wait = rho * s / (2 (1 - rho))."""
    rng = np.random.default_rng(1)
    n, service, rho = 200_000, 3.0, 0.6
    requests_ = Workload(np.cumsum(rng.exponential(service / rho, n)), np.ones(n, int), np.ones(n, int))
    trace = simulate(
        requests_, lambda loop: Instance(loop, PLAIN, PagedMemory(10_000), PrefillFirst(max_sequences=1))
    )
    wait = float(np.mean(trace.ttft - service))
    assert wait == pytest.approx(rho * service / (2 * (1 - rho)), rel=0.03)
