"""NanoFlow: cost model, schedules and their checker, batch policy, numerics, and an experiment that repeats itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lab.card import Card
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.serving.engine import Instance, simulate
from common.serving.memory import PagedMemory
from common.serving.workload import Workload as Requests
from papers.nanoflow import cost_model as cost
from papers.nanoflow import list_schedule, plans
from papers.nanoflow.config import TRACES, Config, check
from papers.nanoflow.cost_model import COMPUTE, LLAMA_2_70B, MEMORY, NETWORK, TABLE_2, Operator, Workload
from papers.nanoflow.dense_batch import DenseBatch
from papers.nanoflow.experiment import run
from papers.nanoflow.interference import (
    Interference,
    fluid_bound,
    hidden_share,
    interference,
    measured_streams,
    naive_gain,
)
from papers.nanoflow.list_schedule import Choice, Evaluator
from papers.nanoflow.naive_streams import fair_period
from papers.nanoflow.nano_batches import even_cuts, split_layer
from papers.nanoflow.numerics import differences
from papers.nanoflow.offload import compute_saved, rounds_of
from papers.nanoflow.online import wasted_share
from papers.nanoflow.pipeline_latency import overlapped_latency, sequential_latency, workload_context
from papers.nanoflow.pipelines import solve
from papers.nanoflow.polish import Schedule
from papers.nanoflow.replay import violations
from papers.nanoflow.search import Effort, drawn, halved, plain, search, structures
from papers.nanoflow.stage_one import best_order
from papers.nanoflow.stage_two import anneal, checked, one_after_another, random_schedule, staggered
from tests.common.serving.reference import SteppedInstance

CURVES = interference()
SMALL = Effort(splits=1, walks=2, evaluations=300, refined=300, nodes=2)


@pytest.fixture(scope="module")
def layer():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    return halved(ops, 2048)


@pytest.fixture(scope="module")
def pipeline():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    return search(ops, 2048, CURVES, np.random.default_rng(0), SMALL)


def test_the_table_sums_to_the_sequential_period():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    total = sum(real for *_, real in TABLE_2.values())
    assert cost.sequential_us(ops, 2048) * 80 / 1000 == pytest.approx(total)
    assert cost.throughput(LLAMA_2_70B, cost.sequential_us(ops, 2048)) == pytest.approx(2048 / 0.22505 / 8)


def test_the_tables_attention_reads_the_memory_of_its_workload():
    tokens = 2048 * cost.TABLE_WORKLOAD.decode_context
    seconds = tokens * LLAMA_2_70B.shape.kv_bytes_per_token() / (8 * 2e12)
    assert seconds == pytest.approx(TABLE_2["DecAttn"][1] / 1000, rel=0.02)


def test_optimal_throughput_is_compute_over_twice_the_parameters():
    model = "llama-3-8b"
    flops = cost.optimal_throughput(model) * 2 * cost.SHAPES[model].parameters
    assert flops == pytest.approx(1857 * 2 * cost.SHAPES["llama-2-70b"].parameters)
    assert cost.optimal_throughput("mixtral-8x7b") > 3 * cost.optimal_throughput(
        "llama-2-70b"
    )  # two of eight experts


def test_a_larger_batch_is_more_bound_by_compute_and_the_ada_by_its_network():
    cards = {card.name: card for card in cost.ACCELERATORS}
    assert len(cards) == 13
    ratios = [cost.memory_over_compute(cards["A100-80"], LLAMA_2_70B, b) for b in (16, 256, 2048)]
    assert ratios[0] > 1 > ratios[2] and ratios == sorted(ratios, reverse=True)
    # T_R = (Compute / MemBW) (MemSize / P) / (2 B), with 8 cards on both sides
    p = LLAMA_2_70B.shape.parameters
    assert ratios[2] == pytest.approx(312e12 / 2e12 * 8 * 80e9 / p / (2 * 2048))
    ada = cost.resource_seconds(cards["Ada 6000"], LLAMA_2_70B, 2048)
    assert ada[NETWORK] > ada[COMPUTE]
    a100 = cost.resource_seconds(cards["A100-80"], LLAMA_2_70B, 2048)
    assert a100[NETWORK] == pytest.approx(TABLE_2["Net"][2] / 1000, rel=0.01)


@given(pieces=st.integers(1, 4), other=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_copies_cover_the_batch_and_depend_where_their_ranges_meet(pieces, other):
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    cuts = {name: even_cuts(2048, pieces if name in ("KQV", "O") else other) for name in ops}
    made = split_layer(ops, 2048, cuts)
    for name in ops:
        mine = [op for op in made.ops if op.operator == name]
        assert sum(op.high - op.low for op in mine) == 2048
        assert all(op.low % 128 == 0 for op in mine)
    for edge in made.dependencies:
        one, two = made.ops[edge.before], made.ops[edge.after]
        assert max(one.low, two.low) < min(one.high, two.high)


def test_a_split_costs_another_read_of_the_weights_unless_duplication_is_free():
    for duplication in (True, False):
        ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD, duplication=duplication)
        extra = halved(ops, 2048).sequential - plain(ops, 2048).sequential
        assert extra == pytest.approx(sum(op.fixed for op in ops.values()))
        assert (extra > 0) == duplication


def test_cuts_outside_the_rule_are_refused():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    for cuts in ((100,), (512, 512), (2048,)):
        with pytest.raises(ValueError, match="cuts"):
            split_layer(ops, 2048, {"KQV": cuts})


def test_a_batch_of_two_or_three_units_is_cut_in_two_and_no_finer():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    pieces = {}
    for batch in (16, 130, 255, 256, 300, 511, 512):
        tried = structures(ops, batch, Effort(splits=4, nodes=1))
        pieces[batch] = max(len(cuts) + 1 for one in tried for cuts in one.cuts.values())
    assert pieces == {16: 4, 130: 4, 255: 4, 256: 2, 300: 2, 511: 2, 512: 4}


def test_what_stage_i_gave_before_changes_nothing_and_is_computed_once_for_all_seeds(monkeypatch):
    calls = []

    def counted(*given, **switches):
        calls.append(given)
        return structures(*given, **switches)

    monkeypatch.setattr(plans, "structures", counted)
    config, lab = replace(SMOKE, evaluations=20, refined=20), Runtime([0, 1], workers=1)
    cases = [plans.case(config, plans.HOME, seed) for seed in lab.seeds]
    shared = plans.keyed(lab, cases)
    plans.keyed(lab, [plans.case(replace(config, network_exponent=0.9), plans.HOME, 0)])
    assert len(calls) == 1
    assert [solve(one) for one in cases] == shared


def test_published_inputs_are_the_rivals_alone_and_the_papers_points_are_those_of_its_claims():
    assert set(cost.published("TensorRT-LLM, tokens/s/GPU")) == {
        *TRACES,
        "512-512",
        "1024-512",
        "512-1024",
    }
    for name in ("vLLM", "NanoFlow, tokens/s/GPU"):
        with pytest.raises(ValueError, match="nothing called"):
            cost.published(name)
    card = Card.load(Project.current().card("nanoflow"))
    values = {claim.id: claim.paper.value for claim in card.claims}
    assert card.figure("figure-9")["512-1024"] == values["gain-512-1024"]
    assert card.figure("figure-9")["512-0"] == values["gain-prefill-only"]
    assert card.figure("figure-11")["llama-2-70b"] == pytest.approx(100 * values["optimum-llama-2-70b"])


def test_the_fluid_bound_is_the_work_where_curves_are_straight_and_less_where_they_bend():
    work = {COMPUTE: 100.0, MEMORY: 30.0, NETWORK: 20.0}
    assert fluid_bound(work, interference(1.0, 1.0)) == pytest.approx(150.0)
    bound = fluid_bound(work, CURVES)
    assert 100 < bound < 150
    share = (30 / bound) ** (1 / 0.75) + (20 / bound) ** 2 + 100 / bound
    assert share == pytest.approx(1.0)


def test_the_published_point_lies_on_the_attention_curve():
    assert CURVES.performance(MEMORY, 0.2) == pytest.approx(0.3, rel=0.01)


def test_naive_streams_hide_a_copy_but_hardly_attention():
    seconds = measured_streams()
    assert naive_gain("gemm+h2d", seconds) > 1.8
    assert naive_gain("gemm+decode_attention", seconds) < 1.1


def test_stage_one_meets_the_closed_forms_of_small_layers():
    a = Operator("A", COMPUTE, 0.0, 2 / 256)
    b = Operator("B", NETWORK, 0.0, 1 / 256)
    whole = split_layer({"A": a, "B": b}, 256, {})
    assert best_order(whole).period == pytest.approx(3.0)  # one batch: the next layer waits
    split = split_layer({"A": a, "B": b}, 256, {"A": (128,), "B": (128,)})
    assert best_order(split).period == pytest.approx(2.0)  # two: one computes while the other communicates


def test_stage_one_is_no_worse_than_any_order_of_a_small_layer():
    """Every order of three streams with four ops, replayed by the list schedule, takes at least as long."""
    rng = np.random.default_rng(3)
    free = Interference({COMPUTE: 1.0, MEMORY: 0.0, NETWORK: 0.0})  # others cost no speed and little share
    ops = {
        "A": Operator("A", COMPUTE, 0.0, 3 / 256),
        "B": Operator("B", MEMORY, 0.0, 2 / 256),
        "C": Operator("C", NETWORK, 0.0, 1 / 256),
    }
    made = split_layer(ops, 256, dict.fromkeys(ops, (128,)))
    best = best_order(made).period
    evaluator = Evaluator(made, free)
    shares = tuple(1.0 if op.stream == COMPUTE else 1e-12 for op in made.ops)
    periods = [evaluator.period(Choice(tuple(rng.uniform(0, 1, 6)), shares)) for _ in range(300)]
    assert min(periods) == pytest.approx(best, rel=1e-6)


def test_the_found_pipeline_is_feasible_and_between_its_bounds(pipeline):
    found = pipeline.found
    assert violations(found.layer.ops, *found.schedule, CURVES.exponents) == []
    assert fluid_bound(found.layer.work, CURVES) <= pipeline.period
    assert pipeline.stage_one.period <= pipeline.period
    assert found.layer.work[COMPUTE] <= pipeline.period
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    assert pipeline.period <= cost.sequential_us(ops, 2048) * (1 + 1e-9)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_any_schedule_that_passes_the_replay_is_above_the_fluid_bound(layer, seed):
    drawn = random_schedule(layer, CURVES, np.random.default_rng(seed), draws=3)
    if drawn is not None:
        assert drawn.schedule.period >= fluid_bound(layer.work, CURVES) * (1 - 1e-9)


def test_the_replay_notices_each_kind_of_mistake(layer):
    good = one_after_another(layer).schedule
    ops, exponents = layer.ops, CURVES.exponents
    assert violations(ops, *good, exponents) == []
    assert any("GEMMs" in line for line in violations(ops, 1000.0, good.starts, good.shares, exponents))
    early = (*good.starts[:2], 0.0, *good.starts[3:])
    assert any("before" in line for line in violations(ops, good.period, early, good.shares, exponents))
    assert any("sum to" in line for line in violations(ops, good.period, early, good.shares, exponents))
    half = tuple(0.5 for _ in ops)
    slow = Schedule(4 * good.period, tuple(4 * s for s in good.starts), half)
    assert violations(ops, *slow, exponents) == []
    together = (slow.starts[0], slow.starts[0], *slow.starts[2:])
    assert any("one stream" in line for line in violations(ops, slow.period, together, half, exponents))


def test_a_search_that_forgets_dependencies_fails_the_replay_and_the_numerics():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    found = search(ops, 2048, CURVES, np.random.default_rng(0), SMALL, dependent=False).found
    assert any("before" in line for line in violations(found.layer.ops, *found.schedule, CURVES.exponents))
    assert (
        differences(found.layer, found.schedule.starts, torch.Generator().manual_seed(0), 2048).max() > 1e-2
    )


def test_nano_batches_in_the_schedules_order_compute_the_same(pipeline, layer):
    for found in (pipeline.found, one_after_another(layer)):
        generator = torch.Generator().manual_seed(1)
        assert differences(found.layer, found.schedule.starts, generator, 2048).max() < 1e-5


def test_nothing_is_gained_where_all_operators_need_one_resource():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    alike = {name: op.on(COMPUTE) for name, op in ops.items()}
    found = search(alike, 2048, CURVES, np.random.default_rng(0), SMALL)
    assert found.period == pytest.approx(cost.sequential_us(ops, 2048))


def test_the_compiled_list_schedule_gives_the_ends_of_the_interpreted_one(layer, monkeypatch):
    rng = np.random.default_rng(5)
    drawn = [
        Choice(tuple(rng.choice(8, len(layer.ops)) / 8), tuple(rng.integers(1, 21, len(layer.ops)) / 20))
        for _ in range(20)  # with equal priorities among them
    ]
    never = Choice(drawn[0].priorities, (1.5,) * len(layer.ops))
    evaluator = Evaluator(layer, CURVES)
    fast = [evaluator.period(choice) for choice in [*drawn, never]]
    monkeypatch.setattr(list_schedule, "compiled", lambda: list_schedule.list_schedule)
    assert fast == [evaluator.period(choice) for choice in [*drawn, never]]
    assert fast[-1] == np.inf and np.isfinite(fast[:-1]).all()


def test_polishing_never_lengthens_a_periodic_draft(layer):
    choice, period = anneal(layer, CURVES, staggered(layer, 2048), np.random.default_rng(2), 200)
    found = checked(layer, CURVES, choice, 2)
    if found is not None:
        assert found.schedule.period <= period * (1 + 1e-3)


def test_reuse_saves_half_a_round_more_with_every_round():
    ones = np.ones(50, dtype=int)
    for k in (2, 3, 5):  # k rounds of equal length: 1 + 2 + ... + k against k
        assert compute_saved([k] * (50 // k), ones, ones, True) == pytest.approx((k + 1) / 2)
    assert compute_saved([5], ones, ones, False) == 1.0


def test_sequential_latency_at_the_tables_batch_is_the_table():
    latency = sequential_latency()
    period = latency.fixed + 2048 * (latency.per_token + workload_context(cost.TABLE_WORKLOAD))
    assert period * 80 / 1000 == pytest.approx(225.05)


small_requests = st.lists(
    st.tuples(st.integers(0, 400).map(lambda x: x / 16), st.integers(1, 60), st.integers(1, 50)),
    min_size=1,
    max_size=20,
).map(lambda rows: Requests(*(np.array(column) for column in zip(*sorted(rows), strict=True))))


@given(work=small_requests, tokens=st.integers(4, 64), late=st.integers(0, 3), capacity=st.integers(140, 500))
@settings(max_examples=40, deadline=None)
def test_dense_batches_give_the_same_times_in_the_stepped_engine(work, tokens, late, capacity):
    policy = DenseBatch(tokens, average_output=20.0, late=late)

    def finished(kind):
        trace = simulate(
            work, lambda loop: kind(loop, sequential_latency(), PagedMemory(capacity, 4), policy)
        )
        return trace.finish, trace.first_token

    for mine, theirs in zip(finished(Instance), finished(SteppedInstance), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


def test_a_dense_batch_is_filled_to_the_token_and_an_end_is_seen_late():
    work = Requests(np.zeros(3), np.array([100, 100, 100]), np.array([5, 5, 5]))
    sizes = []

    class Watched(type(sequential_latency())):
        def iteration(self, chunks, decodes, context):
            sizes.append(decodes + sum(new for new, _ in chunks))
            return super().iteration(chunks, decodes, context)

    ends = []
    for late in (0, 1):
        sizes.clear()
        latency = Watched(12_500.0, 0.0, 0.0)  # a second for 80 layers
        trace = simulate(
            work,
            lambda loop, latency=latency, late=late: Instance(
                loop, latency, PagedMemory(10_000), DenseBatch(128, 5.0, late)
            ),
        )
        assert sizes[1] == 128  # the rest of one prompt, a decode, and a piece of the next prompt
        ends.append(trace.finish)
    assert ends[1][0] > ends[0][0]


SMOKE = Config(
    models=["deepseek-67b"],
    exponents=[],
    splits=1,
    walks=1,
    evaluations=30,
    refined=30,
    nodes=1,
    requests=60,
    seconds=1.0,
    conversations=50,
    traces=["lmsys"],
    resolution=0.5,
)


def test_the_same_configuration_gives_the_same_bytes_and_prints_nothing(capfd):
    def bytes_of() -> str:
        return "\n".join(str(row) for row in run(SMOKE, Runtime([0], workers=1)))

    assert bytes_of() == bytes_of()
    assert capfd.readouterr() == ("", "")


def observed(config, *metrics):
    return run(config, Runtime([0, 1], workers=1, wanted=metrics))


@pytest.mark.parametrize("whole", [256, 2048, 16_384])
def test_a_pipeline_is_replayed_at_the_dense_batch_it_was_planned_for(whole):
    """Two nano-batches of the whole batch, any size: the plane meets the period of the replay within its own error."""
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    made = halved(ops, whole)
    choice = Choice(staggered(made, whole), tuple(0.3 for _ in made.ops))
    cuts = {name: even_cuts(whole, 2) for name in ops}
    latency, error = overlapped_latency(cuts, choice, CURVES, whole=whole)
    plane = latency.fixed + latency.per_token * whole + latency.attention * ops["Attn"].work(whole)
    assert plane == pytest.approx(Evaluator(made, CURVES).period(choice), rel=error + 1e-9)


def test_the_sequential_schedule_put_through_the_judge_gains_nothing():
    """A share of the optimum is over the sequential schedule's own: where that comes back, nothing is left."""
    model = "share_of_optimum_llama_2_70b"
    seen = observed(replace(SMOKE, gemms_only=True), model, f"sequential_{model}")
    assert seen.values(model) == pytest.approx(seen.values(f"sequential_{model}"))
    off = observed(replace(SMOKE, overlap=False), model, f"sequential_{model}")
    assert max(off.values(model)) < min(off.values(f"sequential_{model}"))


