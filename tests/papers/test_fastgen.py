"""The agreement, the closed loop, the token curve and the replicas against closed forms; the experiment on little."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.models.decoder import Decoder, DecoderConfig
from common.serving.metrics import slowest_running_rate, token_gaps
from common.serving.trace import Trace
from papers.fastgen import live_comparison
from papers.fastgen.agreement import Agreement, effective_throughput, slowest_rates, successful, throughput
from papers.fastgen.closed_loop import (
    POLICIES,
    Load,
    PassSizes,
    Slower,
    WithoutKnee,
    default_policy,
    draw,
    pass_seconds,
    serve,
)
from papers.fastgen.config import Config
from papers.fastgen.deployments import Deployment
from papers.fastgen.experiment import run
from papers.fastgen.latency_curve import LatencyCurve, slowdown_for
from papers.fastgen.load_sweep import AS_AGREED, AT_EQUAL
from papers.fastgen.splitfuse import DynamicSplitFuse, RandomFill
from papers.fastgen.token_curve import (
    A100_CURVE,
    MADE_UP,
    concave_fit,
    concave_share,
    concavity,
    explained,
    knee,
    makespan,
    split,
)

LLAMA = Deployment()
SHORT_GAPS = Config(requests=256, pass_tokens=0, live_requests=0)
SHORT = Config(
    requests=32,
    clients=[4, 16],
    ablations=["orca"],
    models=1,
    replicas=[1, 2],
    replica_requests=16,
    pass_tokens=0,
)


def trace_of(prompt: int, times: list[list[float]]) -> Trace:
    """Requests sent at 0 with these token times, seconds."""
    n = len(times)
    ends = np.array([row[-1] for row in times])
    return Trace(
        np.zeros(n),
        np.full(n, prompt),
        np.array([len(row) for row in times]),
        np.array([row[0] for row in times]),
        ends,
        np.zeros(n, int),
        tuple(np.array(row) for row in times),
    )


# The agreement ------------------------------------------------------------------------------------------------------


def test_a_request_must_keep_both_promises() -> None:
    early, late, slow = [1.0, 1.1, 1.2], [1.5, 1.6, 1.7], [1.0, 1.5, 2.0]
    trace = trace_of(512, [early, late, slow])  # the first token is due within 512 / 512 = 1 s
    assert successful(trace, Agreement(4.0)).tolist() == [True, False, False]
    assert effective_throughput(trace, Agreement(4.0)) == 1 / 2.0
    assert effective_throughput(trace, Agreement(2.0)) == 2 / 2.0, "2 tokens/s are gaps of half a second"
    assert throughput(trace) == 3 / 2.0


@given(
    gaps=st.lists(st.lists(st.floats(0.01, 5), max_size=12), min_size=1, max_size=6),
    alpha=st.sampled_from([0.1, 0.2, 0.5, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_the_slowest_rates_of_all_streams_equal_those_of_each(gaps: list[list[float]], alpha: float) -> None:
    trace = trace_of(1, [np.cumsum([1.0, *row]).tolist() for row in gaps])
    each = [slowest_running_rate(times, alpha) for times in trace.token_times]
    np.testing.assert_allclose(slowest_rates(trace, alpha), each)


def test_the_agreement_needs_the_times_of_tokens() -> None:
    without = Trace(*(np.ones(1) for _ in range(6)))
    with pytest.raises(ValueError, match="records_tokens=True"):
        successful(without, Agreement(4.0))


# The closed loop ----------------------------------------------------------------------------------------------------


def test_lengths_are_normal_with_a_spread_of_thirty_percent() -> None:
    drawn = draw(np.random.default_rng(0), 100_000, Load(2600, 60))
    # standard errors over 100,000 draws: 0.3 mean / 316, and of the spread about 0.3 / 447
    assert np.mean(drawn.prompt) == pytest.approx(2600, abs=4 * 0.3 * 2600 / 316)
    assert np.std(drawn.prompt) / 2600 == pytest.approx(0.3, abs=0.005)
    assert drawn.output.min() >= 1


def test_little_law_holds_in_every_closed_loop() -> None:
    """Clients = throughput x latency, but for the drain at the end, when clients are done."""
    workload = draw(np.random.default_rng(1), 400, Load(1200, 60))
    for name in POLICIES:
        trace = serve(workload, 8, default_policy(name), [LLAMA.latency()], LLAMA.kv_tokens)
        latency = float(np.mean(trace.finish - trace.arrival))
        assert throughput(trace) * latency == pytest.approx(8, rel=0.03)
        assert throughput(trace) * latency <= 8


def test_without_split_and_with_enough_memory_splitfuse_is_orca() -> None:
    workload = draw(np.random.default_rng(2), 100, Load(2600, 60))
    orca, whole = (
        serve(workload, 16, default_policy(name), [LLAMA.latency()], LLAMA.kv_tokens)
        for name in ("orca", "no-split")
    )
    np.testing.assert_allclose(orca.finish, whole.finish)


def test_passes_are_full_while_prompts_wait() -> None:
    watched = PassSizes(DynamicSplitFuse(768))
    workload = draw(np.random.default_rng(3), 100, Load(2600, 16))
    serve(workload, 32, watched, [LLAMA.latency()], LLAMA.kv_tokens)
    sizes = [prompt + generation for prompt, generation in watched.passes]
    assert max(sizes) == 768
    assert np.mean(np.array(sizes[: len(sizes) // 2]) == 768) > 0.95


def test_a_slower_replica_does_the_same_more_slowly() -> None:
    workload = draw(np.random.default_rng(4), 60, Load(1200, 60))
    policy = default_policy("fastgen")
    usual, slower = (
        serve(workload, 8, policy, [latency], LLAMA.kv_tokens)
        for latency in (LLAMA.latency(), Slower(LLAMA.latency(), 2.5))
    )
    np.testing.assert_allclose(slower.finish, 2.5 * usual.finish)
    np.testing.assert_allclose(token_gaps(slower), 2.5 * token_gaps(usual))


def test_on_a_device_without_a_knee_all_policies_take_the_same_time() -> None:
    workload = draw(np.random.default_rng(5), 60, Load(1200, 60))
    tokens = int((workload.prompt + workload.output - 1).sum())
    for name in POLICIES:
        trace = serve(workload, 8, default_policy(name), [WithoutKnee(1e-4)], LLAMA.kv_tokens)
        assert trace.finish.max() == pytest.approx(1e-4 * tokens)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(KeyError, match="no policy 'triton'; there is fastgen, vllm"):
        default_policy("triton")


def test_a_fleet_of_nothing_and_an_unknown_balancer_are_refused() -> None:
    workload, latency = draw(np.random.default_rng(0), 4, Load(100, 4)), LLAMA.latency()
    for latencies, balancer, apart in (
        ([], "first", 0.0),
        ([latency], "nobody", 0.0),
        ([latency], "first", np.nan),
    ):
        with pytest.raises(ValueError, match="replicas need"):
            serve(workload, 2, default_policy("fastgen"), latencies, LLAMA.kv_tokens, balancer, apart)


def test_a_prompt_that_stops_all_lengthens_few_gaps_by_much_and_splitfuse_many_by_little() -> None:
    """Section 4.D at 16 clients: below a tenth of vLLM's gaps hold a prompt, and its P90 is a plain decode."""
    seen = run(SHORT_GAPS, Runtime((0,), workers=1, wanted=["tail_ratio_90"]))
    ours, theirs = (seen.values("long_gaps", system=system)[0] for system in ("fastgen", "vllm"))
    assert theirs < 0.1 < 3 * theirs < ours
    assert seen.values("tail_ratio")[0] > 2
    # a decode of 16 sequences over a full pass
    seconds = LLAMA.latency()
    decode = seconds.iteration([], 16, 16 * 2664)[0]
    assert seen.values("tail_ratio_90")[0] == pytest.approx(decode / pass_seconds(seconds, 768), rel=0.1)
    crowd = run(replace(SHORT_GAPS, tail_clients=24), Runtime((0,), workers=1, wanted=["tail_ratio_90"]))
    assert crowd.values("long_gaps", system="vllm")[0] > 0.1 and crowd.values("tail_ratio_90")[0] > 1


