"""Real snapshot processes, trainers and kills: what survives, what is rebuilt, what is reported."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from common.distributed.faults import Fault, Plan
from common.distributed.flat_state import FlatState
from common.distributed.fleet import Fleet, RankFailed
from common.lab.runtime import Observations, Runtime
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from papers.in_memory_ft import measurements
from papers.in_memory_ft.buffers import NoVersion
from papers.in_memory_ft.config import Config
from papers.in_memory_ft.engines import Work, measure
from papers.in_memory_ft.fault_matrix import Row, Scenario, run_scenario, scenarios, steps_needed
from papers.in_memory_ft.measurements import load_ahead, save_and_load
from papers.in_memory_ft.recovery import Nodes, Start
from papers.in_memory_ft.replicas import Header, Replica, payload_bytes
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat, Snapshot, Stale, Switches
from papers.in_memory_ft.training_job import Outcome, Report, SavedJob, run_job
from papers.in_memory_ft.waiting import Condition, interval_that_fits, waits

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memfd and abstract sockets of Linux"
)
SHAPE = Shape(vocab=128, hidden=16, layers=2, heads=2, kv_heads=2, mlp=32, context=8)
Calm = Callable[[Layout], Outcome]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    load_ahead()
    with Fleet() as started:
        yield started


def job(layout: Layout) -> Job:
    return Job(SHAPE, layout, Recipe(dropout=0.1), rows=12)


def saved(layout: Layout, folder: Path) -> SavedJob:
    return SavedJob(job(layout), steps_needed(1), Saving(1, 2048, shards=layout.data), 2, 1, folder)


@pytest.fixture(scope="module")
def calm(fleet: Fleet) -> Calm:
    """Undisturbed runs, once a layout: neither snapshots nor folders are in them."""

    @cache
    def run(layout: Layout) -> Outcome:
        return run_job(fleet, replace(saved(layout, Path(os.devnull)), saving=None, persist=0))

    return run


def named(name: str, group: int = 2) -> Scenario:
    return next(one for one in scenarios(group) if one.name == name)


def _trained(rank: int, world: int, layout: Layout, steps: int) -> list[list[float]]:
    found = []
    for kind in (Trainer, Replica):
        trainer, rows = kind(SHAPE, form_groups(layout, rank), Recipe()), Data(job(layout))
        found.append([trainer.step(rows.batch()) for _ in range(steps)])
        dist.barrier()
    return found


def test_one_reduction_of_all_gradients_trains_as_one_a_tensor_does(fleet: Fleet) -> None:
    each, one = fleet.run(_trained, 2, (Layout(data=2), 3))[0]
    assert one == pytest.approx(each, rel=1e-5)


@pytest.mark.parametrize("name", ["torn version", "damaged parity", "snapshot process"])
def test_after_a_blow_everything_is_as_if_it_had_not_been(
    fleet: Fleet, calm: Calm, tmp_path: Path, name: str
) -> None:
    scenario = named(name)
    work = saved(scenario.layout, tmp_path / "disk")
    row = run_scenario(fleet, scenario, work, calm(scenario.layout))
    assert row.exact
    assert row.start.source == scenario.source
    assert (name == "damaged parity") == bool(row.start.reports)


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
    work = saved(scenario.layout, tmp_path / "disk")
    row = run_scenario(fleet, scenario, work, calm(scenario.layout), switches)
    assert row.exact
    assert (scenario.source, row.start.source) == ("memory", "disk")


def test_without_checksums_damage_is_loaded_and_training_goes_wrong(
    fleet: Fleet, calm: Calm, tmp_path: Path
) -> None:
    scenario = named("damaged parity")
    work = saved(scenario.layout, tmp_path / "disk")
    row = run_scenario(fleet, scenario, work, calm(scenario.layout), Switches(sums=False))
    assert row.start.source == "memory"
    assert not row.exact
    assert not row.start.reports


def test_bytes_copied_held_and_sent_are_those_of_the_method(fleet: Fleet, tmp_path: Path) -> None:
    outcome = run_job(fleet, replace(saved(Layout(data=3), tmp_path), steps=4, persist=0))
    state = outcome.reports[0].state_bytes
    block = -(-payload_bytes(state, 3) // 16) * 8
    assert sum(report.copied[0] for report in outcome.reports) == state
    assert all(copied <= -(-state // 3) for report in outcome.reports for copied in report.copied)
    assert all(account["sent"] == 4 * 2 * block for account in outcome.account.values())
    assert all(account["memory"] == 2 * 3 * block for account in outcome.account.values())


def test_a_snapshot_process_outlives_its_trainer_and_ends_with_the_fleet(tmp_path: Path) -> None:
    load_ahead()
    with Fleet() as fleet:
        nodes = Nodes(fleet, Layout(data=2), tmp_path, Switches())
        pids = [started.pid for started in nodes.started.values()]
        with pytest.raises(RankFailed):
            fleet.run(_dies, 2, ())
        assert all(nodes.alive(node) for node in nodes.seats)
        assert nodes.ask((0, 0), "inventory") == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def _dies(rank: int, world: int) -> None:
    Plan((Fault(1, "here", "kill"),)).reached(rank, "here")
    dist.barrier()


def test_what_an_attempt_that_failed_still_sends_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    with Nodes(fleet, Layout(data=2), tmp_path, Switches()) as nodes:
        with pytest.raises(NoVersion, match="keeps nothing"):
            nodes.ask((0, 0), "load", 1)
        nodes.ask((0, 0), "reserve", 100)
        nodes.ask((0, 0), "settle", None, 1)
        with pytest.raises(Stale, match="attempt 0"):
            nodes.ask((0, 0), "begin", Snapshot(0, 2, None))
        assert nodes.ask((0, 0), "begin", Snapshot(1, 2, None)).nbytes == 100


def failing_save(rank: int, world: int, seat: Seat, folder: str) -> tuple[list[str], str]:
    """Errors, by type and text, that a save and an update raise after a file that can't be written."""
    state = FlatState([torch.zeros(4096)])
    saving = Saving(1, 1024, shards=world)
    snapshots = Snapshots(seat, saving, state, persist=lambda version: f"{folder}/file/version")
    header = Header(1, 0, state.nbytes, torch.get_rng_state())
    snapshots.after_step(1, 0, lambda: header)
    errors = []
    for act in (lambda: snapshots.after_step(2, 0, lambda: header), lambda: snapshots.before_update(2)):
        try:
            act()
        except Exception as error:
            errors.append(type(error).__name__)
    return errors, str(snapshots.clean)