def test_schedules_drawn_at_random_are_feasible_and_differ_by_seed():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    periods = set()
    for seed in range(4):
        found = drawn(ops, 2048, CURVES, np.random.default_rng(seed), Effort()).found
        assert violations(found.layer.ops, *found.schedule, CURVES.exponents) == []
        periods.add(found.schedule.period)
    assert len(periods) == 4


def test_streams_without_control_meet_the_closed_forms_of_small_layers(layer):
    a, b = Operator("A", COMPUTE, 0.0, 1 / 256), Operator("B", MEMORY, 0.0, 1 / 256)
    whole = split_layer({"A": a, "B": b}, 256, {})
    assert fair_period(whole, CURVES) == pytest.approx(2.0)  # one batch: nothing runs together
    halves = split_layer({"A": a, "B": b}, 256, {"A": (128,), "B": (128,)})
    straight = fair_period(halves, interference(1.0, 1.0))
    assert straight == pytest.approx(2.0)  # P = R: what overlaps takes as long as it did alone
    assert 1.0 < fair_period(halves, CURVES) < 2.0
    assert fair_period(layer, CURVES) >= fluid_bound(layer.work, CURVES)


def test_tokens_behind_an_end_are_counted_by_the_engine():
    work = Requests(np.zeros(8), np.full(8, 50), np.full(8, 40))
    assert wasted_share(work, 0) == 0
    for late in (1, 4):
        assert wasted_share(work, late) == pytest.approx(late / 40)


