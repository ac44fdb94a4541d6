"""Real snapshot processes, trainers and kills: what survives, what is rebuilt, what is reported."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch.distributed as dist

from common.distributed.faults import Fault, Plan
from common.distributed.fleet import Fleet, RankFailed
from common.lab.runtime import Observations, Runtime
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from papers.in_memory_ft.config import Config
from papers.in_memory_ft.engines import Work, measure
from papers.in_memory_ft.fault_matrix import Scenario, run_scenario, scenarios, steps_needed, undisturbed
from papers.in_memory_ft.measurements import load_ahead, save_and_load, strike
from papers.in_memory_ft.recovery import Nodes, Ports, Switches
from papers.in_memory_ft.replicas import Replica, Windows
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving
from papers.in_memory_ft.snapshot_process import Snapshot, Stale
from papers.in_memory_ft.state import payload_bytes
from papers.in_memory_ft.training_job import Blow, Job, Outcome, run_job

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memfd and abstract sockets of Linux"
)
SHAPE = Shape(vocab=128, hidden=16, layers=2, heads=2, kv_heads=2, mlp=32, context=8)
Calm = Callable[[Layout], Outcome]
TEXT = bytes(range(32, 127)) * 40


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    load_ahead()
    with Fleet() as started:
        yield started


def job(layout: Layout, folder: Path, every: int = 1, **changes: object) -> Job:
    saving = Saving(every, 2048, shards=layout.data if layout.zero == 0 else 1)
    made = Job(
        SHAPE, layout, Recipe(dropout=0.1), TEXT, steps_needed(every), 12, saving, 2 * every, every, folder
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def calm(fleet: Fleet) -> Calm:
    """Undisturbed runs, once a layout: neither snapshots nor folders are in them."""

    @cache
    def run(layout: Layout) -> Outcome:
        return undisturbed(fleet, job(layout, Path(os.devnull)))

    return run


def named(name: str, group: int = 2) -> Scenario:
    return next(one for one in scenarios(group) if one.name == name)


def _trained(rank: int, world: int, layout: Layout, steps: int) -> list[list[float]]:
    found = []
    for kind in (Trainer, Replica):
        trainer = kind(SHAPE, form_groups(layout, rank), Recipe())
        windows = Windows.of(TEXT, SHAPE.context, 0)
        found.append([trainer.step(windows.batch(4)) for _ in range(steps)])
        dist.barrier()
    return found


def test_one_reduction_of_all_gradients_trains_as_one_a_tensor_does(fleet: Fleet) -> None:
    each, one = fleet.run(_trained, 2, (Layout(data=2), 5))[0]
    assert one == pytest.approx(each, rel=1e-5)


@pytest.mark.parametrize("name", ["torn version", "damaged parity", "snapshot process"])
def test_after_a_blow_everything_is_as_if_it_had_not_been(
    fleet: Fleet, calm: Calm, tmp_path: Path, name: str
) -> None:
    scenario = named(name)
    work = job(scenario.layout, tmp_path / "disk")
    row = run_scenario(fleet, scenario, work, calm(work.layout))
    assert row.exact
    assert row.source == scenario.source
    assert (name == "damaged parity") == bool(row.reports)


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("trainer", Switches(inside=True)),
        ("mid-snapshot", Switches(double=False)),
    ],
)
def test_without_the_mechanism_only_the_disk_is_left(
    fleet: Fleet, calm: Calm, tmp_path: Path, name: str, switches: Switches
) -> None:
    scenario = named(name)
    work = job(scenario.layout, tmp_path / "disk")
    row = run_scenario(fleet, scenario, work, calm(work.layout), switches)
    assert row.exact
    assert (scenario.source, row.source) == ("memory", "disk")


def test_without_checksums_damage_is_loaded_and_training_goes_wrong(
    fleet: Fleet, calm: Calm, tmp_path: Path
) -> None:
    scenario = named("damaged parity")
    work = job(scenario.layout, tmp_path / "disk")
    row = run_scenario(fleet, scenario, work, calm(work.layout), Switches(sums=False))
    assert row.source == "memory"
    assert not row.exact
    assert not row.reports


def test_both_tensor_ranks_of_a_lost_node_come_back(fleet: Fleet, calm: Calm, tmp_path: Path) -> None:
    layout = Layout(tensor=2, data=2)
    work = job(layout, tmp_path / "disk")
    blow = Blow(Plan((Fault(layout.tensor, "settled", "kill", 4),)), nodes=((0, 1),))
    outcome = run_job(fleet, work, blow=blow)
    assert [start.source for start in outcome.starts] == ["first values", "memory"]
    for seen, known in zip(outcome.reports, calm(layout).reports, strict=True):
        assert all(known.losses[step] == loss for step, loss in seen.losses.items())
        assert all(known.digests[step] == digest for step, digest in seen.digests.items())


def test_bytes_copied_held_and_sent_are_those_of_the_method(fleet: Fleet, tmp_path: Path) -> None:
    work = replace(job(Layout(data=3), tmp_path), steps=4, persist=0)
    outcome = run_job(fleet, work)
    state = outcome.reports[0].state_bytes
    block = -(-payload_bytes(state, 3) // 2) + (-(-payload_bytes(state, 3) // 2)) % 8
    assert sum(report.copied[0] for report in outcome.reports) == state
    assert all(copied <= -(-state // 3) for report in outcome.reports for copied in report.copied)
    assert outcome.reports[0].largest_bucket == 2048
    for account in outcome.account.values():
        assert account["sent"] in range(4 * 2 * block, 4 * 2 * block + 8 * 8 + 1, 8)
        assert account["memory"] >= 2 * 3 * block


def test_a_snapshot_process_outlives_its_trainer_and_ends_with_the_fleet(tmp_path: Path) -> None:
    load_ahead()
    with Fleet() as fleet:
        nodes = Nodes(fleet, Layout(data=2), tmp_path, Switches(), Ports())
        pids = [nodes.pid(node) for node in nodes.seats]
        with pytest.raises(RankFailed):
            fleet.run(_dies, 2, ())
        assert all(nodes.alive(node) for node in nodes.seats)
        assert nodes.ask((0, 0), "inventory") == {}
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def _dies(rank: int, world: int) -> None:
    Plan((Fault(1, "here", "kill"),)).reached(rank, "here")
    dist.barrier()


def test_what_an_attempt_that_failed_still_sends_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    nodes = Nodes(fleet, Layout(data=2), tmp_path, Switches(), Ports())
    nodes.ask((0, 0), "reserve", 0, 100)
    nodes.ask((0, 0), "settle", None, 1)
    with pytest.raises(Stale, match="attempt 0"):
        nodes.ask((0, 0), "begin", 0, Snapshot(0, 2, None))
    assert nodes.ask((0, 0), "begin", 0, Snapshot(1, 2, None)).nbytes == 100


def test_engines_save_and_load_the_same_bytes_in_about_the_seconds_of_their_devices(
    fleet: Fleet, tmp_path: Path
) -> None:
    rates = Rates(200e6, 40e6, 5e6)
    engines = ("torch.save", "CheckFreq", "TorchSnapshot", "REFT")
    work = Work(engines, ("whole disk", "sharded disk"), 1 << 20, 2, rates, seeds=(0,))
    (found,) = measure(fleet, work, tmp_path)
    assert found.saves["REFT"].copied * 2 == found.saves["CheckFreq"].copied == 1 << 20
    assert found.saves["CheckFreq"].seconds >= (1 << 20) / 5e6
    assert (
        found.saves["REFT"].seconds < found.saves["TorchSnapshot"].seconds < found.saves["CheckFreq"].seconds
    )
    assert all(memory < disk for disk, memory in found.loads.values())


def test_a_switch_that_is_off_shows_in_one_seed_and_all_struck_ones_count(
    fleet: Fleet, tmp_path: Path
) -> None:
    config = Config(hidden=32, context=8, group=2, every=1, scenarios=["node"], parity=False)
    seen, lab = Observations(), Runtime([3, 4, 5], wanted=["exact_node"])
    strike(config, lab, seen, fleet, tmp_path)
    assert seen.values("exact_node") == [0.0]
    assert {row.seed for row in seen.rows("redone_steps")} == {3}


def test_a_snapshot_in_one_bucket_has_no_middle(fleet: Fleet, calm: Calm, tmp_path: Path) -> None:
    work = replace(job(Layout(data=2), tmp_path / "disk"), saving=Saving(1, 1 << 30, shards=2))
    with pytest.raises(ValueError, match="no middle"):
        run_scenario(fleet, named("mid-snapshot"), work, calm(work.layout))
    with pytest.raises(ValueError, match="at least 1"):
        Saving(0)


def test_free_copies_leave_the_stated_size_and_no_difference(fleet: Fleet, tmp_path: Path) -> None:
    config = Config(state_bytes=1 << 20, peers=2, step_seconds=60.0, devices="unlimited")
    seen, lab = Observations(), Runtime([0], wanted=["snapshot_rate_gain"])
    save_and_load(config, lab, seen, fleet, tmp_path)
    assert seen.values("stated_bytes") == [50 * (1 << 20)]
    assert seen.values("snapshot_rate_gain") == [1.0]