def test_prompts_of_a_few_tokens_leave_something_to_fuse_and_nothing_to_split() -> None:
    seen = run(replace(SHORT_GAPS, prompt_tokens=16), Runtime((0,), workers=1, wanted=["tail_ratio"]))
    assert seen.values("tail_ratio_90") == [pytest.approx(1, abs=0.01)]
    # vLLM's gap holds a pass over the prompt, which reads all weights, and one of generation
    assert seen.values("tail_ratio") == [pytest.approx(2, rel=0.03)]
    assert seen.values("long_gaps", system="fastgen") == [0.0]


@pytest.mark.parametrize(("clients", "inside"), [([1], 0), ([32], 0), ([30, 31, 32], 0), ([2, 4, 16, 32], 1)])
def test_a_peak_at_the_edge_of_the_clients_is_not_judged(clients: list[int], inside: int) -> None:
    config = Config(requests=256, clients=clients, pass_tokens=0, live_requests=0)
    seen = run(config, Runtime((0,), workers=1, wanted=[*AS_AGREED, *AT_EQUAL]))
    assert seen.values("peaks_inside") == [inside]
    assert len(seen.values("throughput_gain_at_latency")) == inside, "9 s lie outside of what was tried"


# Curves -------------------------------------------------------------------------------------------------------------


