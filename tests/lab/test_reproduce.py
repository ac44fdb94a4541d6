"""`reproduce` from the command line, under good and bad treatment: all of it, or one clear line and nothing at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
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
from common.lab.tracking import Store, database_of, store_uri
from tests.lab.test_owned import NAMESPACE, needs_namespaces
from tests.lab.toy import environment, lab, start, write, write_project

FILES = [
    "arms.json.gz",
    "config.yaml",
    "notebook.html",
    "notebook.ipynb",
    "observations.json",
    "results.json",
]
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
    ended = lab(root, "reproduce", "toy", "--profile", "smoke", "--set", "paper.requests=80")
    assert ended.returncode == 0, ended.stderr
    yield Project(root), ended.stdout


def test_a_reproduction_prints_the_table_of_claims(reproduced: tuple[Project, str]) -> None:
    _, printed = reproduced
    for row in ("simulated", "up to 3 ratio", "% left, breaks it", "not run, needs a GPU: kernel"):
        assert row in printed


def test_a_reproduction_leaves_its_outputs_and_nothing_else(reproduced: tuple[Project, str]) -> None:
    project, _ = reproduced
    outputs = project.outputs / "toy"
    assert sorted(path.name for path in outputs.iterdir() if path.is_file()) == FILES
    assert [path.name for path in (outputs / "figures").iterdir()] == ["gain.png"]
    assert list((project.outputs / ".staging").iterdir()) == []
    assert not (project.root / "mlruns").exists() and not (project.root / "mlartifacts").exists()
    assert list((project.root / "mlflow" / ".mlflow.db.running").iterdir()) == []
    record = Record.load(outputs / "results.json")
    assert [claim.verdict for claim in record.claims] == ["reproduced", "reproduced", "weaker", "not run"]
    assert all(claim.broken_by == ["without"] for claim in record.claims[:3])
    assert yaml.safe_load((outputs / "config.yaml").read_text())["paper"]["requests"] == 80
    assert "not run, needs a GPU: kernel" in (outputs / "notebook.html").read_text()


def test_the_run_is_tracked_with_params_metrics_per_seed_tags_and_artifacts(
    reproduced: tuple[Project, str],
) -> None:
    project, _ = reproduced
    (run,) = runs(project, "FINISHED")
    client = Store(project).client
    record = Record.load(project.outputs / "toy" / "results.json")
    assert run.data.params["requests"] == "80" and run.data.params["noise.scale"] == "0.05"
    history = client.get_metric_history(run.info.run_id, "gain")
    assert {entry.step: entry.value for entry in history} == dict(enumerate(record.claims[0].values))
    assert set(run.data.metrics) == {"gain", "gain_at", "seconds"}, "each metric stands once"
    assert {name: tag for name, tag in run.data.tags.items() if "/" in name} == {
        "verdict/gain": "reproduced",
        "verdict/peak": "reproduced",
        "verdict/slow": "weaker",
        "verdict/kernel": "not run",
    }
    assert run.data.tags["observed"] == record.provenance.observed
    assert sorted(item.path for item in client.list_artifacts(run.info.run_id)) == sorted([*FILES, "figures"])


def test_the_same_config_and_seeds_give_the_same_bytes(
    reproduced: tuple[Project, str], tmp_path: Path
) -> None:
    project, _ = reproduced
    settings = ("toy", "--profile", "smoke", "--set", "paper.requests=80")
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
    for requests, target in {**asked, 60: project.outputs / "toy"}.items():
        record = Record.load(target / "results.json")
        assert record.provenance.config["requests"] == requests
        assert yaml.safe_load((target / "config.yaml").read_text())["paper"]["requests"] == requests
        seen = json.loads((target / "observations.json").read_text())
        assert [row["value"] for row in seen if row["metric"] == "gain"] == record.claims[0].values
        assert sorted(path.name for path in target.iterdir() if path.is_file()) == FILES
    finished = runs(project, "FINISHED")
    assert sorted(run.data.params["requests"] for run in finished) == ["11", "12", "13", "60"]


# --- several runs, and runs that end otherwise -----------------------------------------------------------------------


def test_a_teams_new_sqlite_store_takes_four_reproductions_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, team = Project(write_project(tmp_path / "project")), tmp_path / "team"
    team.mkdir()
    uri = f"sqlite:///{team}/new.db"
    outs = [tmp_path / f"out{number}" for number in range(4)]
    command = ("reproduce", "toy", "--profile", "smoke", "--quiet", "--target")
    started = [start(project.root, *command, str(out), MLFLOW_TRACKING_URI=uri) for out in outs]
    for process in started:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0 and err == "", err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracked = runs(project, "FINISHED")
    assert len(tracked) == 4
    for run in tracked:
        kept = team / "artifacts" / "toy" / run.info.run_id / "artifacts"
        assert sorted(path.name for path in kept.iterdir()) == sorted([*FILES, "figures"])
        assert run.info.artifact_uri == kept.as_uri()
    assert not (project.root / "mlruns").exists() and not (project.root / "mlflow").exists()


def test_the_place_of_a_sqlite_store_does_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for uri in ("sqlite:///new.db", "sqlite+pysqlite:///new.db?timeout=9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert database_of(store_uri(Project(tmp_path))) == tmp_path / "here" / "new.db"
    assert database_of("sqlite://") is None and database_of("http://server:5000") is None


@needs_namespaces
def test_a_run_in_another_container_is_left_alone(tmp_path: Path) -> None:
    project = Project(write_project(tmp_path / "project"))
    command = [sys.executable, "-m", "common.lab", "reproduce", "toy", "--profile", "smoke", "--quiet"]
    with subprocess.Popen(
        [*NAMESPACE, *command, "--set", "paper.wait=15", "--target", str(tmp_path / "out")],
        cwd=project.root, env=environment(project.root), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(lambda: list((project.outputs / ".staging").glob("*/progress")))
        ended = lab(project.root, "reproduce", "toy", "--profile", "smoke", "--quiet")
        assert ended.returncode == 0, ended.stderr
        assert process.poll() is None, "the other one was to outlast this"
        assert len(runs(project, "RUNNING")) == 1
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    assert Record.load(tmp_path / "out" / "results.json").provenance.config["wait"] == 15
    assert len(runs(project, "FINISHED")) == 2


def test_a_store_that_goes_away_during_the_run_costs_no_output(tmp_path: Path) -> None:
    project = Project(write_project(tmp_path / "project"))
    with start(
        project.root, "reproduce", "toy", "--profile", "smoke", "--quiet", "--set", "paper.wait=2"
    ) as process:
        wait_for(lambda: list((project.outputs / ".staging").glob("*/progress")))
        (project.root / "mlflow" / "mlflow.db").write_text("this is no database any more")
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and len(err.splitlines()) == 1
    assert "not tracked: the MLflow store sqlite:///" in err and "can't be used" in err
    assert sorted(path.name for path in (project.outputs / "toy").iterdir() if path.is_file()) == FILES
    assert Record.load(project.outputs / "toy" / "results.json").claims[0].verdict == "reproduced"


def test_a_store_that_goes_away_does_not_hide_why_a_run_failed(tmp_path: Path) -> None:
    project = Project(write_project(tmp_path / "project"))
    settings = "paper.wait=2"
    edit = (project.root / "papers" / "toy" / "experiment.py").read_text()
    write(
        project.root / "papers" / "toy" / "experiment.py",
        edit.replace("    return seen\n", "    raise RuntimeError('too late')\n"),
    )
    with start(
        project.root, "reproduce", "toy", "--profile", "smoke", "--quiet", "--set", settings
    ) as process:
        wait_for(lambda: list((project.outputs / ".staging").glob("*/progress")))
        (project.root / "mlflow" / "mlflow.db").write_text("this is no database any more")
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.strip().endswith("RuntimeError: too late")


BUSY = """
import subprocess, sys
from pathlib import Path


