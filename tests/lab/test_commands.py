"""falsify, record, bare, check, data, smoke and the servers, from the command line."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.data import DATASETS, DataSet
from common.lab import Lab
from common.lab.arms import ALL, OURS, load_arms, run_arms
from common.lab.card import Card
from common.lab.cli import main
from common.lab.closure import closure, sources_digest
from common.lab.config import compose
from common.lab.confirmations import Confirmations, Outcome
from common.lab.errors import LabError
from common.lab.evaluate import measure
from common.lab.project import Project
from common.lab.record import Record
from common.lab.recording import commit_record, judge_again, misjudged, problems, state
from common.lab.runner import fetch_data
from common.lab.runtime import Runtime
from common.lab.servers import check_free
from common.lab.tracking import Store
from tests.lab.test_reproduce import descendants, error_line, runs, wait_for
from tests.lab.toy import REPOSITORY, environment, lab, start, write, write_project

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


def recorded(project: Project) -> Record:
    """The toy recorded in this process, with all arms."""
    card, composed = Card.load(project.card("toy")), compose(project, "toy", "default")
    ours = measure(project, composed)
    arms = run_arms(project, card, composed, ours.seen, ALL)
    return commit_record(project, composed, {OURS: ours.seen, **arms}, dict(ours.known))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- falsify ------------------------------------------------------------------------------------------------


def test_falsify_says_how_many_upheld_claims_break(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    ended = lab(root, "falsify", "toy", "--profile", "smoke")
    assert ended.returncode == 0, ended.stderr
    assert "3 of 3 upheld claims break under a control or a placebo" in ended.stdout


def test_arms_tell_how_far_they_are(toy: Project) -> None:
    card, composed = Card.load(toy.card("toy")), compose(toy, "toy", "smoke")
    told: list[tuple[str, int | None, int]] = []

    def watch(items: Iterable[Any], label: str, total: int | None) -> Iterator[Any]:
        for done, item in enumerate(items):
            told.append((label, total, done))
            yield item

    arms = run_arms(toy, card, composed, measure(toy, composed).seen, ALL, watch)
    assert [line for line in told if line[0] == "arms"] == [
        ("arms", len(arms), done) for done in range(len(arms))
    ]


def test_falsify_fails_where_a_control_that_broke_its_claim_no_longer_does(toy: Project) -> None:
    recorded(toy)
    edit(toy.card("toy"), "{mechanism: false}", "{requests: 90}")
    ended = lab(toy.root, "falsify", "toy")
    assert ended.returncode == 1 and "does not break it" in ended.stdout
    assert "error: gain: without broke it when it was recorded and now: does not break it" in ended.stderr


def test_a_claim_that_nothing_breaks_keeps_its_verdict_and_is_marked(toy: Project) -> None:
    edit(toy.card("toy"), "{mechanism: false}", "{requests: 90}")
    peak = recorded(toy).claim("peak")
    assert (peak.verdict, peak.not_shown) == ("reproduced", True)
    assert "not shown to be the method" in lab(toy.root, "falsify", "toy").stdout


# --- records ------------------------------------------------------------------------------------------------


def test_a_record_holds_until_code_config_arms_or_bounds_change(toy: Project) -> None:
    recorded(toy)
    assert problems(toy, "toy") == []
    profile, card = toy.root / "conf" / "paper" / "toy" / "default.yaml", toy.card("toy")
    folder = toy.root / "papers" / "toy"
    for file, old, new, needs in (
        (folder / "doubling.py", "2 * x", "x + x", "run"),
        (profile, "requests: 100", "requests: 200", "run"),
        (profile, "seeds: 5", "seeds: 6", "run"),
        (card, "{mechanism: false}", "{requests: 90}", "run"),
        (card, "{tardy: 0.0}", "{tardy: 1.0}", "run"),
        (card, "value: 2.0", "value: 2.1", "judge"),
        (card, "tolerance: 0.1\n", "tolerance: 0.2\n", "judge"),
        (card, "free: {bias: [-0.1, 0.1]}", "free: {bias: [-0.1, 0.2]}", "run"),
        # texts and layout bind nothing
        (card, "The mechanism doubles the rate", "It doubles the rate", ""),
        (card, "because: the toy waits", "because: the toy always waits", ""),
        (folder / "doubling.py", "    return 2 * x", '    """Twice."""\n\n    return 2 * x  # twice', ""),
        (folder / "doubling.py", "x: float", "x: int", ""),
        (folder / "config.py", "At(1, 1_000_000)", "At(2, 1_000)", ""),
    ):
        edit(file, old, new)
        assert state(toy, "toy", "default")[0] == needs, (old, new)
        edit(file, new, old)
    assert state(toy, "toy", "default") == ("", "")


def test_refresh_records_nothing_for_a_comment_and_stops_where_a_constant_moved_a_value(toy: Project) -> None:
    recorded(toy)
    before = toy.record("toy").read_bytes()
    mechanism = toy.root / "papers" / "toy" / "doubling.py"
    edit(mechanism, "    return 2 * x", "    # twice\n    return 2 * x")
    ended = lab(toy.root, "refresh")
    assert ended.returncode == 0 and "1 records hold" in ended.stdout, ended.stderr
    assert toy.record("toy").read_bytes() == before
    edit(mechanism, "2 * x", "2.1 * x")
    ended = lab(toy.root, "refresh")
    assert ended.returncode == 1
    said = ended.stderr.splitlines()[-1]
    assert "error: toy (default): not recorded, for values moved: gain: 1.99895 -> 2.09895" in said
    assert "ACCEPT=1 records them" in said
    assert toy.record("toy").read_bytes() == before
    ended = lab(toy.root, "refresh", ACCEPT="1")
    assert ended.returncode == 0, ended.stderr
    assert Record.load(toy.record("toy")).claim("gain").mean == pytest.approx(2.1, abs=0.02)
    assert problems(toy, "toy") == []


def test_a_changed_lock_is_reported_and_asks_for_no_run(toy: Project) -> None:
    recorded(toy)
    toy.lock.write_text("numpy==3\n")
    ended = lab(toy.root, "refresh")
    assert ended.returncode == 0 and "recorded under another requirements.lock: toy" in ended.stdout
    assert "1 records hold" in ended.stdout and problems(toy, "toy") == []


def test_refresh_judges_again_without_a_run_where_only_the_card_changed(toy: Project) -> None:
    recorded(toy)
    edit(toy.card("toy"), "value: 2.0, kind: value", "value: 4.0, kind: value")
    ended = lab(toy.root, "refresh", "toy")
    assert ended.returncode == 0 and "judged again" in ended.stdout, ended.stderr
    assert Record.load(toy.record("toy")).claim("gain").verdict == "weaker"


def test_confirming_keeps_what_came_out_beside_the_record(toy: Project) -> None:
    record = recorded(toy)
    ended = lab(toy.root, "confirm", "toy")
    assert ended.returncode == 0 and "toy: as recorded: 3 of 3 values to the byte" in ended.stdout, (
        ended.stderr
    )
    runs = Confirmations.load(toy.confirmations("toy"), "toy").runs
    assert [run.kind for run in runs] == ["recorded", "confirmed"]
    assert all(outcome.agrees for outcome in runs[1].claims.values())
    assert Record.load(toy.record("toy")) == record
    edit(toy.root / "papers" / "toy" / "doubling.py", "2 * x", "3 * x")
    assert "its code has changed since, so there is nothing to confirm" in error_line(
        lab(toy.root, "confirm", "toy")
    )
    assert "no paper is named: PAPER=all" in error_line(lab(toy.root, "confirm"))


def test_a_confirmation_that_could_not_be_tracked_is_kept_and_ends_with_an_error(
    toy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLAB_ROOT", str(toy.root))
    monkeypatch.setattr(
        "common.lab.rerun.confirm", lambda project, slug: ("as recorded", "not tracked: gone")
    )
    assert main(["confirm", "toy"]) == 1
    said = capsys.readouterr()
    assert "toy: as recorded" in said.out and "error: toy: not tracked: gone" in said.err


def test_a_claim_on_a_clock_is_judged_on_recordings_of_three_hours(toy: Project) -> None:
    edit(
        toy.card("toy"), "metric: seconds\n    evidence: simulated", "metric: seconds\n    evidence: measured"
    )
    assert recorded(toy).claim("slow").marks == ["provisional: 1 of 3 recordings"]
    path = toy.confirmations("toy")
    known = Confirmations.load(path, "toy")
    (run,) = known.runs
    others = [
        run.model_copy(
            update={
                "started": f"2026-01-0{day}T10:00:00+00:00",
                "claims": {**run.claims, "slow": Outcome(mean=mean, verdict="weaker")},
            }
        )
        for day, mean in ((1, 8.2), (2, 7.8))
    ]
    path.write_text(Confirmations(paper="toy", runs=[run, *others]).model_dump_json())
    slow = judge_again(toy, "toy", "default").claim("slow")
    assert slow.recordings == 3 and len(slow.values) == 3 and slow.marks == []
    assert problems(toy, "toy") == []


def test_a_record_with_a_verdict_that_its_rows_do_not_give_is_found(toy: Project) -> None:
    recorded(toy)
    assert misjudged(toy, "toy", "default") == []
    edit(toy.record("toy"), '"verdict": "reproduced"', '"verdict": "stronger"')
    assert (
        "toy/results.json: gain: recorded stronger, its rows give gain reproduced" in problems(toy, "toy")[1]
    )


def test_a_verdict_without_its_because_is_found_and_recorded_all_the_same(toy: Project) -> None:
    edit(toy.card("toy"), "    because: the toy waits longer than the paper's machine\n", "")
    assert recorded(toy).claim("slow").verdict == "weaker"
    assert problems(toy, "toy") == [
        "papers/toy/paper.yaml: claims.slow.because: is missing, and the verdict is weaker"
    ]


def test_fields_that_the_card_names_and_the_config_lacks_are_found(toy: Project) -> None:
    edit(toy.card("toy"), "config: rates", "config: speeds")
    assert "claims.peak.operating_point.rate: the config has no speeds" in problems(toy, "toy")[0]
    edit(toy.card("toy"), "config: speeds", "config: rates")
    edit(toy.card("toy"), "    free: {bias: [-0.1, 0.1]}\n", "")
    assert "free: bias is inferred (nobody says)" in problems(toy, "toy")[0]
    edit(toy.card("toy"), "because: the toy", "because: in {sceonds} the toy")
    assert "quotes 'sceonds' of the config" in problems(toy, "toy")[0]


def test_a_free_constant_that_decides_leaves_no_verdict(toy: Project) -> None:
    edit(toy.card("toy"), "free: {bias: [-0.1, 0.1]}", "free: {bias: [-0.2, 0.0]}")
    assert recorded(toy).claim("gain").free == []
    edit(
        toy.card("toy"),
        "tolerance: 0.25\n    operating_point:\n      requests: {paper: 100",
        "tolerance: 0.15\n    operating_point:\n      requests: {paper: 100",
    )
    gain = recorded(toy).claim("gain")
    assert (gain.verdict, gain.free, gain.reason) == ("inconclusive", ["bias=-0.2"], "depends on bias=-0.2")


def test_an_explanation_is_tested_under_its_setting(toy: Project) -> None:
    slow = recorded(toy).claim("slow")
    assert slow.revived_by is not None and slow.revived_by.outcome == "revived"
    edit(toy.card("toy"), "{tardy: 0.0}", "{tardy: 2.9}")
    slow = recorded(toy).claim("slow")
    assert slow.revived_by is not None and slow.revived_by.outcome == "refuted"


def test_all_arms_are_kept_beside_the_record(toy: Project) -> None:
    recorded(toy)
    arms = load_arms(toy.observations("toy"))
    assert sorted(arms) == ["bias=-0.1", "bias=0.1", "ours", "quick", "shuffled", "without"]
    assert arms["quick"].metrics == arms[OURS].metrics  # the toy leaves nothing out
    first = toy.observations("toy").read_bytes()
    recorded(toy)
    assert toy.observations("toy").read_bytes() == first


def test_only_whole_profiles_are_recorded(toy: Project) -> None:
    root = toy.root
    assert "records are made under PROFILE=default or full or cuda, not smoke" in error_line(
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
        ('"recordings": 1', '"recordings": "one"', "claims.0.recordings: .*integer"),
        ("{", "", "Invalid JSON"),
    ],
)
def test_a_malformed_record_names_file_and_field(toy: Project, old: str, new: str, message: str) -> None:
    recorded(toy)
    path = toy.record("toy")
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
    said = Lab("toy", "smoke", project=toy).judge("skip").record.claims[0].reason
    assert said == "profile smoke does not observe it"


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
    there = Record.load(toy.record("toy"))
    toy.confirmations("toy").unlink()
    here = recorded(toy)
    assert there.claims == here.claims
    there.save(toy.record("toy"))
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
    assert {"papers/toy/experiment.py", "papers/toy/doubling.py", "papers/toy/config.py"} <= names
    assert "papers/toy/unused.py" not in names and "common/lab/session.py" not in names
    before = sources_digest(toy, "toy")
    write(folder / "unused.py", "changed = 1")
    write(folder / "results.json", "{}")
    assert sources_digest(toy, "toy") == before
    write(folder / "table.csv", "a,b\n")
    beside = sources_digest(toy, "toy")
    write(folder / "tables" / "gpu" / "below.csv", "a,b\n")
    assert len({before, beside, sources_digest(toy, "toy")}) == 3


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
    assert "2 reproduced, 1 weaker, 1 not run" in text and "break 3 of 3 upheld" in text
    assert "broken" in text and "title: is missing" in text
    assert (root / "outputs" / "smoke" / "toy" / "results.json").is_file()


def test_a_killed_smoke_leaves_no_reproduction_running(tmp_path: Path) -> None:
    project = Project(write_project(tmp_path / "project"))
    profile = project.root / "conf" / "paper" / "toy" / "smoke.yaml"
    profile.write_text(profile.read_text() + "  wait: 600\n")
    with start(project.root, "smoke", "toy") as process:
        wait_for(lambda: list((project.outputs / ".staging").glob("*/progress")))
        children = descendants(process.pid)
        process.kill()
        process.wait()
    assert len(children) >= 2
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    assert list((project.outputs / ".staging").iterdir()) == [] and len(runs(project, "KILLED")) == 1


def test_a_busy_port_is_one_line(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for what in ("ui", "lab"):
            assert f"port {port} can't be used" in error_line(lab(root, what, "--port", str(port)))
    check_free("ui", port)


def test_the_ui_is_opened_on_the_runs_of_the_paper_that_ran_last(toy: Project) -> None:
    store = Store(toy)
    assert store.page() == "/#/experiments"
    for requests in ("paper.requests=3", "paper.requests=4"):
        with store.run(compose(toy, "toy", "smoke", [requests])):
            pass
    assert store.page() == f"/#/experiments/{store.experiment('toy')}/runs"


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
    monkeypatch.setenv("PAPERLAB_UNREACHED", "")
    edit(toy.card("toy"), "claims:\n", "data: [toy-lengths]\nclaims:\n")
    return tmp_path / "mirror" / "toy" / "lengths.csv"


def test_data_that_cannot_be_had_is_one_line(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "toy"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: data set toy-lengths could not be downloaded")
    fetch_data(Card.load(Project.current().card("toy")))  # a reproduction goes on without it, and says so
    said = capsys.readouterr().err
    assert said == "data: stand-in for toy-lengths (not reachable); make data PAPER=toy says why\n"
    assert Runtime([0]).data("toy-lengths") is None


def test_data_that_is_there_is_not_what_a_claim_lacks(data_set: Path, toy: Project) -> None:
    edit(toy.card("toy"), "needs: a GPU", "needs: the data set toy-lengths")
    kernel = Lab("toy", "smoke", project=toy).judge("skip").record.claim("kernel")
    assert kernel.reason == "needs the data set toy-lengths"
    write(data_set, "1")
    kernel = Lab("toy", "smoke", project=toy).judge("skip").record.claim("kernel")
    assert kernel.reason == "profile smoke does not observe it"


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
        "id", "metric", "evidence", "paper_value", "unit", "values", "mean", "interval", "effect", "half_width",
        "seeds_needed", "judged_as", "verdict", "operating_point", "free", "recordings", "control", "placebo",
        "revived_by",
    }  # fmt: skip
    assert set(kept["claims"][0]["control"]) >= {"name", "values", "mean", "left", "outcome"}
    assert set(kept["provenance"]) >= {
        "observed", "judged", "lock", "config", "seeds", "data", "machine", "python", "started", "seconds",
        "peak_rss_bytes",
    }  # fmt: skip
