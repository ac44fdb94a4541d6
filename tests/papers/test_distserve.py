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
from common.lab.bounds import inferred, unbounded
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.serving.engine import Instance, simulate
from common.serving.latency import FittedLatency, a100_latency
from common.serving.link import Link
from common.serving.loop import DOWNSTREAM, UPSTREAM
from common.serving.memory import PagedMemory
from common.serving.metrics import SLO, attainment, smallest_scale
from common.serving.models import model
from common.serving.workload import Workload, poisson
from papers.distserve.config import Config, check
from papers.distserve.deployment import (
    Parallelism,
    Placement,
    Profile,
    colocated,
    disaggregated,
    shared_gpus,
)
from papers.distserve.disaggregation import DecodeBatches, Disaggregated, PrefillBatches
from papers.distserve.evaluation import NEXT_TO_NOTHING, Job, random_placement, ratio, serving
from papers.distserve.exercises import EXERCISES
from papers.distserve.experiment import run
from papers.distserve.placement import (
    HIGHEST_RATE,
    Cluster,
    Objective,
    best_under,
    fill,
    high_affinity,
    low_affinity,
    low_affinity_units,
    phase_goodputs,
    replicate,
    sweep,
)
from papers.distserve.scenarios import SCENARIOS, Serving, profile
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
@settings(max_examples=100, deadline=None)
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
    assert size / profile("opt-66b", Serving(link="cross_node_25gbps")).link_bytes_per_s == pytest.approx(
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
    cluster, goal = Cluster(1, 4, (1, 2), (1,)), objective(n=200)
    best = low_affinity(TOY, cluster, goal)[0]
    exhaustive = {
        unit: goal.goodput(lambda loop, u=unit: disaggregated(TOY, u, loop), unit.gpus)
        for unit in low_affinity_units(TOY, cluster)
    }
    assert best.per_gpu >= max(exhaustive.values()) * (1 - 3 * goal.resolution)
    assert len(exhaustive) == 4


def test_corresponding_stages_of_both_phases_fit_into_one_node():
    units = list(low_affinity_units(TOY, Cluster(2, 4, (1, 2, 4), (1, 2))))
    one_node = [u for u in units if u.prefill.gpus + u.decode.gpus <= 4]
    across = [u for u in units if u.prefill.gpus + u.decode.gpus > 4]
    assert one_node and across
    for unit in across:
        assert unit.prefill.stages % 2 == 0 and unit.decode.stages % 2 == 0, "stages spread over both nodes"
        assert (unit.prefill.gpus + unit.decode.gpus) / 2 <= 4


def test_high_affinity_balances_the_phases():
    cluster, goal = Cluster(1, 8, (1, 2), (1,)), objective(n=200)
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
        assert goal.goodput(build, 2) == HIGHEST_RATE, "the highest rate tried"
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
            build = profile(scenario.model, Serving(engine))
            assert build.kv_tokens(scenario.baseline)
            assert build.latency(scenario.baseline).iteration([(512, 0)], 0, 0)[0] > 0


def test_unknown_links_and_engines_are_named():
    with pytest.raises(KeyError, match="nvlink"):
        profile("opt-13b", Serving(link="carrier-pigeon"))
    with pytest.raises(KeyError, match="distserve, vllm"):
        profile("opt-13b", Serving("tgi"))


SMALL = Config(
    scenarios=["summarisation-opt-66b"],
    requests=100,
    seconds=0.0,
    most_requests=100,
    resolution=0.2,
    tensor=[2, 4],
    stages=[1],
    other_lengths=1,
    real_requests=0,
)
GAIN = "rate_gain_summarisation_opt_66b"


def test_the_same_config_and_seeds_give_the_same_bytes_whatever_ran_before():
    fresh = run(SMALL, Runtime((0, 1), workers=1)).to_json()
    kept = {}
    run(replace(SMALL, disaggregate=False), Runtime((0, 1), workers=1, kept=kept))
    run(replace(SMALL, placement="random"), Runtime((0, 1), workers=1, kept=kept))
    assert run(SMALL, Runtime((0, 1), workers=1, kept=kept)).to_json() == fresh
    assert run(SMALL, Runtime((2, 3), workers=1, kept=kept)).to_json() != fresh


def test_the_number_of_cores_changes_no_byte():
    wanted = [GAIN]
    one = run(SMALL, Runtime((0, 1), workers=1, wanted=wanted)).to_json()
    assert one == run(SMALL, Runtime((0, 1), workers=2, wanted=wanted)).to_json()


def test_an_arm_shares_its_rival_and_computes_only_what_its_claims_read():
    kept = {}
    ours = run(SMALL, Runtime((0,), workers=1, wanted=[GAIN], kept=kept))
    answers = len(kept["distserve: answers"])
    arm = run(replace(SMALL, link="cross_node_25gbps"), Runtime((0,), workers=1, wanted=[GAIN], kept=kept))
    assert len(kept["distserve: answers"]) == answers + 1, "DistServe's, not vLLM's"
    assert arm.values("goodput", system="vllm") == ours.values("goodput", system="vllm")
    assert arm.values("goodput", system="low") != ours.values("goodput", system="low")
    assert not {"attainment", "goodput_by_lengths", "same_engine_rate_gain_summarisation_opt_66b"} & {
        *arm.metrics
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_faces_a_vllm_that_searches_its_parallelism(name):
    slug = name.replace("-", "_")
    plus = "low_over_vllm_plus" if name == "chat-opt-13b" else f"over_vllm_plus_{slug}"
    config = replace(SMALL, scenarios=[name], slo_load=0.5)
    seen = run(config, Runtime((0,), workers=1, wanted=[plus]))
    [(ours, rival)] = zip(
        seen.values("goodput", system="low"), seen.values("goodput", system="vllm++"), strict=True
    )
    [row] = seen.rows(plus)
    floor = config.floor_share * SCENARIOS[name].slo_rate
    assert (row.value, row.at.get("capped", False)) == ratio(ours, rival, floor)
    assert seen.values("goodput", system="vllm") == [], "the one that searches, and no other"
    assert seen.values(f"slo_rate_{slug}") == [0.5 * SCENARIOS[name].slo_rate]


def test_every_field_of_the_config_has_its_bounds():
    assert unbounded(Config) == []
    assert {"prefill_tokens", "overlap", "vllm_prefill_tokens"} <= set(inferred(Config))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("paper.resolution=0", "0.001"),
        ("paper.placement=banana", "search, random"),
        ("paper.tensor=[]", "0 items"),
        ("paper.tensor=[6]", "1, 2, 3, 4, 8"),
        ("paper.target=1.5", "0.99"),
        ("paper.requests=1", "100"),
        ("paper.link=pigeon", "nvlink"),
        ("paper.scenarios=[poetry]", "chat-opt-13b"),
        ("paper.scenarios=[]", "0 items"),
        ("paper.real_levels=[0]", "0.05"),
        ("paper.real_requests=1", "too few for a fit"),
        ("paper.tensor=[8]", "hold no placement of opt-13b on 4 GPUs"),
        ("paper.target=0.95", "fewer than ten beyond"),
        ("paper.most_requests=200", "below requests"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_it_runs(override, said):
    overrides = [override] + (["paper.requests=100"] if "target=0.95" in override else [])
    with pytest.raises(LabError, match=said) as refused:
        compose(Project.current(), "distserve", "default", overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "ignored",
    [
        {"disaggregate": False, "placement": "random"},
        {"disaggregate": False, "link": "cross_node_25gbps"},
        {"disaggregate": False, "overlap": 0.5},
        {"chat_lengths": "sharegpt"},
        {"chat_13b_ttft": 0.2},
        {"real_levels": [0.5]},
    ],
)
def test_a_switch_that_a_run_would_ignore_is_refused(ignored):
    check(SMALL)
    with pytest.raises(ValueError, match="means nothing"):
        check(replace(SMALL, **ignored))


def test_a_random_placement_has_as_many_gpus_and_comes_from_what_the_search_saw():
    scenario = SCENARIOS["chat-opt-66b"]
    cluster = Cluster(1, 8, (2, 4), (1, 2))
    config = replace(SMALL, scenarios=["chat-opt-66b"], stages=[1, 2], placement="random")
    seen = set()
    for seed in range(30):
        job = Job(config, scenario, objective().workload, seed, "low")
        drawn = random_placement(job, Placement(Parallelism(4), Parallelism(4)))
        assert drawn.gpus == 8 and drawn == random_placement(job, Placement(Parallelism(4), Parallelism(4)))
        seen.add(drawn)
    possible = {fill(unit, 8) for unit in low_affinity_units(serving(job), cluster)}
    assert seen == {placement for placement in possible if placement.gpus == 8}


def test_a_gain_over_a_system_that_sustains_almost_nothing_is_a_marked_bound():
    assert ratio(1.0, 0.5, floor=0.1) == (2.0, False)
    assert ratio(1.0, 0.0, floor=0.1) == (10.0, True)
    assert ratio(0.05, 0.2, floor=0.1) == (0.25, False), "ours is not lifted to the floor"
    assert ratio(0.0, 0.0, floor=0.1) == (NEXT_TO_NOTHING / 0.1, True), "nobody sustains anything"


def test_on_shared_gpus_a_prompt_delays_the_tokens_of_others_and_the_reverse():
    """One replica, a decode step of 20.1 ms, a prompt of 500 tokens of 120 ms: they take turns."""
    requests = workload((0.0, 50, 12), (0.05, 500, 4), (0.06, 500, 4))
    latency = TOY.latency(Parallelism(1))
    shared = simulate(requests, lambda loop: shared_gpus(TOY, Parallelism(1), 1, loop))
    apart = simulate(
        requests, lambda loop: disaggregated(TOY, Placement(Parallelism(1), Parallelism(1)), loop)
    )
    assert shared.tpot[0] > 2 * apart.tpot[0], "two prefills stand between its tokens"
    assert shared.first_token[2] - shared.first_token[1] > latency.iteration([(500, 0)], 0, 0)[0], (
        "and a decode step between the prompts"
    )
    assert np.all(shared.finish > 0)


@given(requests=dyadic_arrivals, capacity=st.integers(112, 400))
@settings(max_examples=50, deadline=None)
def test_shared_gpus_serve_every_request_and_return_every_block(requests, capacity):
    toy = replace(TOY, latency=lambda p: DYADIC, kv_tokens=lambda p: capacity, prefill_tokens=64)
    seen = []

    def build(loop):
        seen.append(shared_gpus(toy, Parallelism(1), 1, loop))
        return seen[0]

    trace = simulate(requests, build)
    assert np.all(trace.finish >= trace.first_token)
    memory = seen[0].instances[0].memory
    assert memory.free == memory.capacity


def test_prompts_held_back_by_caches_that_nobody_pulled_are_counted():
    seen = []
    requests = workload(*[(0.0, 32, 48)] * 12)
    simulate(requests, lambda loop: system(loop, Instance, PLAIN, (96, 80), (1, 1), 1.0, 1e9, 0.01, seen))
    assert seen[0].prefills[0].scheduler.blocked > 0


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
    requests = objective(n=200).workload
    units = list(low_affinity_units(TOY, Cluster(1, 4, (1, 2), (1,))))
    rates = [0.5, 1.0, 2.0, 4.0]
    swept = sweep(TOY, units, requests, rates)
    slo = SLO(0.3, 0.05)
    start = time.perf_counter()
    best, rate = best_under(swept, slo)[0]
    assert time.perf_counter() - start < 2.0
    goal = Objective(requests, slo, requests=200, seconds=0.0)
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


def test_every_exercise_has_its_answer_and_the_link_of_the_paper_carries_about_90_gbit_a_second():
    assert EXERCISES["exercise-2"].answer(None) == pytest.approx(64 * 9216 * 4 * 512 * 10 * 8 / 1e9)
    assert all(0.05 < EXERCISES[name].answer(None) < 50 for name in ("exercise-1", "exercise-3"))