def work(item: int) -> int:
    subprocess.Popen(["sleep", "600"])  # a child that nobody tells
    sum(range(10**11))  # compiled code, which no thread interrupts
    return item
"""


@pytest.mark.parametrize("command", [("reproduce", "toy", "--quiet"), ("falsify", "toy")])
def test_a_killed_run_leaves_no_process_and_no_temporary_file_to_the_next(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    project, temporary = Project(write_project(tmp_path / "project")), tmp_path / "temporary"
    temporary.mkdir()
    paper = project.root / "papers" / "toy"
    write(paper / "busy.py", BUSY)
    quick = (paper / "experiment.py").read_text()
    busy = quick.replace("    for seed in", "    lab.map(work, range(2), 'busy')\n    for seed in")
    write(paper / "experiment.py", f"from papers.toy.busy import work\n{busy}")
    surroundings = {"TMPDIR": str(temporary), "PAPERLAB_WORKERS": "2"}
    with start(project.root, *command, "--profile", "smoke", **surroundings) as process:
        wait_for(lambda: [each for each in descendants(process.pid) if each.name() == "sleep"][1:])
        children = descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()  # its pipes stay open as long as a child lives
    assert len(children) >= 5, "fork server, two workers and what they started"
    sleeping = [child for child in children if child.is_running() and child.name() == "sleep"]
    gone = psutil.wait_procs([child for child in children if child not in sleeping], timeout=3)[0]
    assert len(gone) == len(children) - 2, "each ends with its parent, whatever it is busy with"
    assert list(temporary.glob("paperlab-*/pymp-*")) and links_to(temporary)
    write(paper / "experiment.py", quick)
    ended = lab(project.root, *command, "--profile", "smoke", **surroundings)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    assert list(temporary.iterdir()) == [] and not links_to(temporary)
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in sleeping))


def links_to(temporary: Path) -> list[Path]:
    """Short names of temporary folders whose own are too long for sockets."""
    links = [path for path in Path("/tmp").glob("paperlab-*") if path.is_symlink()]
    return [link for link in links if link.readlink().is_relative_to(temporary)]


def test_a_copied_checkout_shows_its_own_artifacts_and_leaves_the_first_ones_alone(
    reproduced: tuple[Project, str], tmp_path: Path
) -> None:
    first, _ = reproduced
    before = snapshot(first.root / "mlflow" / "artifacts")
    shutil.copytree(first.root, tmp_path / "copy")
    copy = Project(tmp_path / "copy")
    here = (copy.root / "mlflow" / "artifacts" / "toy").as_uri()
    for run in runs(copy, "FINISHED"):
        assert run.info.artifact_uri.startswith(f"{here}/")
        names = [item.path for item in Store(copy).client.list_artifacts(run.info.run_id)]
        assert "results.json" in names
    ended = lab(copy.root, "reproduce", "toy", "--profile", "smoke", "--quiet")
    assert ended.returncode == 0, ended.stderr
    assert snapshot(first.root / "mlflow" / "artifacts") == before


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


@pytest.mark.parametrize("asked", ["abc", "-1", "0"])
def test_a_wrong_number_of_workers_is_told_before_anything_runs(untouched: Path, asked: str) -> None:
    ended = lab(untouched, "reproduce", "toy", PAPERLAB_WORKERS=asked)
    assert f"PAPERLAB_WORKERS={asked}: is no number of worker processes" in error_line(ended)
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
