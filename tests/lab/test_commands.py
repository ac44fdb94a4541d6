"""falsify, record, bare, check, data, smoke and the servers, from the command line."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.data import DATASETS, DataSet
from common.lab.card import Card
from common.lab.cli import main
from common.lab.closure import closure, code_digest
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.evaluate import assess, make_record, measure, run_controls
from common.lab.project import Project
from common.lab.record import Record
from common.lab.recording import commit_record, misjudged, problems, stale
from common.lab.runner import fetch_data
from common.lab.runtime import Runtime
from common.lab.servers import check_free
from tests.lab.test_reproduce import error_line
from tests.lab.toy import REPOSITORY, environment, lab, write, write_project

# What experiments must run without; each import of one of them raises in the process of a bare run.
BLOCKED = (
    "hydra",
    "omegaconf",
    "mlflow",
    "papermill",
    "pydantic",
    "yaml",
    "scipy",
    "pandas",
    "rich",
    "pooch",
    "psutil",
)
BLOCK = f"""
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is not installed on a bare machine")
sys.meta_path.insert(0, Block())
"""


def recorded(project: Project, profile: str = "default") -> Record:
    """A record of the toy, made in this process."""
    card, composed = Card.load(project.card("toy")), compose(project, "toy", profile)
    ours = measure(project, composed)
    under = run_controls(project, card, composed, ours.seen)
    return make_record(project, composed, assess(card, composed, ours.seen, under), ours.known)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- falsify ------------------------------------------------------------------------------------------------


def test_falsify_passes_where_every_claim_fails_under_its_control(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    ended = lab(root, "falsify", "toy", "--profile", "smoke")
    assert ended.returncode == 0, ended.stderr
    assert "2 of 3 claims were run, and each fails under its control" in ended.stdout


def test_falsify_fails_where_a_control_does_not_break_its_claim(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    edit(root / "papers" / "toy" / "paper.yaml", "{mechanism: false}", "{requests: 5}")
    ended = lab(root, "falsify", "toy", "--profile", "smoke")
    assert ended.returncode == 1 and "FAILS TO BREAK IT" in ended.stdout
    assert "error: gain: under control without the claim is still reproduced" in ended.stderr


# --- records ------------------------------------------------------------------------------------------------


def test_a_record_is_in_order_until_code_config_or_card_change(toy: Project) -> None:
    path = commit_record(toy, recorded(toy))
    assert path == toy.root / "papers" / "toy" / "results.json"
    assert problems(toy, "toy") == []
    profile, card = toy.root / "conf" / "paper" / "toy" / "default.yaml", toy.card("toy")
    for file, old, new, reason in (
        (toy.root / "papers" / "toy" / "doubling.py", "2 * x", "x + x", "its code has changed since"),
        (profile, "requests: 100", "requests: 200", "default.yaml has changed since"),
        (profile, "seeds: 5", "seeds: 6", "default.yaml has changed since"),
        (card, "value: 2.0", "value: 2.1", "a paper's number in its card has changed since"),
        (card, "id: gain", "id: gained", "the claims of its card have changed since"),
    ):
        edit(file, old, new)
        (line,) = stale(toy, path)
        assert reason in line and line.endswith("make record PAPER=toy PROFILE=default")
        edit(file, new, old)
    assert stale(toy, path) == []


def test_a_record_with_a_verdict_that_its_values_do_not_give_is_found(toy: Project) -> None:
    path = commit_record(toy, recorded(toy))
    assert misjudged(toy, path) == []
    edit(path, '"verdict": "reproduced"', '"verdict": "stronger"')
    assert len(misjudged(toy, path)) == 2
    assert "toy/results.json: gain: recorded stronger, its values give reproduced" in problems(toy, "toy")[0]


def test_a_control_that_fails_is_not_recorded_and_the_earlier_record_stands(toy: Project) -> None:
    path = commit_record(toy, recorded(toy))
    before = path.read_bytes()
    edit(toy.card("toy"), "{mechanism: false}", "{requests: 5}")
    with pytest.raises(LabError, match="not recorded, for a negative control does not break its claim: gain"):
        commit_record(toy, recorded(toy))
    assert path.read_bytes() == before


def test_only_whole_profiles_are_recorded(toy: Project) -> None:
    root = toy.root
    assert "records are made under PROFILE=default or cuda, not smoke" in error_line(
        lab(root, "record", "toy", "--profile", "smoke")
    )
    assert "a record is of a profile as it stands" in error_line(
        lab(root, "record", "toy", "--set", "seeds=9")
    )
    assert not toy.record("toy").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"verdict": "reproduced"', '"verdict": "splendid"', r"claims.0.verdict: .*'reproduced'"),
        ('"paper": "toy",', '"paper": "toy", "note": 1,', "note: unknown field"),
        ('"holds": true', '"holds": "yes"', "claims.0.control.holds: .*boolean"),
        ("{", "", "Invalid JSON"),
    ],
)
def test_a_malformed_record_names_file_and_field(toy: Project, old: str, new: str, message: str) -> None:
    path = commit_record(toy, recorded(toy))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(LabError, match=rf"toy/results\.json: .*{message}") as caught:
        Record.load(path)
    assert "\n" not in str(caught.value)


def test_a_metric_that_a_complete_profile_does_not_observe_is_an_error(toy: Project) -> None:
    edit(toy.card("toy"), "metric: gain\n", "metric: gian\n")
    with pytest.raises(
        LabError, match=r"claims.gain.metric: run\(\) does not observe 'gian' under default; .*gain_at"
    ):
        recorded(toy)
    assert recorded(toy, "smoke").claims[0].reason == "profile smoke does not observe it"


# --- a bare machine -----------------------------------------------------------------------------------------


def test_a_bare_machine_measures_and_the_lab_judges_and_records(toy: Project, tmp_path: Path) -> None:
    root = toy.root
    config, measured = tmp_path / "config.json", tmp_path / "observations.json"
    assert lab(root, "config", "toy", "--to", str(config)).returncode == 0
    bare = f"{BLOCK}\nfrom common.lab.bare import main\nsys.exit(main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", bare, "toy", str(config), str(measured)],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    ended = lab(root, "record", "toy", "--from", str(measured))
    assert ended.returncode == 0, ended.stderr
    there, here = Record.load(toy.record("toy")), recorded(toy)
    assert there.claims == here.claims
    assert there.provenance.machine["cores"] == os.cpu_count()
    # measured with other code than stands here
    edit(root / "papers" / "toy" / "doubling.py", "2 * x", "3 * x")
    assert "was measured with other code" in error_line(lab(root, "record", "toy", "--from", str(measured)))
    assert Record.load(toy.record("toy")) == there


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no config as `make config` writes it"),
        ('{"paper": "other", "config": {}, "seeds": [0], "profile": "smoke"}', "is a config of 'other'"),
        ('{"paper": "toy", "config": {"x": 1}, "seeds": [0], "profile": "smoke"}', "config.x: unknown key"),
        (
            '{"paper": "toy", "config": {"fail": true}, "seeds": [0], "profile": "smoke"}',
            "the experiment broke",
        ),
    ],
)
def test_a_bare_run_that_fails_is_one_line_and_writes_nothing(
    toy: Project, tmp_path: Path, content: str, message: str
) -> None:
    write(tmp_path / "config.json", content)
    ended = lab(toy.root, "bare", "toy", str(tmp_path / "config.json"), str(tmp_path / "seen.json"))
    assert message in error_line(ended)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["config.json"]


# --- the sources of a record --------------------------------------------------------------------------------


def test_the_digest_covers_what_is_imported_and_nothing_else(toy: Project) -> None:
    folder = toy.root / "papers" / "toy"
    write(folder / "unused.py", "")
    names = set(closure(toy, "toy"))
    assert {"papers/toy/experiment.py", "papers/toy/doubling.py", "common/lab/runtime.py"} <= names
    assert "papers/toy/unused.py" not in names and "common/lab/session.py" not in names
    before = code_digest(toy, "toy")
    write(folder / "unused.py", "changed = 1")
    write(folder / "results.json", "{}")
    assert code_digest(toy, "toy") == before
    write(folder / "table.csv", "a,b\n")
    assert code_digest(toy, "toy") != before


@pytest.mark.parametrize(
    "line",
    [
        "from papers.toy import extra",
        "from . import extra",
        "from .extra import x",
        "import papers.toy.extra as e",
        "def later():\n    from papers.toy.extra import x",
    ],
)
def test_every_form_of_import_is_followed(toy: Project, line: str) -> None:
    folder = toy.root / "papers" / "toy"
    write(folder / "extra.py", "x = 1")
    write(folder / "doubling.py", f"{line}\ndef doubled(x):\n    return 2 * x\n")
    assert "papers/toy/extra.py" in closure(toy, "toy")


def test_imports_for_type_checkers_alone_are_not(toy: Project) -> None:
    folder = toy.root / "papers" / "toy"
    write(folder / "extra.py", "x = 1")
    write(
        folder / "doubling.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from papers.toy import extra\n",
    )
    assert "papers/toy/extra.py" not in closure(toy, "toy")


# --- the rest -----------------------------------------------------------------------------------------------


def test_smoke_runs_every_paper_and_shows_who_failed(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    write(root / "papers" / "broken" / "paper.yaml", "slug: broken\n")
    ended = lab(root, "smoke")
    assert ended.returncode == 1
    text = " ".join(re.sub("[│┃]", " ", ended.stdout).split())
    assert "2 reproduced, 1 not run" in text and "2 of 2 hold" in text
    assert "broken" in text and "title: is missing" in text
    assert (root / "outputs" / "smoke" / "toy" / "results.json").is_file()


def test_a_busy_port_is_one_line(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for what in ("ui", "lab"):
            assert f"port {port} can't be used" in error_line(lab(root, what, "--port", str(port)))
    check_free("ui", port)


def test_the_servers_bind_to_loopback(monkeypatch: pytest.MonkeyPatch, toy: Project) -> None:
    import common.lab.servers as servers

    started: list[list[str]] = []
    monkeypatch.setattr(servers, "check_free", lambda what, port: None)
    monkeypatch.setattr(
        servers, "Store", lambda project: type("Store", (), {"bury_the_dead": lambda self: 0})()
    )
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    monkeypatch.setattr(os, "chdir", lambda path: None)
    servers.serve(toy, "ui", 5001)
    servers.serve(toy, "lab")
    ui, jupyter = (" ".join(command) for command in started)
    assert "--host 127.0.0.1 --port 5001" in ui and "mlflow.db" in ui
    assert "--ServerApp.ip=127.0.0.1" in jupyter and "--ServerApp.port_retries=0" in jupyter


def test_a_paper_without_data_sets_has_none_to_fetch(toy: Project) -> None:
    ended = lab(toy.root, "data", "toy")
    assert ended.returncode == 0 and "toy uses no data sets" in ended.stdout


@pytest.fixture
def data_set(toy: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy's card names a data set; where its mirror would be. There is no network."""
    known = DataSet(
        "toy/lengths.csv", "http://127.0.0.1:9/lengths.csv", hashlib.sha256(b"1").hexdigest(), "MIT", ""
    )
    monkeypatch.setitem(DATASETS, "toy-lengths", known)
    monkeypatch.setenv("PAPERLAB_ROOT", str(toy.root))
    monkeypatch.setenv("PAPERLAB_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "cache"))
    edit(toy.card("toy"), "claims:\n", "data: [toy-lengths]\nclaims:\n")
    return tmp_path / "mirror" / "toy" / "lengths.csv"


def test_data_that_cannot_be_had_is_one_line(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "toy"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: data set toy-lengths could not be downloaded")
    fetch_data(Card.load(Project.current().card("toy")))  # a reproduction goes on without it, and says so
    assert (
        "note: going on without real data: data set toy-lengths could not be downloaded"
        in capsys.readouterr().err
    )
    assert Runtime([0]).data("toy-lengths") is None


def test_data_is_used_with_its_digest_or_not_at_all(
    data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data_set, "1")
    lab = Runtime([0])
    assert lab.data("toy-lengths") == data_set
    assert lab.data_used == {"toy-lengths": hashlib.sha256(b"1").hexdigest()}
    assert main(["data", "toy"]) == 0 and str(data_set) in capsys.readouterr().out
    write(data_set, "2")
    with pytest.raises(LabError, match="toy-lengths"):
        lab.data("toy-lengths")


def test_the_folder_mlflow_does_not_shadow_the_library() -> None:
    code = "import importlib.util as u; print(u.find_spec('mlflow').origin)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip().endswith("__init__.py") and not ended.stdout.startswith(
        str(REPOSITORY / "mlflow")
    )
    assert not (REPOSITORY / "mlflow" / "__init__.py").exists()


def test_the_runtime_brings_nothing_of_the_lab() -> None:
    code = f"{BLOCK}\nimport common.lab.runtime, common.lab.bare\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_json_of_a_record_is_what_the_design_says(toy: Project) -> None:
    kept = json.loads(recorded(toy).to_json())
    assert set(kept["claims"][0]) >= {
        "id", "metric", "evidence", "paper_value", "unit", "values", "mean", "interval", "verdict", "control",
    }  # fmt: skip
    assert set(kept["claims"][0]["control"]) >= {"name", "values", "mean", "verdict", "holds"}
    assert set(kept["provenance"]) >= {
        "code", "lock", "config", "seeds", "data", "machine", "python", "started", "seconds", "peak_rss_bytes",
    }  # fmt: skip
