"""Llumnix's mechanisms against the step-by-step engine, hand calculation, published quantiles and invariants."""

import math
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lab import bounds
from common.lab.card import Card
from common.lab.errors import LabError
from common.lab.runtime import Runtime
from common.serving.cluster import Fleet, Replicas
from common.serving.engine import Instance, simulate
from common.serving.latency import Line
from common.serving.link import Link
from common.serving.loop import COPY
from common.serving.memory import PagedMemory
from common.serving.workload import Workload
from papers.llumnix.auto_scaling import Scaling, cluster_freeness, instances_needed
from papers.llumnix.cluster import migrate_alone, serve
from papers.llumnix.config import Config, check
from papers.llumnix.experiment import run
from papers.llumnix.freeness import (
    Load,
    Rules,
    dispatch_freeness,
    migration_freeness,
    pair,
)
from papers.llumnix.global_scheduler import FreestFirst, Llumnix, Setup
from papers.llumnix.lengths import draw_trace, power_law_lengths
from papers.llumnix.llama_on_a10 import KV_BLOCKS, KV_BYTES, LlamaOnA10
from papers.llumnix.local_scheduler import PreemptionLoss, PromptsFirst, submit
from papers.llumnix.migration import LiveMigration, Stages
from papers.llumnix.runs import find_rates, requests_of
from papers.llumnix.samples import fragmented_blocks
from papers.llumnix.scaling_study import Summary, cheapest, gain_at
from tests.common.serving.reference import SteppedGroup, SteppedInstance
from tests.common.serving.test_engine import DYADIC, assert_same, dyadic_arrivals, workload

# Lengths


@pytest.mark.parametrize(
    ("mean", "quantiles"),
    [
        (128, (35, 104, 413, 1721)),
        (256, (30, 161, 1284, 4567)),
        (512, (53, 593, 3129, 5242)),
    ],
)
def test_lengths_have_the_published_quantiles(mean, quantiles):
    drawn = power_law_lengths(mean, np.random.default_rng(1), 400_000)
    assert np.percentile(drawn, (50, 80, 95, 99)) == pytest.approx(quantiles, rel=0.04)
    assert drawn.max() <= 6144 and drawn.min() >= 1


def test_an_unknown_mean_is_refused():
    with pytest.raises(KeyError, match="128, 256, 512"):
        power_law_lengths(100, np.random.default_rng(0), 10)


# Freeness, by hand


def test_freeness_is_free_blocks_a_request():
    load = Load(total=100, free=48, reserve=8, running=4)
    assert migration_freeness(load, Rules()) == 10
    assert dispatch_freeness(load, Rules()) == 10


def test_queued_demand_makes_freeness_negative():
    load = Load(total=100, free=20, running=4, queued=1, queued_blocks=50)
    assert migration_freeness(load, Rules()) == -6
    assert migration_freeness(load, Rules(queued_demand=False)) == 5
    assert dispatch_freeness(load, Rules()) == -6


def test_empty_instances_are_infinitely_free_and_draining_ones_never():
    assert migration_freeness(Load(100, 100), Rules()) == math.inf
    assert migration_freeness(Load(100, 100, draining=True), Rules()) == -math.inf


def test_headroom_keeps_normal_requests_away_and_draws_important_ones_together():
    with_priority = Load(total=851, free=800, running=5, priority=True)
    without = Load(total=851, free=400, running=5)
    rules = Rules(target=100)
    assert dispatch_freeness(with_priority, rules) < dispatch_freeness(without, rules)
    assert dispatch_freeness(with_priority, rules, priority=True) > dispatch_freeness(
        without, rules, priority=True
    )
    assert migration_freeness(with_priority, rules) == (800 - 751) / 5
    assert migration_freeness(with_priority, Rules(target=None)) == 160


