"""DistServe's mechanisms against the step-by-step engine, closed forms and exhaustive search."""

import json
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import data
from common.lab.runtime import Runtime
from common.serving.engine import Instance, simulate
from common.serving.latency import FittedLatency, a100_latency
from common.serving.loop import DOWNSTREAM, UPSTREAM
from common.serving.memory import PagedMemory
from common.serving.metrics import SLO, attainment, smallest_scale
from common.serving.models import model
from common.serving.workload import Workload, poisson
from papers.distserve.deployment import (
    Parallelism,
    Placement,
    Profile,
    colocated,
    disaggregated,
)
from papers.distserve.disaggregation import DecodeBatches, Disaggregated, Link, PrefillBatches
from papers.distserve.evaluation import LOWEST_PER_GPU
from papers.distserve.experiment import Config, run
from papers.distserve.placement import (
    Cluster,
    Objective,
    best_under,
    fill,
    high_affinity,
    low_affinity,
    low_affinity_units,
    phase_goodputs,
    replicate,
    shifted,
    sweep,
)
from papers.distserve.scenarios import SCENARIOS, profile
from tests.common.serving.reference import SteppedInstance
from tests.common.serving.test_engine import DYADIC, PLAIN, assert_same, dyadic_arrivals, workload


def system(
    loop, instance_type, latency, capacities, counts, kv_bytes=1.0, bytes_per_s=1024.0, share=0.25, seen=None
):
    def prefill(done):
        return instance_type(
            loop,
            latency,
            PagedMemory(capacities[0], 16, 0.0),
            PrefillBatches(64),
            on_prefilled=done,
            rank=UPSTREAM,
            records_tokens=True,
        )

    def decode(done):
        return instance_type(
            loop,
            latency,
            PagedMemory(capacities[1], 16, 0.0),
            DecodeBatches(6),
            on_begin=done,
            rank=DOWNSTREAM,
            host_blocks=10**6,
            swap_seconds_per_block=1 / 256,
            records_tokens=True,
        )

    built = Disaggregated(
        loop, prefill, counts[0], decode, [Link(bytes_per_s) for _ in range(counts[1])], kv_bytes, share
    )
    if seen is not None:
        seen.append(built)
    return built


@example(workload((0.0, 1, 36), (0.0, 43, 39), (0.0625, 32, 2)), 112, 112, (1, 1), 64.0, 1)
@given(
    requests=dyadic_arrivals,
    prefill=st.integers(112, 400),
    decode=st.integers(112, 400),
    counts=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    speed=st.sampled_from([64.0, 1024.0, 2.0**30]),
    stages=st.sampled_from([1, 1, 2]),
)
@settings(max_examples=200, deadline=None)
def test_disaggregated_time_stamps_equal_the_stepped_ones(requests, prefill, decode, counts, speed, stages):
    latency = replace(DYADIC, stages=stages)
    traces, seen = [], []
    for instance_type in (Instance, SteppedInstance):
        traces.append(
            simulate(
                requests,
                lambda loop, t=instance_type: system(
                    loop, t, latency, (prefill, decode), counts, 1.0, speed, seen=seen
                ),
            )
        )
    assert_same(*traces)
    for built in seen:
        for instance in [*built.prefills, *(side.instance for side in built.decodes)]:
            assert instance.memory.free == instance.memory.capacity, "every block comes back"


def test_a_request_waits_for_its_copy_and_then_decodes():
    trace = simulate(
        workload((0.0, 10, 3)), lambda loop: system(loop, Instance, PLAIN, (160, 160), (1, 1), 2.0, 4.0)
    )
    assert trace.first_token[0] == 12
    assert trace.finish[0] == 12 + 10 * 2.0 / 4.0 + 2


