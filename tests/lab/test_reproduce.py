"""`reproduce` from the command line, under good and bad treatment: all of it, or one clear line and nothing at all."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from common.lab.project import Project
from common.lab.record import Record
from common.lab.staging import put_into_place, staging
from common.lab.tracking import Store
from tests.lab.toy import lab, start, write, write_project

FILES = ["config.yaml", "notebook.html", "notebook.ipynb", "observations.json", "results.json"]
PATIENCE = 90.0  # seconds for a run to get as far as a test waits for


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def error_line(ended: "subprocess.CompletedProcess[str]") -> str:
    """The one line of a command that failed."""
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.stderr
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def runs(project: Project, status: str) -> list[Any]:
    client = Store(project).client
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [run for run in client.search_runs(experiments) if run.info.status == status]


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, str]]:
    """A project (its path has a space) in which the toy was reproduced once, and what that printed."""
    root = write_project(tmp_path_factory.mktemp("reproduced") / "a project")
    ended = lab(root, "reproduce", "toy", "--profile", "smoke", "--set", "paper.requests=20")
    assert ended.returncode == 0, ended.stderr
    yield Project(root), ended.stdout


def test_a_reproduction_prints_the_table_of_claims(reproduced: tuple[Project, str]) -> None:
    _, printed = reproduced
    for row in ("simulated", "up to 3 ratio", "without holds", "not run, needs a GPU: kernel"):
        assert row in printed


def test_a_reproduction_leaves_its_outputs_and_nothing_else(reproduced: tuple[Project, str]) -> None:
    project, _ = reproduced
    outputs = project.outputs / "toy"
    assert sorted(path.name for path in outputs.iterdir() if path.is_file()) == FILES
    assert [path.name for path in (outputs / "figures").iterdir()] == ["gain.png"]
    assert list((project.outputs / ".staging").iterdir()) == []
    record = Record.load(outputs / "results.json")
    assert [claim.verdict for claim in record.claims] == ["reproduced", "reproduced", "not run"]
    assert all(claim.control is not None and claim.control.holds for claim in record.claims[:2])
    assert yaml.safe_load((outputs / "config.yaml").read_text())["paper"]["requests"] == 20
    assert "not run, needs a GPU: kernel" in (outputs / "notebook.html").read_text()


def test_the_run_is_tracked_with_params_metrics_per_seed_tags_and_artifacts(
    reproduced: tuple[Project, str],
) -> None:
    project, _ = reproduced
    (run,) = runs(project, "FINISHED")
    client = Store(project).client
    record = Record.load(project.outputs / "toy" / "results.json")
    assert run.data.params["requests"] == "20" and run.data.params["noise.scale"] == "0.05"
    history = client.get_metric_history(run.info.run_id, "gain")
    assert {entry.step: entry.value for entry in history} == dict(enumerate(record.claims[0].values))
    assert run.data.tags["verdict.gain"] == "reproduced" and run.data.tags["control.gain"] == "holds"
    assert run.data.tags["code"] == record.provenance.code
    assert sorted(item.path for item in client.list_artifacts(run.info.run_id)) == sorted([*FILES, "figures"])


def test_the_same_config_and_seeds_give_the_same_bytes(
    reproduced: tuple[Project, str], tmp_path: Path
) -> None:
    project, _ = reproduced
    settings = ("toy", "--profile", "smoke", "--set", "paper.requests=20")
    assert lab(project.root, "config", *settings, "--to", str(tmp_path / "config.json")).returncode == 0
    ended = lab(project.root, "bare", "toy", str(tmp_path / "config.json"), str(tmp_path / "seen.json"))
    assert ended.returncode == 0, ended.stderr
    again = json.loads((tmp_path / "seen.json").read_text())["observations"]
    assert again == json.loads((project.outputs / "toy" / "observations.json").read_text())


def test_a_killed_reproduction_loses_nothing_and_the_next_works(reproduced: tuple[Project, str]) -> None:
    project, _ = reproduced
    before, finished = snapshot(project.outputs / "toy"), len(runs(project, "FINISHED"))
    with start(project.root, "reproduce", "toy", "--profile", "smoke", "--set", "paper.wait=100") as process:
        relay = wait_for(lambda: list((project.outputs / ".staging").glob("*/progress")))
        children = descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert relay and children
    assert snapshot(project.outputs / "toy") == before
    assert len(runs(project, "RUNNING")) == 1
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    ended = lab(project.root, "reproduce", "toy", "--profile", "smoke")
    assert ended.returncode == 0, ended.stderr
    assert len(runs(project, "RUNNING")) == 0 and len(runs(project, "KILLED")) == 1
    assert len(runs(project, "FINISHED")) == finished + 1
    assert list((project.outputs / ".staging").iterdir()) == []


def test_an_interrupted_reproduction_is_tracked_as_killed(reproduced: tuple[Project, str]) -> None:
    project, _ = reproduced
    before, killed = snapshot(project.outputs / "toy"), len(runs(project, "KILLED"))
    with start(project.root, "reproduce", "toy", "--profile", "smoke", "--set", "paper.wait=100") as process:
        wait_for(lambda: list((project.outputs / ".staging").glob("*/progress")))
        children = descendants(process.pid)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "error: interrupted" in err and "Traceback" not in err
    assert snapshot(project.outputs / "toy") == before
    assert list((project.outputs / ".staging").iterdir()) == []
    assert len(runs(project, "KILLED")) == killed + 1
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def test_a_failing_experiment_is_one_line_and_tracked_as_failed(reproduced: tuple[Project, str]) -> None:
    project, _ = reproduced
    before = snapshot(project.outputs / "toy")
    ended = lab(project.root, "reproduce", "toy", "--profile", "smoke", "--set", "paper.fail=true", "--quiet")
    assert error_line(ended).endswith("notebooks/toy.ipynb, cell 2: RuntimeError: the experiment broke")
    assert snapshot(project.outputs / "toy") == before
    assert len(runs(project, "FAILED")) == 1


def test_four_reproductions_at_once_all_finish_and_never_mix(tmp_path: Path) -> None:
    project = Project(
        write_project(tmp_path / "project")
    )  # a fresh one: the store is made by all four at once
    asked = {requests: tmp_path / f"out{requests}" for requests in (11, 12, 13)}
    started = [
        start(
            project.root, "reproduce", "toy", "--profile", "smoke", "--quiet",
            "--set", f"paper.requests={requests}", "--target", str(target),
        )
        for requests, target in asked.items()
    ]  # fmt: skip
    started.append(start(project.root, "reproduce", "toy", "--profile", "smoke", "--quiet"))
    for process in started:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0 and err == "", err
    for requests, target in {**asked, 10: project.outputs / "toy"}.items():
        record = Record.load(target / "results.json")
        assert record.provenance.config["requests"] == requests
        assert yaml.safe_load((target / "config.yaml").read_text())["paper"]["requests"] == requests
        seen = json.loads((target / "observations.json").read_text())
        assert [row["value"] for row in seen if row["metric"] == "gain"] == record.claims[0].values
        assert sorted(path.name for path in target.iterdir() if path.is_file()) == FILES
    finished = runs(project, "FINISHED")
    assert sorted(run.data.params["requests"] for run in finished) == ["10", "11", "12", "13"]


@pytest.mark.parametrize("moved_in", [True, False])
def test_outputs_that_a_killed_process_had_moved_away_come_back(tmp_path: Path, moved_in: bool) -> None:
    project = Project(tmp_path)
    target, dead = project.outputs / "toy", project.outputs / ".staging" / "toy-999999999-1-abcd"
    write(dead / "replaced" / "results.json", "earlier")
    write(dead / "target", str(target))
    if moved_in:
        write(target / "results.json", "new")
    with staging(project, "toy") as workspace:
        assert [path.name for path in workspace.parent.iterdir()] == [workspace.name]
    assert (target / "results.json").read_text() == ("new" if moved_in else "earlier")


def test_new_outputs_replace_all_of_the_earlier_ones(tmp_path: Path) -> None:
    project = Project(tmp_path)
    write(project.outputs / "toy" / "old.txt", "old")
    with staging(project, "toy") as workspace:
        write(workspace / "outputs" / "new.txt", "new")
        put_into_place(project, workspace, workspace / "outputs", project.outputs / "toy")
    assert snapshot(project.outputs / "toy") == {"new.txt": b"new"}


# --- mistakes and hostile surroundings: before anything is run -------------------------------------------------------


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("untouched") / "project")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tyo",), "unknown paper 'tyo'. Did you mean toy?"),
        (("toy", "--profile", "tiny"), "toy has no profile 'tiny'; it has: smoke, default, cuda"),
        (("toy", "--set", "paper.requets=1"), "Valid: paper.requests, paper.rates"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    untouched: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in error_line(lab(untouched, "reproduce", *arguments))
    assert not (untouched / "outputs").exists() and not (untouched / "mlflow").exists()


def test_the_cuda_profile_without_a_gpu_says_what_runs_without_one(untouched: Path) -> None:
    ended = lab(untouched, "reproduce", "toy", "--profile", "cuda", CUDA_VISIBLE_DEVICES="")
    assert "PROFILE=cuda needs a GPU" in error_line(ended)
    assert "smoke, default and full run without one" in ended.stderr and "`not run`" in ended.stderr
    assert not (untouched / "outputs").exists()


def test_debug_shows_the_trace(untouched: Path) -> None:
    ended = lab(untouched, "reproduce", "tyo", DEBUG="1")
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "error: unknown paper" in ended.stderr


@pytest.mark.parametrize("blocked", ["mlflow", "outputs"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, blocked: str) -> None:
    root = write_project(tmp_path / "project")
    (root / blocked).write_text("a file where a folder should be")
    assert "can't be written" in error_line(lab(root, "reproduce", "toy", "--profile", "smoke", "--quiet"))
    assert not (root / "outputs" / "toy").exists()


@pytest.mark.parametrize("uri", ["sqlite:////proc/none/store.db", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path, uri: str) -> None:
    root = write_project(tmp_path / "project")
    ended = lab(root, "reproduce", "toy", "--profile", "smoke", "--quiet", MLFLOW_TRACKING_URI=uri)
    assert f"the MLflow store {uri} can't be used" in error_line(ended)
    assert not (root / "outputs" / "toy").exists() and not (root / "mlflow").exists()