def test_pairs_join_the_least_free_with_the_freest():
    freeness = [10.0, -2.0, 1.0, 50.0, 7.0]
    assert pair(freeness, [False] * 5, lowest=3.0) == [(1, 3), (2, 0)]
    assert pair(freeness, [False, False, False, True, False], lowest=3.0) == [(1, 0), (2, 4)]
    assert pair([5.0, 6.0], [False, False], lowest=3.0) == []


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12), st.data())
def test_no_instance_is_paired_twice(freeness, data):
    preempted = data.draw(st.lists(st.booleans(), min_size=len(freeness), max_size=len(freeness)))
    pairs = pair(freeness, preempted, 3.0)
    ends = [end for one in pairs for end in one]
    assert len(ends) == len(set(ends))
    assert all(preempted[source] or freeness[source] < 3 for source, _ in pairs)
    assert all(freeness[target] > 3 and not preempted[target] for _, target in pairs)


def test_fragmented_memory_is_what_queued_heads_could_take_together():
    assert fragmented_blocks(80, [30, 30, 30]) == 60
    assert fragmented_blocks(80, []) == 0
    assert fragmented_blocks(20, [30]) == 0


def test_scaling_orders_as_many_instances_as_bring_freeness_back():
    full = Load(total=100, free=0, running=10)
    assert cluster_freeness([full], dispatch=True) == 0
    assert instances_needed([full], Scaling(low=10)) == 1  # (0 + 100) / 10
    assert instances_needed([full], Scaling(low=15)) == 2
    assert instances_needed([full], Scaling(low=1000, most=4)) == 3


def test_equal_latency_is_compared_along_the_frontier():
    def point(instances, ttft):
        return Summary(instances, ttft)

    ours = [point(8.0, 1.0), point(4.0, 100.0)]
    assert cheapest(ours, 10.0) == pytest.approx(6.0)  # half way on the logarithm
    assert cheapest(ours, 0.5) is None
    assert cheapest(ours, 1000.0) == 4.0
    assert gain_at([point(12.0, 10.0)], ours, 10.0) == pytest.approx(2.0)
    assert gain_at([point(12.0, 0.5)], ours, 0.5) == 1.0  # ours never gets there: nothing is gained
    assert gain_at([point(4.0, 0.5)], ours, 0.5) == pytest.approx(0.5)
    beaten = [*ours, point(7.9, 10.0), point(9.0, 2.0)]  # two points that the frontier itself undercuts
    assert all(gain_at(beaten, beaten, one.ttft_p99) == 1.0 for one in beaten)


# The cluster against the step-by-step engine


class SteppedGroupWithBase(SteppedGroup):
    """The stepped group with the one derived number that a migration reads."""

    def join(self, sequence):
        super().join(sequence)
        sequence.base = sequence.context - self.step


class SteppedLlumnixInstance(SteppedInstance):
    def new_group(self):
        return SteppedGroupWithBase(self.memory.block_tokens, self.memory.grows)


def small(loop, instance_type, capacity, instances, kept, scaling=None, stages=None, lowest=2.0, target=4):
    """A small cluster on dyadic numbers, so that both engines meet the same ties."""

    def build():
        made = instance_type(
            loop,
            DYADIC,
            PagedMemory(capacity, 16, 0.0),
            PromptsFirst(PreemptionLoss(), 64, 6),
            records_tokens=True,
        )
        made_instances.append(made)
        return made

    made_instances = []
    fleet = Fleet(loop, build, instances, start_seconds=0.5)
    setup = Setup(
        lowest=lowest,
        scaling=scaling,
        bytes_per_s=8.0,
        sample_seconds=0.0,
        block_bytes=1.0,
        round_seconds=0.25,
        message_seconds=1 / 64,
        stages=stages or Stages(2, 1),
    )
    kept.append((Llumnix(loop, fleet, setup, target=target), made_instances))
    return kept[-1][0]


class Important:
    """Every third request has priority."""

    def __init__(self, inner):
        self.inner = inner

    def submit(self, sequence):
        sequence.priority = int(sequence.index % 3 == 0)
        self.inner.submit(sequence)