def test_a_curve_is_read_between_its_points_and_a_slowdown_undoes_a_gain() -> None:
    curve = LatencyCurve(np.array([2.0, 4.0, 10.0]), np.array([0.5, 1.0, 1.2]))
    assert curve.throughput_at(3.0) == pytest.approx(0.75)
    assert curve.latency_at(1.1) == pytest.approx(7.0)
    assert np.isnan(curve.latency_at(5.0)), "a rate that is never reached"
    assert np.isnan([curve.latency_at(0.4), curve.throughput_at(1.9), curve.throughput_at(10.1)]).all()
    assert np.isnan(slowdown_for(16.0, curve, curve, 4.0)), (
        "2.0 times slower at most, which 16 needs more than"
    )
    times = slowdown_for(1.5, curve, curve, 4.0)
    assert curve.throughput_at(4.0) / curve.slower(times).throughput_at(4.0) == pytest.approx(1.5, rel=1e-4)


@pytest.mark.parametrize(
    "pair", [([], []), ([1.0], [1.0, 2.0]), ([1.0, np.nan], [1.0, 2.0]), ([1.0, 2.0], [0.0, 1.0])]
)
def test_what_is_no_curve_is_refused(pair: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="curve needs|must be finite"):
        LatencyCurve(*map(np.array, pair))