def test_a_full_decode_instance_leaves_caches_on_the_prefill_side_and_blocks_new_prompts():
    """Prefill takes 2 + 32 s and decode 47 s a request, one at a time: its 5 blocks hold one request of 80 tokens."""
    seen = []
    requests = workload(*[(0.0, 32, 48)] * 12)
    tight = simulate(
        requests, lambda loop: system(loop, Instance, PLAIN, (96, 80), (1, 1), 1.0, 1e9, 0.01, seen)
    )
    assert max(t.pulled - t.prefilled for t in seen[0].transfers) > 20, "caches wait to be pulled"
    assert np.diff(tight.first_token)[-3:] == pytest.approx(47, abs=2), (
        "prefill advances as fast as decode pulls"
    )
    roomy = simulate(requests, lambda loop: system(loop, Instance, PLAIN, (960, 80), (1, 1), 1.0, 1e9, 0.01))
    assert np.diff(roomy.first_token)[-3:].tolist() == [66, 0, 34], (
        "two prompts a batch (the first and the last alone), nothing in their way"
    )


def test_opt_66b_moves_1_13_gib_for_512_tokens_and_the_slow_network_takes_a_third_of_a_second():
    size = model("opt-66b").kv_bytes_per_token() * 512
    assert size == 64 * 9216 * 4 * 512
    assert size / 2**30 == pytest.approx(1.125)
    assert size / profile("opt-66b", "distserve", "cross_node_25gbps").link_bytes_per_s == pytest.approx(
        0.387, rel=0.01
    )


def test_prompts_are_batched_up_to_the_saturating_length_and_longer_ones_run_alone():
    trace = simulate(
        workload((0.0, 1, 1), (1.0, 30, 1), (1.0, 30, 1), (1.0, 30, 1), (1.0, 100, 1)),
        lambda loop: system(loop, Instance, PLAIN, (1600, 1600), (1, 1)),
    )
    assert trace.first_token[1] == trace.first_token[2] < trace.first_token[3] < trace.first_token[4]


TOY = Profile(
    shape=replace(model("opt-13b"), name="toy"),
    latency=lambda p: FittedLatency(
        (0.02 / p.tensor, 2e-4 / p.tensor, 0.0),
        (0.02 / p.tensor, 0.0, 1e-4),
        (0.02 / p.tensor, 0.0, 1e-4),
        stages=p.stages,
    ),
    kv_tokens=lambda p: 40_000 * p.gpus,
    prefill_tokens=512,
    link_bytes_per_s=300e9,
)


def objective(n=400, ttft=0.3, tpot=0.05, seed=0):
    rng = np.random.default_rng(seed)
    requests = Workload(poisson(rng, n), rng.integers(50, 500, n), rng.integers(5, 100, n))
    return Objective(requests, SLO(ttft, tpot), requests=200, seconds=20)


def test_low_affinity_search_finds_what_exhaustive_simulation_finds():
    cluster, goal = Cluster(1, 4, (1, 2), (1, 2)), objective()
    best = low_affinity(TOY, cluster, goal)[0]
    exhaustive = {
        unit: goal.goodput(lambda loop, u=unit: disaggregated(TOY, u, loop), 1.0) / unit.gpus
        for unit in low_affinity_units(TOY, cluster)
    }
    assert best.per_gpu >= max(exhaustive.values()) * (1 - 3 * goal.resolution)
    assert len(exhaustive) > 4


def test_corresponding_stages_of_both_phases_fit_into_one_node():
    units = list(low_affinity_units(TOY, Cluster(2, 4, (1, 2, 4), (1, 2))))
    one_node = [u for u in units if u.prefill.gpus + u.decode.gpus <= 4]
    across = [u for u in units if u.prefill.gpus + u.decode.gpus > 4]
    assert one_node and across
    for unit in across:
        assert unit.prefill.stages % 2 == 0 and unit.decode.stages % 2 == 0, "stages spread over both nodes"
        assert (unit.prefill.gpus + unit.decode.gpus) / 2 <= 4