@given(
    requests=dyadic_arrivals,
    capacity=st.integers(112, 300),
    instances=st.integers(2, 3),
    stages=st.sampled_from([Stages(2, 1), Stages(3, 2), Stages(3, 10**9)]),
    scaled=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_time_stamps_equal_the_stepped_ones_and_every_block_comes_back(
    requests, capacity, instances, stages, scaled
):
    scaling = Scaling(1.0, 2.0, 1.0, 1, 4) if scaled else None
    traces, kept = [], []
    for instance_type in (Instance, SteppedLlumnixInstance):
        traces.append(
            simulate(
                requests,
                lambda loop, t=instance_type: Important(
                    small(loop, t, capacity, instances, kept, scaling, stages)
                ),
            )
        )
    assert_same(*traces)
    (fast, fast_made), (slow, slow_made) = kept
    assert [one.outcome for one in fast.migrations] == [one.outcome for one in slow.migrations]
    assert fast.queued_moves == slow.queued_moves
    assert not fast.migrating
    for made in [*fast_made, *slow_made]:
        assert made.memory.free == made.memory.capacity
        assert not made.waiting and not made.unfinished()


def test_migrations_commit_and_abort_in_these_workloads():
    """The test above would be empty if nothing ever migrated."""
    kept = []
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.integers(0, 64, 60)) / 8
    requests = Workload(arrival, rng.integers(1, 60, 60), rng.integers(1, 50, 60))
    for lowest in (2.0, 0.25):
        simulate(requests, lambda loop, low=lowest: small(loop, Instance, 160, 3, kept, lowest=low))
    outcomes = {one.outcome for system, _ in kept for one in system.migrations}
    assert {"committed", "no room"} <= outcomes


def test_without_migration_it_is_infaas_bit_by_bit():
    requests = draw_trace("512-512", np.random.default_rng(3), 300).scaled(4.0)
    off = serve(requests, Setup(migration=False)).trace

    def infaas(loop):
        instances = [
            Instance(loop, LlamaOnA10(), PagedMemory(KV_BLOCKS * 16, 16), PromptsFirst(PreemptionLoss()))
            for _ in range(16)
        ]
        return Replicas(instances, FreestFirst(Rules(target=None)))

    plain = simulate(requests, infaas)
    assert np.array_equal(off.finish, plain.finish) and np.array_equal(off.first_token, plain.first_token)
    assert np.array_equal(off.finish, serve(requests, Setup("infaas++")).trace.finish)


def test_with_priorities_ignored_it_is_llumnix_base_bit_by_bit():
    requests = draw_trace("512-512", np.random.default_rng(3), 200).scaled(1.15)
    priority = (np.arange(200) % 5 == 0).astype(np.int64)
    ignored = serve(requests, Setup(instances=4, prioritises=False), priority)
    base = serve(requests, Setup("llumnix-base", 4), priority)
    assert np.array_equal(ignored.trace.finish, base.trace.finish)
    assert not np.array_equal(serve(requests, Setup(instances=4), priority).trace.finish, base.trace.finish)


@pytest.mark.parametrize(
    ("trace", "rate", "setup"),
    [
        ("512-512", 1.15, Setup(instances=4)),
        ("256-256", 3.2, Setup(instances=4, lowest=10.0, random_pairs=2)),
        ("512-512", 0.7, Setup(instances=2, scaling=Scaling(25.0, most=4))),
        ("128-128", 12.0, Setup(instances=4, memory_share=0.3)),
    ],
)
def test_instances_that_are_not_counted_could_not_have_given(monkeypatch, trace, rate, setup):
    requests = draw_trace(trace, np.random.default_rng(6), 200, 2.0).scaled(rate)
    asked, counted = [], Llumnix._may_give
    monkeypatch.setattr(Llumnix, "_may_give", lambda *which: asked.append(counted(*which)) or asked[-1])
    lazy = serve(requests, setup)
    monkeypatch.setattr(Llumnix, "_may_give", lambda *_: True)
    whole = serve(requests, setup)
    assert np.array_equal(lazy.trace.finish, whole.trace.finish) and lazy.migrations == whole.migrations
    assert not all(asked)


def test_queued_requests_alone_move_without_any_copy():
    requests = draw_trace("512-512", np.random.default_rng(5), 300).scaled(1.15)
    run_ = serve(requests, Setup(instances=4, move_running=False))
    assert run_.migrations == [] and run_.migrating_seconds == 0 and run_.queued_moves > 0


# One migration, by hand

STAGES = Stages()


def two(loop):
    """Two empty instances whose every iteration takes 1 s, whatever it computes."""
    return [
        Instance(
            loop, OneSecond(), PagedMemory(1600, 16, 0.0), PromptsFirst(PreemptionLoss()), records_tokens=True
        )
        for _ in range(2)
    ]