def test_the_next_save_and_the_next_update_raise_the_first_error_under_its_own_name(
    fleet: Fleet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with Nodes(fleet, Layout(data=1), tmp_path, Switches()) as nodes:
        ((errors, clean),) = fleet.run(failing_save, 1, (nodes.seats[0, 0], str(tmp_path)))
        held = nodes.ask((0, 0), "inventory")
    assert errors in (["FileExistsError"] * 2, ["NotADirectoryError"] * 2)
    assert clean == "None" and held == [1]


def test_engines_save_and_load_the_same_bytes_in_about_the_seconds_of_their_devices(
    fleet: Fleet, tmp_path: Path
) -> None:
    rates = Rates(200e6, 40e6, 5e6)
    engines = ("torch.save", "CheckFreq", "TorchSnapshot", "REFT")
    work = Work(engines, ("whole disk", "sharded disk"), 1 << 20, 2, rates, seeds=(0,))
    (found,) = measure(fleet, work, tmp_path)
    assert work.turns == [*engines, "REFT", "TorchSnapshot", "CheckFreq"]
    assert found["save", "CheckFreq"] >= (1 << 20) / 5e6
    assert found["save", "REFT"] < found["save", "TorchSnapshot"] < found["save", "CheckFreq"]
    assert all(found["memory", source] < found["disk", source] for source in work.sources)


def test_a_snapshot_in_one_bucket_has_no_middle(fleet: Fleet, calm: Calm, tmp_path: Path) -> None:
    work = replace(saved(Layout(data=2), tmp_path / "disk"), saving=Saving(1, 1 << 30, shards=2))
    with pytest.raises(ValueError, match="no middle"):
        run_scenario(fleet, named("mid-snapshot"), work, calm(Layout(data=2)))
    with pytest.raises(ValueError, match="at least 1"):
        Saving(0)


def test_every_struck_run_counts_and_one_that_fails_with_a_part_switched_off(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet, tmp_path: Path
) -> None:
    def blow(fleet: Fleet, scenario: Scenario, *_: object) -> Row:
        start = Start(1, sources[len(seen.rows("redone_steps"))], (6,))
        return Row(scenario, start, 2, {}, [True] * 20, [True] * 3)

    monkeypatch.setattr(measurements, "run_scenario", blow)
    monkeypatch.setattr(measurements, "run_job", lambda *_: Outcome([Report({}, {}, (), 0)], (), (), {}))
    for parity, sources, exact in ((True, ["memory", "disk", "memory"], 2 / 3), (False, ["disk"], 0.0)):
        seen, lab = Observations(), Runtime([3, 4, 5], wanted=["exact_node"])
        measurements.strike(Config(scenarios=["node"], parity=parity), lab, seen, fleet, tmp_path)
        assert seen.values("exact_node") == [exact]
        assert len(seen.rows("redone_steps")) == len(sources)


def test_snapshots_lie_as_many_steps_apart_as_one_takes_and_all_of_it_is_counted(
    fleet: Fleet, tmp_path: Path
) -> None:
    assert interval_that_fits(Rates()) == 5
    assert interval_that_fits(Rates(12e9, 25e9)) == 2
    modes = tuple(Condition(mode, 2) for mode in ("bucketed", "synchronous"))
    rates = Rates(1e9, 4e9)  # a copy of 0.8 of a step and a parity of 0.2
    (found,) = waits(fleet, job(Layout(data=2)), (0.05, 1 << 15), {0: modes}, 4, rates, tmp_path)
    assert all(one.snapshots == 4 for one in found.values())
    assert found[modes[1]].waited >= found[modes[1]].copied > 0
    assert found[modes[0]].seconds > found[modes[0]].waited


def test_free_copies_leave_the_stated_size_and_no_difference(fleet: Fleet, tmp_path: Path) -> None:
    config = Config(state_bytes=1 << 20, peers=2, slower=1000.0, step_share=0.4, devices="unlimited")
    seen, lab = Observations(), Runtime([0], wanted=["snapshot_rate_gain"])
    save_and_load(config, lab, seen, fleet, tmp_path)
    assert seen.values("stated_bytes") == [1000 * (1 << 20)]
    assert seen.values("snapshot_rate_gain") == [1.0]
