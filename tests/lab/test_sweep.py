"""Sweeps: every combination runs once, under one parent; what fails is named and the rest stands."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.record import Record
from common.lab.sweep import plan, sweep
from common.lab.sweep_summary import collect, summary_csv
from common.lab.tracking import PARENT, Store
from tests.lab.test_reproduce import descendants, wait_for
from tests.lab.toy import lab, start, write_project


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def runs(root: Path) -> list[Any]:
    client = Store(Project(root)).client
    return client.search_runs([each.experiment_id for each in client.search_experiments()])


def only_folder(root: Path) -> Path:
    (folder,) = (root / "outputs" / "sweep" / "toy").iterdir()
    return folder


def test_points_are_all_combinations_in_hydras_order(toy: Project) -> None:
    made = plan(toy, "toy", "smoke", ["paper.requests=1,2", "seeds=3", "paper.noise.scale=0.1,0.2"])
    assert [tuple(point.values()) for point in made.points] == [
        ("1", "0.1"),
        ("1", "0.2"),
        ("2", "0.1"),
        ("2", "0.2"),
    ]
    assert made.fixed == ("seeds=3",)


def test_ranges_and_lists_are_values_too(toy: Project) -> None:
    assert plan(toy, "toy", "smoke", ["paper.requests=range(1,4)"]).axes == {
        "paper.requests": ("1", "2", "3")
    }
    assert plan(toy, "toy", "smoke", ["paper.rates=[1,2],[3]"]).axes == {"paper.rates": ("[1,2]", "[3]")}


@pytest.mark.parametrize(
    ("overrides", "launcher", "message"),
    [
        ((), "joblib", "needs a key with several values"),
        (("seeds=3",), "joblib", "needs a key with several values"),
        (("paper.requsts=1,2",), "joblib", "unknown key. Did you mean paper.requests"),
        (("paper.requests=1,1",), "joblib", "lists a value twice"),
        (("paper.requests=1,2", "paper.requests=3,4"), "joblib", "is given twice"),
        (("paper.requests=1,many",), "joblib", "'many' is no whole number"),
        (("seeds=1,0",), "joblib", "a whole number from 1"),
        (("seeds=1,2",), "condor", "unknown LAUNCHER 'condor'; one of joblib, local, slurm"),
        (("seeds=1,2",), "slurm", "needs a Slurm cluster"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    toy: Project, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], launcher: str, message: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(LabError, match=re.escape(message)):
        sweep(toy, "toy", "smoke", overrides, launcher)
    assert not toy.outputs.exists()


def test_a_sweep_on_this_machine(tmp_path: Path) -> None:
    root = write_project(tmp_path / "a project")
    settings = "paper.requests=5,500 paper.noise.scale=0.1,0.2 seeds=3"
    ended = lab(root, "sweep", "toy", "--profile", "smoke", "--set", settings)
    assert ended.returncode == 0, ended.stderr
    folder = only_folder(root)
    assert (folder / "summary.png").read_bytes()[:4] == b"\x89PNG"
    table = [row for row in rows(folder) if row["claim"] == "gain"]
    assert [(row["paper.requests"], row["paper.noise.scale"]) for row in table] == [
        ("5", "0.1"),
        ("5", "0.2"),
        ("500", "0.1"),
        ("500", "0.2"),
    ]
    for number, row in enumerate(table):  # each point ran with the values that its row names
        record = Record.load(folder / str(number) / "results.json")
        assert record.provenance.config["requests"] == int(row["paper.requests"])
        assert record.provenance.config["noise"]["scale"] == float(row["paper.noise.scale"])
        assert len(record.provenance.seeds) == 3
        assert record.claims[0].mean == float(row["mean"])
        assert row["mean"] in ended.stdout or f"{float(row['mean']):.3g}" in ended.stdout
    (parent,) = [run for run in runs(root) if PARENT not in run.data.tags]
    children = [run for run in runs(root) if PARENT in run.data.tags]
    assert {run.data.tags[PARENT] for run in children} == {parent.info.run_id}
    assert sorted(run.data.params["requests"] for run in children) == ["5", "5", "500", "500"]
    assert parent.data.params["requests"] == "5,500"
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}


def test_a_sweep_through_submitit_where_one_point_fails(tmp_path: Path) -> None:
    root = write_project(tmp_path / "a project")
    settings = "paper.fail=true,false"
    ended = lab(root, "sweep", "toy", "--profile", "smoke", "--set", settings, "--launcher", "local")
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["error: paper.fail=True: RuntimeError: the experiment broke"]
    failed, *fine = rows(only_folder(root))
    assert failed["error"] == "RuntimeError: the experiment broke" and not failed["claim"]
    assert {row["claim"]: row["verdict"] for row in fine} == {
        "gain": "reproduced",
        "peak": "reproduced",
        "slow": "weaker",
        "kernel": "not run",
    }
    assert sorted(run.info.status for run in runs(root)) == ["FAILED", "FINISHED", "FINISHED"]


def test_a_killed_sweep_leaves_no_process_and_no_run_behind(tmp_path: Path) -> None:
    root = write_project(tmp_path / "a project")
    with start(root, "sweep", "toy", "--profile", "smoke", "--set", "paper.wait=0,600") as process:
        wait_for(lambda: list((root / "outputs").rglob("0/results.json")))
        children = descendants(process.pid)
        process.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    Store(Project(root)).bury_the_dead()  # as the next command does
    assert sorted(run.info.status for run in runs(root)) in (
        ["FINISHED", "KILLED"],  # the second point had not begun
        ["FINISHED", "KILLED", "KILLED"],
    )


def test_a_store_that_goes_away_during_a_sweep_costs_no_point(tmp_path: Path) -> None:
    root = write_project(tmp_path / "a project")
    settings = ("--profile", "smoke", "--set", "paper.wait=4,5")
    with start(root, "sweep", "toy", *settings, PAPERLAB_WORKERS="1", LOKY_MAX_CPU_COUNT="2") as process:
        wait_for(lambda: len([run for run in runs(root) if PARENT in run.data.tags and run.data.params]) == 2)
        (root / "mlflow" / "mlflow.db").write_text("this is no database any more")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "2 points" in out
    assert err.count("not tracked: the MLflow store") == len(err.splitlines()) == 3, err
    assert [row["verdict"] for row in rows(only_folder(root)) if row["claim"] == "gain"] == ["reproduced"] * 2


def test_a_killed_sweep_leaves_no_temporary_file_to_the_next(tmp_path: Path) -> None:
    root, temporary = write_project(tmp_path / "a project"), tmp_path / "temporary"
    temporary.mkdir()
    settings = ("--profile", "smoke", "--set")
    surroundings = {"TMPDIR": str(temporary), "PAPERLAB_WORKERS": "2"}
    with start(root, "sweep", "toy", *settings, "paper.wait=500,600", **surroundings) as process:
        wait_for(lambda: list(temporary.glob("paperlab-*/pymp-*")))
        process.kill()
        process.wait()
    ended = lab(root, "sweep", "toy", *settings, "seeds=2,3", **surroundings)
    assert ended.returncode == 0, ended.stderr
    assert list(temporary.iterdir()) == []


def test_a_point_that_left_nothing_did_not_finish(tmp_path: Path) -> None:
    (outcome,) = collect(tmp_path, [{"seeds": "1"}])
    assert (outcome.name, outcome.error) == ("seeds=1", "did not finish")
    assert summary_csv([outcome]).splitlines()[1] == "1,,,,,,,did not finish"
