"""Ranks that commit and die, the cluster's closed forms, and the experiment as a whole."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.distributed.fleet import Fleet
from common.lab.runtime import Runtime
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape as ShardedShape
from papers.datastates_llm import tiers
from papers.datastates_llm.cluster import ENGINES, Buffer, Phases, Rank, Switches, simulate
from papers.datastates_llm.commit import Commit, declare, file_of, latest, newest_file
from papers.datastates_llm.config import Config, order_of
from papers.datastates_llm.crash import Job, killed_and_resumed
from papers.datastates_llm.experiment import run
from papers.datastates_llm.polaris import FILE_SYSTEM, MODELS, host_rates, ranks
from papers.datastates_llm.timed import Bench, Turn, disagreeing, in_turn, measure
from papers.datastates_llm.training import Shape

TEXT = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 5000))


# commit


def vote(rank: int, world: int, folder: Path, late: int) -> list[int | None]:
    """Three versions; rank 1 finishes version `late` only after rank 0 has finished its last."""
    import torch.distributed as dist

    commit = Commit(folder, rank, world, dist.new_group(list(range(world))), 1)
    side = dist.new_group(list(range(world)))
    seen = []
    for version in (1, 2, 3):
        if rank == 1 and version == late:
            dist.barrier(group=side)
            seen.append(latest(folder))
        path = file_of(folder, version, rank)
        path.write_bytes(bytes(version))
        commit.written(path)
    if rank == 0:
        dist.barrier(group=side)
    commit.finish(3)
    return [*seen, latest(folder)]


def test_a_version_counts_when_the_last_rank_has_its_file(tmp_path: Path) -> None:
    with Fleet() as fleet:
        _, seen = fleet.run(vote, 2, (tmp_path, 2), 30)
    assert seen[0] in (None, 1)  # not 2 or 3, whose files rank 0 has finished
    assert seen[1] == 3
    record = json.loads((tmp_path / "latest").read_text())
    assert record == {"version": 3, "files": {"rank-0.ds": 3, "rank-1.ds": 3}}


def test_latest_is_replaced_as_a_whole_and_files_alone_do_not_count(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for version, rank in ((1, 0), (1, 1), (2, 0)):
        file_of(tmp_path, version, rank).write_bytes(b"x")
    declare(tmp_path, 1, 2)
    assert latest(tmp_path) == 1
    assert (newest_file(tmp_path, 0), newest_file(tmp_path, 1), newest_file(tmp_path, 2)) == (2, 1, None)
    with pytest.raises(FileNotFoundError):
        declare(tmp_path, 2, 2)
    assert latest(tmp_path) == 1


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    shape = ShardedShape(vocab=256, hidden=32, layers=2, heads=4, kv_heads=2, mlp=64, context=16)
    jobs = [Job(Layout(data=2, zero=1), shape, TEXT, 0, 5)]
    found = killed_and_resumed(jobs, tmp_path_factory.mktemp("ranks"), 3)
    return {commit: one for commit, (one,) in found.items()}


def test_after_a_kill_between_two_ranks_writes_all_go_on_from_the_version_before(
    resumed: dict[bool, Any],
) -> None:
    found = resumed[True]
    assert found.finished == (3, 2)  # rank 0's file of version 3 was whole
    assert found.begun == (2, 2)
    assert found.loss_gap == 0.0


def test_without_the_commit_ranks_begin_with_different_versions_and_train_something_else(
    resumed: dict[bool, Any],
) -> None:
    found = resumed[False]
    assert found.begun == found.finished
    assert found.begun[0] > found.begun[1]
    assert found.loss_gap > 0


def test_a_kill_that_nothing_precedes_is_refused(tmp_path: Path) -> None:
    job = Job(Layout(data=2, zero=1), ShardedShape(), TEXT, 0, 5)
    with pytest.raises(ValueError, match="needs a version before it"):
        killed_and_resumed([job], tmp_path, 1)


# the cluster

rates = st.floats(0.5, 20.0)


def rank(**changed: float) -> Rank:
    known = Rank(
        nbytes=12.0, copy=25.0, pageable=16.0, pin=2.7, serialise=1.05, storage=1.0, buffer=16.0, enqueue=0.0
    )
    return replace(known, **changed)


@settings(max_examples=60, deadline=None)
@given(rates, rates, st.floats(0.1, 30.0), st.floats(0.1, 20.0), st.floats(0.0, 1.0))
def test_the_end_of_a_copy_equals_a_fluid_stepped_in_small_times(
    copy: float, storage: float, nbytes: float, room: float, full: float
) -> None:
    buffer = Buffer(rank(nbytes=nbytes, storage=storage, buffer=room))
    buffer.level = full * room
    level, left, now, step = buffer.level, nbytes, 0.0, nbytes / copy / 4000
    while left > 1e-9:
        moved = min(left, copy * step, room - level + storage * step)
        left -= moved
        level = max(0.0, level + moved - storage * step)
        now += step
    end = buffer.take(0.0, copy)
    assert end == pytest.approx(now, rel=2e-3)
    assert buffer.level == pytest.approx(level, abs=2e-2 * room)


def test_the_worked_example_of_seven_billion_on_two_nodes() -> None:
    # 98 GB on 8 GPUs; iteration 3 s; torch.save 0.57 GB/s a rank; 4 GB/s of storage a node, so 1 GB/s a GPU
    one = rank(nbytes=12.25, serialise=1 / (1 / 0.57 - 1.0), storage=1.0)
    phases = Phases(2.9, 0.1)
    alone = simulate("sync", [one], phases, 3, 2).blocked
    assert alone == pytest.approx([12.25 / 0.57])  # 21 s
    assert simulate("datastates", [one], phases, 3, 2).blocked == (0.0,)  # 0.5 s of copy, hidden
    steps = 400
    gain = (
        simulate("sync", [one], phases, steps, 1).total
        / simulate("datastates", [one], phases, steps, 1).total
    )
    assert gain == pytest.approx((3 + 12.25 / 0.57) / 12.25, rel=0.01)  # 2.0: storage-bound


def test_an_unhidden_copy_blocks_for_what_is_left_of_it() -> None:
    slow = rank(copy=2.0, storage=100.0)  # 6 s
    assert simulate("datastates", [slow], Phases(4.0, 0.0), 2, 1).blocked == pytest.approx((2.0,))
    eager = simulate("datastates", [slow], Phases(4.0, 0.0), 2, 1, Switches(lazy=False))
    assert eager.blocked == pytest.approx((6.0,))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ENGINES), rates, st.floats(0.1, 5.0), st.integers(1, 12), st.integers(0, 4))
def test_no_run_is_shorter_than_its_phases_and_its_bytes(
    engine: Any, storage: float, compute: float, steps: int, interval: int
) -> None:
    one, phases = rank(storage=storage), Phases(compute, 0.1)
    found = simulate(engine, [one], phases, steps, interval)
    saved = (steps - 1) // interval if interval else 0
    assert len(found.blocked) == saved
    assert found.total >= max(steps * phases.total, saved * one.nbytes / storage) - 1e-9
    assert all(seconds >= 0 for seconds in found.blocked)
    if not interval:
        assert found.total == pytest.approx(steps * phases.total)
    assert simulate("datastates", [one], phases, steps, interval).total <= found.total + 1e-9


def test_where_storage_is_the_bottleneck_lazy_copies_no_longer_help() -> None:
    model = MODELS["7B"]
    totals = {engine: simulate(engine, ranks(model, 0.5e9), model.phases, 50, 1).total for engine in ENGINES}
    assert totals["snapshot"] == pytest.approx(totals["datastates"], rel=1e-3)
    assert totals["async"] / totals["datastates"] < 1.1
    assert totals["sync"] / totals["datastates"] < 1.2


def test_a_checkpoint_that_does_not_fit_into_host_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit into host memory"):
        simulate("async", [rank(nbytes=20.0)], Phases(1.0, 0.1), 2, 1)
    with pytest.raises(ValueError, match="a replica and a rate at least"):
        ranks(MODELS["7B"], 1e9, 0)


def test_all_ranks_together_hold_one_checkpoint_however_many_replicas() -> None:
    model = MODELS["30B"]
    for replicas in (1, 2, 16):
        kinds = ranks(model, 4e9, replicas)
        each = model.nodes * 4
        total = each * kinds[0].nbytes + each * (replicas - 1) * kinds[-1].nbytes
        assert total == pytest.approx(model.checkpoint_bytes)
        assert kinds[0].storage * 4 <= FILE_SYSTEM / (model.nodes * replicas) + 1e-6
    assert ranks(model, 4e9, 4, through_rank_zero=True)[0].nbytes == model.checkpoint_bytes


def test_host_rates_are_those_of_the_measured_table() -> None:
    found = host_rates()  # 4 GiB: torch.save 7.528 s, of it 3.438 s writing; pinning 1.602 s
    assert found["serialise"] == pytest.approx(2**32 / (7.5282 - 3.4381), rel=1e-4)
    assert found["pin"] == pytest.approx(2**32 / 1.60217, rel=1e-4)
    assert found["pageable"] == pytest.approx(2**30 / 0.0676, rel=1e-3)


# the timed engines, and the experiment


@pytest.mark.parametrize("engine", ENGINES)
def test_the_unthrottled_bench_of_a_gpu_runs_on_a_cpu(engine: Any) -> None:
    bench = Bench(Shape(hidden=32, layers=1, heads=2, context=16), 2, 0, 0)
    found = [measure(bench, [kind], TEXT, 0, 3, 2, read_back=True) for kind in ("sync", engine)]
    assert disagreeing([one.last for one in found]) == 0
    assert found[1].blocked > 0
    assert sum(span.nbytes for span in found[1].copies) == bench.nbytes


def test_a_turns_shares_are_of_its_own_copies() -> None:
    copies = [tiers.Span(name, start, start + 1.0, 1) for name, start in (("a", 1.0), ("b", 2.0))]
    writes = [tiers.Span(name, t, t, 1) for name, t in (("header", 1.0), ("a", 2.0), ("b", 3.0))]
    turn = Turn("datastates", 0.5, tuple(copies), tuple(writes), ())
    assert turn.exposed == 0.25
    assert turn.first_write == 0.5


@pytest.mark.parametrize(("steps", "interval"), [(10, 3), (4, 3), (10, 1), (7, 2)])
def test_sides_go_there_and_back_until_each_has_its_steps(steps: int, interval: int) -> None:
    order = order_of(steps, interval)
    compared, back = order[:-1], order_of(steps, interval, backwards=True)[:-1]
    assert compared == compared[::-1]  # what changes steadily on the way weighs alike on all
    assert {*compared} == {*back} == {"datastates", "async", "eager"}
    assert compared[:2] == ("datastates", "async")
    assert back[0] == "eager"
    assert min(compared.count(side) * interval for side in compared) >= steps


def test_engines_in_turn_save_what_each_would_alone_and_one_waits_for_another_uncounted() -> None:
    bench = Bench(Shape(hidden=64, layers=1, heads=1, context=16), 1, 2e7, 4e6)
    turns = in_turn(bench, TEXT, 0, 2, 1)
    assert [turn.side for turn in turns] == list(order_of(2, 1))
    for turn in turns:
        assert sum(span.nbytes for span in turn.copies) == bench.nbytes
        assert sum(span.nbytes for span in turn.writes) >= bench.nbytes
        assert len(turn.compute) == 1
    for turn, after in zip(turns, turns[1:], strict=False):
        assert turn.writes[-1].end <= after.copies[0].start
    writing = bench.nbytes / 4e6  # eight times a step
    by_side = {side: [t for t in turns if t.side == side] for side in ("datastates", "async", "eager")}
    assert all(turn.exposed >= 0.9 for side in ("async", "eager") for turn in by_side[side])
    assert all(turn.blocked < writing for turn in turns)  # not for the one before
    assert turns[-1].first_write >= 1.0 > by_side["datastates"][0].first_write


def test_a_gpu_copy_waits_for_the_update_and_for_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Stream:
        def wait_stream(self, other: str) -> None:
            told.append(f"behind {other}")

        def synchronize(self) -> None:
            told.append("done")

    class Within:
        def __init__(self, stream: Stream) -> None:
            pass

        def __enter__(self) -> None:
            told.append("on its stream")

        def __exit__(self, *_: object) -> None: ...

    fake = SimpleNamespace(Stream=Stream, current_stream=lambda: "the update", stream=Within)
    monkeypatch.setattr(tiers.torch, "cuda", fake)
    copier = tiers.StreamCopier()
    copier.begin()
    target = torch.zeros(4, dtype=torch.uint8)
    copier.copy(target, torch.arange(4, dtype=torch.uint8))
    assert told == ["behind the update", "on its stream", "done"]
    assert target.tolist() == [0, 1, 2, 3]


TINY = Config(
    hidden=64, layers=1, compute_seconds=0.01, copy_rate=1e8, storage_rate=5e7, steps=4, intervals=[1, 3], versions=2,
    iterations=8, models=["7B", "13B", "30B"], gaps=[1, 4],
)  # fmt: skip


def test_two_runs_observe_the_same_of_all_that_is_no_clock() -> None:
    wanted = ("differing_tensors", "run_gain_sync_7B")
    first, second = (run(TINY, Runtime([0], wanted=wanted)).to_json() for _ in range(2))
    assert first == second
    assert "frequency_slow" in first


def test_a_switch_acts_on_what_training_waits_for_and_all_arms_share_the_training() -> None:
    kept: dict[Any, Any] = {}
    changes: list[dict[str, Any]] = [{}, {"lazy": False}, {"stream": False}]
    wanted = ("exposed_copy_share", "first_write_share")
    lazy, eager, whole = (
        run(replace(TINY, **change), Runtime([0, 1], wanted=wanted, kept=kept)) for change in changes
    )
    assert [row.seed for row in lazy.rows("exposed_copy_share")] == [0, 1]
    assert min(eager.values("exposed_copy_share")) >= 0.9
    assert np.mean(lazy.values("exposed_copy_share")) < np.mean(eager.values("exposed_copy_share"))
    assert min(lazy.values("exposed_copy_share_async")) >= 0.9
    assert lazy.values("exposed_copy_share_async") == eager.values("exposed_copy_share_async")
    assert min(whole.values("first_write_share")) >= 1.0 > min(lazy.values("first_write_share"))
    assert min(lazy.values("timed_steps")) >= TINY.steps
    assert not lazy.rows("run_seconds")


def test_without_ring_and_hiding_nothing_is_left_of_the_gain_on_an_h100() -> None:
    wanted = ("h100_gain_sync",)
    ring, anew = (run(replace(TINY, pool=value), Runtime([0], wanted=wanted)) for value in (True, False))
    assert ring.values("h100_gain_sync") == [pytest.approx(7.5281942 / 0.0778749, rel=1e-5)]
    assert anew.values("h100_gain_sync") == [pytest.approx(7.5281942 / (0.0778749 + 1.6021744), rel=1e-5)]