class OneSecond:
    stages = 1

    def iteration(self, chunks, decodes, context):
        return 1.0, 1.0

    def decode_line(self, decodes, context):
        return Line(1.0, 0.0, math.inf)


def migrate_at(time, requests, block_seconds, stages=STAGES, room=None):
    """Serve on the first instance and migrate request 0 at `time` over a wire; trace, log and instances."""
    log, made = [], []

    def build(loop):
        source, target = two(loop)
        made.extend((source, target))
        if room is not None:
            target.memory.free = room

        def begin(_):
            source.at_boundary(start)

        def start():
            one = next(iter(source.slots[0].group.members))
            link = Link(1.0 / block_seconds)
            LiveMigration(source, target, one, link, 1.0, stages, lambda m, how: log.append(how)).stage()

        loop.at(time, COPY, begin)
        return Replicas([source], FreestFirst(Rules()))

    return simulate(requests, build), log, made


def test_a_live_migration_stops_the_request_for_its_last_blocks_only():
    """320 tokens are 20 full blocks; at 4.5 s the fifth iteration runs and ends at 5 s with 324 stored.

    Stage 1 sends 20 of the 21 blocks in 10 s while ten tokens follow; at 15 s 334 tokens are stored, so that 1 block is
    left: half a second of downtime.
    """
    trace, (how,), (source, target) = migrate_at(4.5, workload((0.0, 320, 40)), 0.5)
    assert (how.outcome, how.stages) == ("committed", 2)
    assert how.downtime == pytest.approx(0.5)
    assert trace.finish[0] == pytest.approx(40 + 0.5)
    assert np.diff(trace.token_times[0]).max() == pytest.approx(1.5)
    assert source.memory.free == target.memory.free == 100


def test_a_blocking_copy_stops_it_for_all_of_them():
    trace, (how,), _ = migrate_at(4.5, workload((0.0, 320, 40)), 0.5, Stages(last_stage_blocks=10**9))
    assert (how.outcome, how.stages) == ("committed", 1)
    assert how.downtime == pytest.approx(21 * 0.5)
    assert np.diff(trace.token_times[0]).max() == pytest.approx(1 + 21 * 0.5)


@pytest.mark.parametrize(
    ("output", "room", "block_seconds", "outcome"),
    [(8, None, 0.5, "finished"), (40, 19, 0.5, "no room"), (900, None, 18.0, "too many stages")],
)
def test_an_aborted_migration_changes_nothing_for_its_request(output, room, block_seconds, outcome):
    trace, (how,), (source, target) = migrate_at(4.5, workload((0.0, 320, output)), block_seconds, room=room)
    assert how.outcome == outcome
    assert trace.finish[0] == pytest.approx(output)
    assert source.memory.free == 100 and target.memory.free == (room or 100)


def test_a_request_preempted_while_it_migrates_aborts_and_is_recomputed():
    requests = workload((0.0, 320, 40), (0.0, 1200, 60))
    log, made = [], []

    def build(loop):
        source, target = two(loop)
        made.extend((source, target))

        def start():
            first = next(one for one in source.slots[0].group.members if one.index == 1)
            LiveMigration(
                source, target, first, Link(2.0), 1.0, Stages(), lambda m, how: log.append(how)
            ).stage()

        loop.at(1.5, COPY, lambda _: source.at_boundary(start))
        return Replicas([source], FreestFirst(Rules()))

    trace = simulate(requests, build)
    assert trace.preemptions.tolist() == [0, 1]  # 96 blocks at first, one more every 8 tokens or so, of 100
    assert log[0].outcome == "preempted"
    assert [one.memory.free for one in made] == [100, 100]


# Priorities, preemption, fleets


def test_high_priority_requests_go_first_and_are_preempted_last():
    def build(loop):
        inner = Replicas(two(loop)[:1], FreestFirst(Rules()))

        class High:
            def submit(self, sequence):
                sequence.priority = int(sequence.index == 2)
                submit(inner.instances[0], sequence)

        return High()

    trace = simulate(workload((0.0, 1500, 3), (0.5, 1400, 2), (0.75, 1400, 2)), build)
    assert trace.first_token[2] < trace.first_token[1]


