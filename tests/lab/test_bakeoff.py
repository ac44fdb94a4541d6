"""A bake-off of the toy project: composed, executed, tracked, and its mistakes in one line."""

import json
from pathlib import Path

import pytest

from common.lab.bakeoff import Bakeoff, compose_bakeoff, record_path
from common.lab.errors import LabError
from common.lab.project import Project
from tests.lab.toy import lab, write, write_project

EXPERIMENT = '''\
"""Two systems."""

from dataclasses import dataclass
from typing import Annotated

from common.lab.bounds import At
from common.lab.runtime import Observations, Runtime
from papers.toy.doubling import doubled


@dataclass(frozen=True)
class Config:
    rate: Annotated[float, At(0, 100)] = 3.0  # of both


def check(config: Config) -> None:
    if config.rate == 13:
        raise ValueError("rate: 13 is no rate here")


def run(config: Config, lab: Runtime) -> Observations:
    seen = Observations()
    for seed in lab.seeds:
        seen.add("rate", config.rate + seed, seed, system="plain")
        seen.add("rate", doubled(config.rate + seed), seed, system="doubled")
    return seen
'''
CELLS = (
    ("parameters", "profile = 'recorded'\noverrides = []"),
    ("", "from common.lab import Bakeoff\nbakeoff = Bakeoff('toys', profile=profile, overrides=overrides)"),
    ("", "seen = bakeoff.run()"),
    ("", "print(bakeoff.claim('toy', 'gain').paper.number)"),
)


def add_bakeoff(root: Path) -> Path:
    write(root / "bakeoffs" / "__init__.py", "")
    write(root / "bakeoffs" / "toys.py", EXPERIMENT)
    write(root / "conf" / "bakeoff" / "toys.yaml", CONFIG)
    book = json.loads((root / "notebooks" / "toy.ipynb").read_text())
    book["cells"] = [
        {**book["cells"][0], "id": f"c{i}", "source": source, "metadata": {"tags": [tag] if tag else []}}
        for i, (tag, source) in enumerate(CELLS)
    ]
    write(root / "notebooks" / "toys_bakeoff.ipynb", json.dumps(book))
    return root


CONFIG = """\
# @package _global_
defaults: [/schema, _self_]
seeds: 2
bakeoff: {rate: 5.0}
"""


def test_a_bakeoff_is_executed_tracked_and_written_out(tmp_path: Path) -> None:
    root = add_bakeoff(write_project(tmp_path / "project"))
    ended = lab(root, "bakeoff", "toys", "--set", "bakeoff.rate=7")
    assert ended.returncode == 0, ended.stderr
    out = root / "outputs" / "bakeoff" / "toys"
    rows = json.loads((out / "observations.json").read_text())
    assert "14" in json.dumps(rows) and (out / "notebook.html").is_file()
    assert "2.0" in (out / "notebook.ipynb").read_text(), "the card's number can be shown beside"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("toys_bakeoff")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["rate"] == "7.0"
    history = client.get_metric_history(run.info.run_id, "rate/system:doubled")
    assert [(one.step, one.value) for one in history] == [(0, 14.0), (1, 16.0)]


def test_mistakes_are_one_line(toy: Project) -> None:
    add_bakeoff(toy.root)
    with pytest.raises(LabError, match="unknown bake-off 'toy'. Did you mean toys"):
        compose_bakeoff(toy, "toy")
    with pytest.raises(LabError, match="rate"):
        compose_bakeoff(toy, "toys", ["bakeoff.rat=3"])
    with pytest.raises(LabError, match="rate"):
        compose_bakeoff(toy, "toys", ["bakeoff.rate=fast"])
    with pytest.raises(LabError, match="rate"):
        compose_bakeoff(toy, "toys", ["bakeoff.rate=-1"])
    with pytest.raises(LabError, match="13 is no rate here"):
        compose_bakeoff(toy, "toys", ["bakeoff.rate=13"])
    with pytest.raises(LabError, match="no record yet; make bakeoff NAME=toys RECORD=1"):
        Bakeoff("toys", project=toy)
    with pytest.raises(LabError, match="number of seeds"):
        compose_bakeoff(toy, "toys", ["seeds=0"])
    (toy.root / "bakeoffs" / "toys.py").unlink()
    with pytest.raises(LabError, match="bakeoffs/toys.py is missing"):
        compose_bakeoff(toy, "toys")


def test_the_notebook_sees_the_config_and_runs_once(toy: Project) -> None:
    add_bakeoff(toy.root)
    bakeoff = Bakeoff("toys", "default", "seeds=1", project=toy)
    assert bakeoff.config.rate == 5.0 and bakeoff.seeds == (0,)
    assert bakeoff.run() is bakeoff.run()
    assert bakeoff.claim("toy", "peak").paper.number == 3.0


def test_what_was_recorded_is_shown_without_a_run(toy: Project) -> None:
    root = add_bakeoff(toy.root)
    assert "leave SET out" in lab(root, "bakeoff", "toys", "--record", "1", "--set", "bakeoff.rate=7").stderr
    ended = lab(root, "bakeoff", "toys", "--record", "1")
    assert ended.returncode == 0, ended.stderr
    write(root / "conf" / "bakeoff" / "toys.yaml", CONFIG.replace("rate: 5.0", "rate: 6.0"))
    shown = Bakeoff("toys", project=toy)
    assert shown.config.rate == 5.0 and shown.seeds == (0, 1)
    assert shown.run().values("rate", system="doubled") == [10.0, 12.0]
    with pytest.raises(LabError, match="choose default"):
        Bakeoff("toys", overrides="seeds=1", project=toy)
    record_path(toy, "toys").write_bytes(b"broken")
    with pytest.raises(LabError, match="no record of a bake-off"):
        Bakeoff("toys", project=toy)