def test_what_is_no_token_curve_is_refused() -> None:
    for tokens, seconds in (([1, 2, 4], [1.0, 2.0]), ([1, 2], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="no curve of at least"):
            concavity(tokens, np.array(seconds))
    for tokens, seconds in (([2, 1, 4], [1.0] * 3), ([0, 1, 2], [1.0] * 3), ([1, 2, 4], [1.0, np.nan, 1.0])):
        with pytest.raises(ValueError, match="must rise"):
            knee(tokens, np.array(seconds))


def test_concavity_is_above_one_on_a_roof_one_on_a_line_and_below_one_on_a_bowl() -> None:
    tokens = [1, 2, 4, 8, 16, 32, 64]
    counts = np.array(tokens, dtype=float)
    roof = np.maximum(1.0, counts / 16)  # memory-bound up to 16 tokens, compute-bound from there
    assert concavity(tokens, roof) > 1
    assert concave_share(tokens, roof) == 1
    assert knee(tokens, roof) == 16
    assert concavity(tokens, np.ones(7)) == pytest.approx(1), (
        "one second whatever the tokens: a straight line"
    )
    assert concavity(tokens, 1 / counts) < 1
    assert concave_share(tokens, 1 / counts) == 0


def test_the_concave_fit_is_exact_on_a_roof_and_misses_a_bowl() -> None:
    tokens = [1, 2, 4, 8, 16, 32, 64]
    counts = np.array(tokens, dtype=float)
    roof = counts / np.maximum(1.0, counts / 16)
    np.testing.assert_allclose(concave_fit(tokens, np.maximum(1.0, counts / 16)), roof, rtol=1e-6)
    bowl = concave_fit(tokens, 1 / counts)
    assert np.all(np.diff(np.diff(bowl) / np.diff(counts)) <= 1e-9), "what is fitted is concave"
    assert explained(counts**2, bowl) < 0.97


@given(st.lists(st.integers(1, 400), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_equal_passes_are_best_where_the_seconds_of_a_pass_are_convex(sizes: list[int]) -> None:
    """Jensen: a roof is convex in seconds, so that no division of the same tokens beats the equal one."""
    total = sum(sizes) * 4
    roof = lambda tokens: max(1.0, tokens / 64)  # noqa: E731
    equal = makespan(roof, split(total, 4))
    assert equal <= makespan(roof, split(total, 4, 0.5)) + 1e-12
    assert equal <= sum(roof(4 * size) for size in (*sizes, 0)) + 1e-12


def test_equal_passes_are_the_worst_where_seconds_grow_with_the_root() -> None:
    seconds = MADE_UP["root seconds"]
    # sqrt(1.5) + sqrt(0.5) = 1.9319 of 2
    assert makespan(seconds, split(4096, 2, 0.5)) / makespan(seconds, split(4096, 2)) == pytest.approx(
        0.96593, rel=1e-4
    )


def test_equal_passes_win_on_a_roof_and_on_a_staircase_no_more_than_the_tables_can_tell() -> None:
    """Section 3.A on profiled operators: 1.005 on average, half of the sizes below 1; the tables are good to 2%."""
    found = {}
    for curve in ("measured", "roof"):
        config = Config(pass_tokens=0, live_requests=0, curve=curve)
        seen = run(config, Runtime((0,), workers=1, wanted=["equal_split_gain_all_sizes"]))
        found[curve] = seen.values("equal_split_gain_all_sizes")[0]
        by_size = np.array([row.value for row in seen.rows("equal_split_gain_by_pass")])
        assert np.all(by_size >= 1) == (curve == "roof")
    assert abs(found["measured"] - 1) < 0.02 < found["roof"] - 1
    # at the bend itself: (1.5 + 1) / 2
    assert makespan(MADE_UP["roof"], split(4 * 768, 4, 0.5)) / makespan(MADE_UP["roof"], [768] * 4) == 1.25


def test_tokens_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="even number of equal passes"):
        split(100, 3)
    for tokens, passes, wrong, says in (
        (400, 4, 2.0, "a share"),
        (400, 4, np.nan, "a share"),
        (400, 0, 0.0, "even number"),
        (0, 4, 0.0, "even number"),
    ):
        with pytest.raises(ValueError, match=says):
            split(tokens, passes, wrong)


def test_the_profiled_pass_has_two_regions() -> None:
    seconds = partial(pass_seconds, LLAMA.latency())
    assert seconds(64) < 1.5 * seconds(1), "the weights are read either way"
    assert seconds(4096) == pytest.approx(2 * seconds(2048), rel=0.05), "twice the work, twice the time"
    rate = [tokens / seconds(tokens) for tokens in A100_CURVE]
    assert knee(A100_CURVE, np.array([seconds(tokens) for tokens in A100_CURVE])) == 768 and max(rate) < 6000


# The real engine and the experiment ---------------------------------------------------------------------------------


def test_every_policy_gives_the_same_tokens_on_the_real_engine() -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = DecoderConfig(vocab=64, hidden=32, layers=2, heads=2, intermediate=64, positions=512)
        model = Decoder(config, torch.Generator().manual_seed(0))
        requests = live_comparison.draw_requests(np.random.default_rng(0), 10, 64)
        runs = [live_comparison.run_policy(model, requests, name, 48) for name in POLICIES]
    finally:
        torch.set_num_threads(threads)
    assert [live_comparison.same_answers(runs[0], other) for other in runs] == [1.0] * len(POLICIES)
    largest = max(sum(new for new, _ in one.chunks) + one.decodes for one in runs[0].iterations)
    assert largest == 48


def test_the_same_config_and_seeds_give_the_same_bytes() -> None:
    assert (
        run(SHORT, Runtime((0, 1), workers=1)).to_json() == run(SHORT, Runtime((0, 1), workers=1)).to_json()
    )


def test_a_control_computes_only_what_its_claims_read() -> None:
    seen = run(SHORT, Runtime((0,), workers=1, wanted=["tail_ratio"]))
    assert {row.at["clients"] for row in seen.rows("throughput")} == {16}
    assert "scaling_per_replica" not in seen.metrics and "tail_ratio" in seen.metrics


def test_the_same_policy_on_both_sides_gains_nothing() -> None:
    loops = [*AS_AGREED, *AT_EQUAL]
    seen = run(Config(requests=32, system="vllm", pass_tokens=0), Runtime((0,), workers=1, wanted=loops))
    for metric in ("effective_throughput_gain_4", "throughput_gain_at_latency", "latency_gain_at_rate"):
        assert seen.values(metric) == [1.0]


def test_arms_that_share_loops_see_what_they_would_alone() -> None:
    shared = Runtime((0,), workers=1, wanted=["effective_throughput_gain_4"])
    for alpha in (0.2, 0.5):
        config = replace(SHORT, alpha=alpha)
        alone = Runtime((0,), workers=1, wanted=["effective_throughput_gain_4"])
        assert run(config, shared).to_json() == run(config, alone).to_json()


def test_passes_of_the_placebo_vary_about_the_budget_and_no_request_waits_for_ever() -> None:
    watched = PassSizes(RandomFill(np.random.default_rng(0), 768))
    workload = draw(np.random.default_rng(3), 100, Load(2600, 16))
    trace = serve(workload, 32, watched, [LLAMA.latency()], LLAMA.kv_tokens)
    assert np.all(trace.finish > 0)
    sizes = np.array([prompt + generation for prompt, generation in watched.passes])
    sizes = sizes[: len(sizes) // 2]  # while prompts wait
    assert sizes.max() < 2 * 768 and sizes.mean() == pytest.approx(768, rel=0.1) and sizes.std() > 300


def test_clients_that_begin_one_by_one_are_a_closed_loop_all_the_same() -> None:
    workload = draw(np.random.default_rng(6), 60, Load(1200, 60))
    trace = serve(workload, 8, default_policy("fastgen"), [LLAMA.latency()], LLAMA.kv_tokens, apart=0.5)
    np.testing.assert_allclose(np.sort(trace.arrival)[:3], [0.0, 0.5, 1.0])
    for moment in trace.arrival:
        under_way = np.sum((trace.arrival <= moment) & (moment < trace.finish))
        assert 1 <= under_way <= 8


def test_without_a_balancer_one_replica_does_everything() -> None:
    workload = draw(np.random.default_rng(7), 64, Load(600, 30))
    policy = default_policy("fastgen")
    alone, none, turns = (
        throughput(serve(workload, 16, policy, [LLAMA.latency()] * n, LLAMA.kv_tokens, balancer))
        for n, balancer in ((1, "round robin"), (4, "first"), (4, "round robin"))
    )
    assert none == pytest.approx(alone) and turns > 1.5 * alone


@pytest.mark.parametrize(
    "odd",
    [
        "requests=1",
        "replicas=[]",
        "replicas=[4]",
        "replicas=[1,4,2]",
        "models=0",
        "models=8",
        "wrong=2.0",
        "wrong=-1",
        "clients=[]",
        "clients=[16,4]",
        "clients=[0]",
        "budget=1",
        "alpha=0.9",
        "alpha=.nan",
        "system=orca",
        "ablations=[foo]",
        "rival_host_seconds=-1",
        "turns=0",
        "live_requests=-5",
        "gain=0",
        "prompt_tokens=0",
        "tail_clients=0",
        "curve=foo",
    ],
)
def test_an_odd_value_is_refused_in_one_line(odd: str) -> None:
    with pytest.raises(LabError) as error:
        compose(Project.current(), "fastgen", "smoke", [f"paper.{odd}"])
    assert "\n" not in str(error.value) and odd.partition("=")[0] in str(error.value)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ("system=vllm split=false", "splits nothing"),
        ("system=vllm fill=random", "fill"),
        ("requests=32 clients=[64]", "without one"),
        ("pass_tokens=0", "live_requests"),
        ("budgets=[768]", "tried anyway"),
        ("tail_clients=64", "without one"),
        ("replicas=[1,64] replica_requests=10000", "take minutes"),
    ],
)
def test_a_switch_that_a_run_would_ignore_is_refused(odd: str, says: str) -> None:
    with pytest.raises(LabError, match=says):
        compose(Project.current(), "fastgen", "smoke", [f"paper.{each}" for each in odd.split()])


def test_a_load_without_tokens_and_a_draw_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="a token each way"):
        Load(0, 60)
    with pytest.raises(ValueError, match="at least one"):
        draw(np.random.default_rng(0), 0, Load(1, 1))
