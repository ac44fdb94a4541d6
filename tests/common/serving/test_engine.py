"""The coalesced engine against the step-by-step one, and against cases that can be done by hand."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
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
DYADIC = FittedLatency((1 / 8, 1 / 64, 1 / 4096), (1 / 16, 1 / 512, 1 / 128), (1 / 32, 1 / 1024, 1 / 64), 4, 1, 1 / 64, 1 / 32, 1 / 2048)


def run(instance_type, latency, scheduler, memory, workload, replicas=1, dispatcher=RoundRobin, swap=(0, 0.0)):
    instances = []

    def build(loop):
        instances.extend(
            instance_type(
                loop, latency, memory(), scheduler,
                host_blocks=swap[0], swap_seconds_per_block=swap[1], records_tokens=True,
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
@given(workload=dyadic_arrivals, capacity=capacities, replicas=st.integers(1, 3), least=st.booleans(), bent=st.booleans(), host=st.sampled_from([0, 5, 1000]))
@settings(max_examples=120, deadline=None)
def test_coalesced_time_stamps_equal_the_stepped_ones(policy, workload, capacity, replicas, least, bent, host):
    scheduler = SCHEDULERS[policy]
    reserved = policy in ("request-level", "iteration-level")
    memory = (lambda: ReservedMemory(*capacity[:2])) if reserved else (lambda: PagedMemory(*capacity))
    latency = BentLatency() if bent else DYADIC
    arguments = (latency, scheduler, memory, workload, replicas, LeastLoad if least else RoundRobin, (host, 1 / 256))
    assert_same(run(Instance, *arguments), run(SteppedInstance, *arguments))


@pytest.mark.parametrize("policy", SCHEDULERS)
@given(workload=real_arrivals, capacity=capacities)
@settings(max_examples=60, deadline=None)
def test_published_coefficients_and_real_arrivals_agree_to_1e_9(policy, workload, capacity):
    reserved = policy in ("request-level", "iteration-level")
    memory = (lambda: ReservedMemory(*capacity[:2])) if reserved else (lambda: PagedMemory(*capacity))
    arguments = (a100_latency("vllm", "opt-13b", 1), SCHEDULERS[policy], memory, workload, 1, RoundRobin, (50, 1e-4))
    assert_same(run(Instance, *arguments), run(SteppedInstance, *arguments))


@pytest.mark.parametrize("policy", SCHEDULERS)
@given(workload=dyadic_arrivals, capacity=capacities, stages=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_pipelined_time_stamps_equal_the_stepped_ones(policy, workload, capacity, stages):
    from dataclasses import replace

    reserved = policy in ("request-level", "iteration-level")
    memory = (lambda: ReservedMemory(*capacity[:2])) if reserved else (lambda: PagedMemory(*capacity))
    arguments = (replace(DYADIC, stages=stages), SCHEDULERS[policy], memory, workload, 1, RoundRobin, (50, 1 / 256))
    assert_same(run(Instance, *arguments), run(SteppedInstance, *arguments))