def test_preemption_loss_is_waiting_and_prefilling_again_less_a_step():
    loss = PreemptionLoss()

    def build(loop):
        one = Instance(loop, OneSecond(), PagedMemory(160, 16, 0.0), PromptsFirst(loss))
        return Replicas([one], FreestFirst(Rules()))

    trace = simulate(workload((0.0, 80, 40), (0.0, 70, 40)), build)
    assert trace.preemptions.tolist() == [0, 1]
    # The later one leaves when both need a block and none is left, and is back when the first is done.
    gap = trace.finish[0] - trace.preemptions[0]
    assert 0 < loss.seconds < gap


def test_a_fleet_counts_what_it_pays_for():
    def build(loop):
        fleet = Fleet(loop, lambda: two(loop)[0], 1, start_seconds=4.0)
        loop.at(2.0, COPY, lambda _: fleet.start(1))
        loop.at(8.0, COPY, lambda _: fleet.drain(fleet.serving[-1]))
        loop.at(10.0, COPY, lambda _: fleet.settle())
        kept.append(fleet)
        return Replicas(fleet.serving, FreestFirst(Rules()))

    kept = []
    simulate(workload((0.0, 1, 20)), build)
    assert kept[0].average(20.0) == pytest.approx((20 + 8) / 20)
    with pytest.raises(ValueError, match="last serving"):
        kept[0].drain(kept[0].serving[0])


def test_draining_by_migration_empties_an_instance_sooner():
    requests = draw_trace("512-512", np.random.default_rng(0), 150).scaled(2.0)
    scaling = Scaling(low=5.0, most=4)
    averages = [
        serve(requests, Setup(instances=4, scaling=scaling, drain_by_migration=drains)).average_instances
        for drains in (True, False)
    ]
    assert averages[0] < averages[1]


def test_the_latency_model_reads_weights_and_caches_once_an_iteration():
    model = LlamaOnA10()
    weights = 13.48e9 / 450e9
    assert model.iteration([], 4, 4000)[0] == pytest.approx(weights + 4000 * KV_BYTES / 450e9)
    line = model.decode_line(4, 4000)
    assert line.intercept + line.slope * 4000 == pytest.approx(model.iteration([], 4, 4000)[0])
    assert model.iteration([(1000, 0)], 0, 0)[0] == pytest.approx(1000 * 13.48e9 / 60e12)


# The experiment

TINY = Config(
    traces=["512-512"],
    levels=[0.9],
    requests=60,
    instances=3,
    knee_draws=1,
    priority_cvs=[2.0],
    priority_requests=120,
    scaling_cvs=[],
    scaling_thresholds=[10.0],
    scaling_requests=60,
)
SIMULATED = ["ttft_p99_gain", "preemption_gain", "priority_ttft_mean_gain", "instances_gain"]


def tiny(config=TINY, kept=None, wanted=SIMULATED):
    return run(config, Runtime([0], workers=1, wanted=wanted, kept=kept))


def test_same_seeds_give_the_same_bytes_and_so_do_arms_that_share_runs():
    kept = {}
    first = tiny(kept=kept)
    off = tiny(replace(TINY, migration=False), kept)
    assert first.to_json() == tiny(kept=kept).to_json() == tiny().to_json()
    assert off.to_json() == tiny(replace(TINY, migration=False)).to_json()


def test_with_migration_off_every_gain_is_gone():
    seen = tiny(replace(TINY, migration=False), wanted=["ttft_p99_gain", "instances_gain"])
    assert seen.values("ttft_p99_gain") == [1.0] and seen.values("request_mean_gain") == [1.0]
    assert seen.values("instances_gain") == [1.0]
    assert not seen.rows("priority_ttft_mean_gain")


def test_rates_of_a_trace_are_the_same_searched_together_or_alone():
    config, places = replace(TINY, requests=250), [("512-512", 0.4), ("512-512", 0.6)]
    together = find_rates(config, Runtime([0], workers=1), places)
    assert together == {
        k: v for one in places for k, v in find_rates(config, Runtime([0], workers=1), [one]).items()
    }
    assert together[places[0]].per_s < together[places[1]].per_s and together[places[1]].reached