@pytest.mark.parametrize("pair", ["gemm", "gemm+gemm", "", "decode_attention"])
def test_one_kernel_is_no_pair(pair):
    for function in (naive_gain, hidden_share):
        with pytest.raises(ValueError, match="no kernels that ran together"):
            function(pair, measured_streams())


@pytest.mark.parametrize(
    "wrong",
    [
        {"traces": []},
        {"traces": ["lmsys", "lmsys"]},
        {"pair": "gemm"},
        {"late": -1},
        {"batch": 3},
        {"search": "naive", "overlap": False},
        {"search": "random", "dependencies": False},
        {"one_resource": True, "gemms_only": True},
        {"gpu_context": 8},
        {"network_exponent": 0.1},
    ],
)
def test_what_cannot_run_is_refused_in_one_line(wrong):
    project = Project.current()
    with pytest.raises(LabError) as refused:
        compose(project, "nanoflow", "smoke").with_settings(wrong, "SET")
    assert "\n" not in str(refused.value) and next(iter(wrong)).split("_")[0] in str(refused.value)


def test_public_functions_refuse_what_means_nothing():
    ops = cost.operators(LLAMA_2_70B, cost.TABLE_WORKLOAD)
    for call in (
        lambda: Workload(-1, 5),
        lambda: Workload(0, 0),
        lambda: cost.throughput(LLAMA_2_70B, float("nan")),
        lambda: CURVES.performance(MEMORY, 1.5),
        lambda: CURVES.performance(MEMORY, float("nan")),
        lambda: fluid_bound({COMPUTE: float("inf")}, CURVES),
        lambda: even_cuts(2048, 0),
        lambda: DenseBatch(late=-1),
        lambda: rounds_of(np.random.default_rng(0), 5, 0.5),
        lambda: compute_saved([3], np.ones(2), np.ones(2), True),
        lambda: differences(plain(ops, 2048), (0.0,), torch.Generator(), 2048),
    ):
        with pytest.raises(ValueError):
            call()
    check(Config())


def test_workload_averages_follow_the_steady_state():
    even = Workload(512, 512)
    assert even.decode_context == pytest.approx(0.5 * 768)
    assert Workload(512, 0).decode_context == 0