def test_high_affinity_balances_the_phases():
    cluster, goal = Cluster(1, 8, (1, 2), (1,)), objective()
    best = high_affinity(TOY, cluster, goal)[0].placement
    feasible = TOY.parallelisms([1, 2], [1], 7)
    prefill = phase_goodputs(TOY, feasible, goal, "prefill")
    decode = phase_goodputs(TOY, feasible, goal, "decode")
    rate = min(best.prefills * prefill[best.prefill], best.decodes * decode[best.decode])
    assert replicate(rate, prefill[best.prefill], decode[best.decode]) == (
        -(-rate // prefill[best.prefill]),
        -(-rate // decode[best.decode]),
    )
    one_less = min((best.prefills - 1) * prefill[best.prefill], best.decodes * decode[best.decode])
    assert one_less / (best.gpus - best.prefill.gpus) <= rate / best.gpus


def test_goodput_counts_the_gpus_of_both_phases():
    assert Placement(Parallelism(2), Parallelism(1, 2), prefills=3, decodes=2, units=2).gpus == 2 * (
        3 * 2 + 2 * 2
    )
    assert fill(Placement(Parallelism(2), Parallelism(1)), 8).gpus == 6


def test_without_objectives_no_system_is_limited_and_alone_every_request_meets_them():
    goal = objective(ttft=1e9, tpot=1e9)
    for build in (
        lambda loop: disaggregated(TOY, Placement(Parallelism(1), Parallelism(1)), loop),
        lambda loop: colocated(TOY, Parallelism(1), 2, loop),
    ):
        assert goal.goodput(build, 1.0) == 1000.0, "the highest rate tried"
        alone = simulate(Workload(np.array([0.0]), np.array([100]), np.array([10])), build)
        assert attainment(alone, SLO(0.3, 0.05)) == 1.0
        assert smallest_scale(alone, SLO(0.3, 0.05)) < 1.0


def test_the_slow_network_breaks_what_nvlink_keeps():
    requests = objective().at(2.0)
    placement = Placement(Parallelism(1), Parallelism(1))
    share = {}
    for link, bytes_per_s in (("nvlink", 300e9), ("network", 25e9 / 8)):
        seen = []

        def build(loop, speed=bytes_per_s, seen=seen):
            seen.append(disaggregated(replace(TOY, link_bytes_per_s=speed), placement, loop))
            return seen[0]

        trace = simulate(requests, build)
        seconds = sum(t.arrived - t.pulled for unit in seen[0].units for t in unit.transfers)
        share[link] = seconds / np.sum(trace.finish - trace.arrival)
    assert share["network"] > 50 * share["nvlink"]


def test_every_scenario_has_a_feasible_baseline_and_placement():
    for scenario in SCENARIOS.values():
        for engine in ("vllm", "distserve"):
            build = profile(scenario.model, engine, "nvlink")
            assert build.kv_tokens(scenario.baseline)
            assert build.latency(scenario.baseline).iteration([(512, 0)], 0, 0)[0] > 0


def test_unknown_links_and_engines_are_named():
    with pytest.raises(KeyError, match="nvlink"):
        profile("opt-13b", "distserve", "carrier-pigeon")
    with pytest.raises(KeyError, match="distserve, vllm"):
        profile("opt-13b", "tgi", "nvlink")


SMALL = Config(
    scenarios=["chat-opt-13b"],
    requests=60,
    seconds=2.0,
    most_requests=200,
    resolution=0.1,
    tensor=[1, 2],
    stages=[1],
    other_lengths=1,
    real_requests=0,
)


def test_the_same_config_and_seeds_give_the_same_bytes_on_any_number_of_cores():
    one = run(SMALL, Runtime((0, 1), workers=1)).to_json()
    assert one == run(SMALL, Runtime((0, 1), workers=2)).to_json()
    assert one != run(SMALL, Runtime((2, 3), workers=2)).to_json()


def test_switching_disaggregation_off_leaves_exactly_the_colocated_system():
    seen = run(replace(SMALL, disaggregate=False), Runtime((0,), workers=1))
    assert seen.values("same_engine_rate_gain_chat_opt_13b") == [1.0]
    assert seen.values("same_engine_slo_gain_chat_opt_13b") == [1.0]


def test_a_control_computes_only_what_its_claims_read():
    wanted = Runtime((0,), workers=1, wanted=["same_engine_rate_gain_chat_opt_13b"])
    seen = run(replace(SMALL, disaggregate=False), wanted)
    assert "same_engine_rate_gain_chat_opt_13b" in seen.metrics
    assert not {"rate_gain_chat_opt_13b", "attainment", "goodput_by_lengths"} & set(seen.metrics)


def test_an_unknown_scenario_is_named():
    with pytest.raises(ValueError, match="unknown scenario 'poetry'; one of chat-opt-13b"):
        run(replace(SMALL, scenarios=["poetry"]), Runtime((0,)))


def test_committed_coefficients_are_the_published_ones():
    """Milliseconds to seconds and nothing else, where the originals are at hand."""
    for engine, name in (("distserve", "distserve-engine-fits"), ("vllm", "distserve-vllm-fits")):
        path = data.find(name)
        if path is None:
            pytest.skip("the published profiles are not on this machine; `make data` does not fetch them")
        for opt, degrees in json.loads(path.read_text()).items():
            for degree, published in degrees.items():
                ours = a100_latency(engine, opt.removeprefix("facebook/"), int(degree))
                assert ours.prefill == pytest.approx([x / 1000 for x in published["prefill"]])
                assert ours.decode_small == pytest.approx([x / 1000 for x in published["decoding_smallbs"]])
                assert ours.decode_large == pytest.approx([x / 1000 for x in published["decoding_largebs"]])
                assert ours.large_batch == published["decoding_large_small_bs_threshold"]


def test_moving_the_objectives_finds_the_best_swept_placement_within_two_seconds():
    requests = objective(n=600).workload
    units = list(low_affinity_units(TOY, Cluster(1, 4, (1, 2), (1, 2))))
    rates = [0.5, 1.0, 2.0, 3.0, 4.0, 6.0]
    swept = sweep(TOY, units, requests, rates)
    slo = SLO(0.3, 0.05)
    start = time.perf_counter()
    best, rate = best_under(swept, slo)[0]
    assert time.perf_counter() - start < 2.0
    goal = Objective(requests, slo, requests=600, seconds=0.0)
    sustained = {
        unit: max(
            (r for r in rates if goal.sustains(partial(disaggregated, TOY, unit), r * unit.gpus)), default=0.0
        )
        for unit in units
    }
    assert sustained[best] == rate == max(sustained.values())
    assert dict(best_under(swept, SLO(1e-6, 1e-6))) == dict.fromkeys(units, 0.0), (
        "nobody keeps an absurd promise"
    )


def test_a_shift_of_lengths_is_noticed_and_noise_is_not():
    one, same = objective(n=400, seed=0).workload, objective(n=400, seed=1).workload
    assert not shifted(one, same)
    assert shifted(one, Workload(one.arrival, 2 * one.prompt, one.output))
    assert shifted(one, Workload(one.arrival, one.prompt, 2 * one.output))
    assert shifted(one, one.scaled(2.0))


def test_replanning_after_a_shift_compares_the_stale_placement_with_a_new_one():
    seen = run(replace(SMALL, scenarios=[], replan=True), Runtime((0,), workers=1))
    assert seen.values("shift_noticed") == [1.0]
    stale, fresh = (seen.values("replanning_goodput", placement=one)[0] for one in ("stale", "fresh"))
    assert seen.values("replanning_gain") == [max(fresh, LOWEST_PER_GPU) / max(stale, LOWEST_PER_GPU)]