def test_a_run_too_short_to_fill_the_cluster_says_that_its_level_was_not_reached():
    (rate,) = find_rates(TINY, Runtime([0], workers=1), [("512-512", 0.99)]).values()
    assert rate == (8 * 2.9 * 3 / 16, False)
    seen = tiny(replace(TINY, levels=[0.99]), wanted=["ttft_p99_gain"])
    assert seen.values("levels_reached") == [0.0]


def test_runs_of_all_traces_last_as_long_at_the_authors_rates():
    assert requests_of(Config(), "512-512") == 2000
    assert requests_of(Config(), "128-512") == round(2000 * 4.25 / 2.9)
    assert requests_of(Config(), "512-128") == 10_000  # the artifact's most


def test_the_ends_of_free_constants_lie_above_the_floors_of_their_claims():
    card = Card.load(Path(__file__).parents[2] / "papers/llumnix/paper.yaml")
    for claim in card.claims:
        if "high_share" in claim.free:
            least = min(claim.free["high_share"]) * Config().priority_requests
            assert least >= claim.requires["high_requests"]


def test_aborted_migrations_are_counted_with_the_bytes_that_they_lost():
    run_ = serve(draw_trace("512-512", np.random.default_rng(5), 300).scaled(1.15), Setup(instances=4))
    lost = [one for one in run_.migrations if one.outcome != "committed"]
    assert lost and sum(one.bytes for one in lost) > 0
    done = [one for one in run_.migrations if one.outcome == "committed"]
    assert all(one.bytes > 0 for one in done)


def test_random_pairs_are_as_many_and_need_no_freeness():
    requests = draw_trace("512-512", np.random.default_rng(5), 200).scaled(1.15)
    ours, drawn, again = (serve(requests, Setup(instances=4, random_pairs=seed)) for seed in (-1, 3, 3))
    assert np.array_equal(drawn.trace.finish, again.trace.finish)
    assert not np.array_equal(drawn.trace.finish, ours.trace.finish)


def test_a_live_migration_stops_for_its_last_blocks_at_any_length():
    live = [migrate_alone(tokens)[1].downtime for tokens in (512, 6144)]
    blocking = [migrate_alone(tokens, stages=Stages(last_stage_blocks=10**9))[1] for tokens in (512, 6144)]
    assert max(live) < 0.2
    assert blocking[1].downtime > 8 * blocking[0].downtime * 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("move", "teleport"),
        ("start_seconds", -5.0),
        ("migration_lengths", [64]),
        ("migration_lengths", [8000]),
        ("migration_lengths", [64, 8000]),
        ("high_share", 1.0),
        ("bytes_per_s", 0.0),
        ("levels", []),
        ("traces", ["foo"]),
        ("scaling_thresholds", []),
        ("priority_cvs", []),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(field, value):
    marks = typing.get_type_hints(Config, include_extras=True)[field].__metadata__
    with pytest.raises(LabError, match=field) as refused:
        bounds.check(value, marks, field)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "switched",
    [
        {"migration_lengths": [512, 1024]},
        {"high_share": 0.01, "priority_requests": 100},
        {"migration": False, "pairing": "random"},
        {"prioritises": False, "told": "random"},
        {"move": "recompute", "append_only": False},
    ],
)
def test_switches_that_a_run_would_ignore_are_refused(switched):
    check(Config())
    with pytest.raises(ValueError):
        check(replace(Config(), **switched))


@pytest.mark.parametrize("tokens", [0, -1, 9000])
def test_a_request_that_no_instance_holds_does_not_migrate(tokens):
    with pytest.raises(ValueError, match="1 to 8,192"):
        migrate_alone(tokens)


@pytest.mark.parametrize(
    ("field", "value"), [("bytes_per_s", 0.0), ("start_seconds", -5.0), ("memory_share", math.nan)]
)
def test_an_impossible_cluster_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        serve(draw_trace("128-128", np.random.default_rng(0), 5), replace(Setup(), **{field: value}))


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="round-robin"):
        serve(draw_trace("128-128", np.random.default_rng(0), 5), Setup("nonsense"))
