"""Bake-offs: systems of several papers on one workload, one model and one description of hardware.

A bake-off judges no claim. It has an experiment, bakeoffs/<name>.py, with the interface of a paper's (Config, check and
run), a config, conf/bakeoff/<name>.yaml, and a notebook, notebooks/<name>_bakeoff.ipynb, and is executed and tracked
like a paper. `RECORD=1` keeps what it observed in bakeoffs/<name>_record.json.gz, which the notebook shows when it is
opened by hand. The notebook sets what the papers claim of each other, in their cards' words, beside what was observed:

    from common.lab import Bakeoff
    bakeoff = Bakeoff("serving", profile=profile, overrides=overrides)
    seen = bakeoff.run()
    bakeoff.claim("fastgen", "effective-throughput").paper.number
"""

import argparse
import gzip
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.lab.card import Card, Claim
from common.lab.closure import digest_of, module_closure
from common.lab.config import HYDRA_VERSION, Composed, check_overrides, checked, split_overrides
from common.lab.errors import LabError, nearest
from common.lab.files import write_atomically
from common.lab.machine import describe
from common.lab.progress import show_progress
from common.lab.project import Project
from common.lab.runner import execute
from common.lab.runtime import Observations, Runtime
from common.lab.session import AS_RECORDED, OUTPUT, save_figure, say
from common.lab.tracking import TrackedRun
from common.lab.typed import build, defaults, plain


class Bakeoff:
    """One bake-off in its notebook: its config, its run, its figures, and the claims of the cards.

    profile: "recorded" shows the committed record, anything else runs conf/bakeoff/<name>.yaml with the overrides.
    """

    def __init__(
        self,
        name: str,
        profile: str = AS_RECORDED,
        overrides: str | Sequence[str] = (),
        project: Project | None = None,
    ) -> None:
        self.project = project or Project.current()
        chosen = split_overrides(overrides) if isinstance(overrides, str) else list(overrides)
        if profile == AS_RECORDED and chosen:
            raise LabError(f'overrides change a run, and profile = "{AS_RECORDED}" shows one; choose default')
        self.composed = compose_bakeoff(self.project, name, chosen)
        self.output = Path(os.environ.get(OUTPUT) or self.project.outputs / "by_hand" / f"{name}_bakeoff")
        self._name = name
        self._seen: Observations | None = None
        if profile == AS_RECORDED:
            tree, self._seen = load_record(self.project, name)
            self.composed = _composed(self.project, name, tree, str(record_path(self.project, name)))

    @property
    def config(self) -> Any:
        """The bake-off's Config, as composed."""
        return self.composed.config

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.composed.seeds

    def run(self) -> Observations:
        """Run the experiment over all seeds, once; a second call returns what the first saw."""
        if self._seen is None:
            runtime = Runtime(self.seeds, "cpu", show_progress)
            code = digest_of(module_closure(self.project, f"bakeoffs.{self._name}"))
            self._seen = _experiment(self.project, self._name).run(self.config, runtime)
            known = {
                "code": code,
                "machine": describe("cpu"),
                "data": dict(sorted(runtime.data_used.items())),
            }
            tree = {"seeds": len(self.seeds), "bakeoff": dict(self.composed.tree)}
            write_atomically(self.output / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
            write_atomically(self.output / "observations.json", self._seen.to_json())
            write_atomically(self.output / "provenance.json", json.dumps(known, indent=1) + "\n")
        return self._seen

    def say(self, text: str, **numbers: Any) -> Any:
        """A sentence with its numbers computed, as Markdown."""
        return say(text, **numbers)

    def claim(self, slug: str, claim_id: str) -> Claim:
        """A claim of a paper's card: what it says of its rival, and the paper's number."""
        return Card.load(self.project.card(self.project.check_slug(slug))).claim(claim_id)

    def save(self, figure: Any, name: str) -> Path:
        """Save a matplotlib figure as figures/<name>.png among the outputs."""
        return save_figure(figure, self.output, name)


def names(project: Project) -> list[str]:
    """All bake-offs, by their configs."""
    return sorted(path.stem for path in (project.root / "conf" / "bakeoff").glob("*.yaml"))


def compose_bakeoff(project: Project, name: str, overrides: Sequence[str] = ()) -> Composed:
    """Compose conf/bakeoff/<name>.yaml and overrides. LabError in one line where anything is unknown or mistyped."""
    known = names(project)
    if name not in known:
        near = nearest(name, known) or f" There is: {', '.join(known) or 'none'}."
        raise LabError(f"unknown bake-off {name!r}.{near}")
    schema = {"seeds": 5, "bakeoff": defaults(_experiment(project, name).Config)}
    ConfigStore.instance().store(name="schema", node=schema)
    check_overrides(overrides, schema)
    place = f"conf/bakeoff/{name}.yaml"
    try:
        with initialize_config_dir(str(project.root / "conf"), job_name=name, version_base=HYDRA_VERSION):
            tree: Any = OmegaConf.to_container(compose(f"bakeoff/{name}", list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise LabError(f"{place}: {error}") from error
    assert isinstance(tree, dict)
    return _composed(project, name, tree, place, overrides)


def _composed(
    project: Project, name: str, tree: Mapping[str, Any], place: str, overrides: Sequence[str] = ()
) -> Composed:
    seeds = tree["seeds"]
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise LabError(f"{place}: seeds: {seeds!r} is no number of seeds; it is a whole number from 1")
    experiment = _experiment(project, name)
    config = build(experiment.Config, tree["bakeoff"], f"{place}: bakeoff")
    checked(getattr(experiment, "check", lambda config: None), config, f"{place}: bakeoff")
    return Composed(
        f"{name}_bakeoff", "default", config, tuple(range(seeds)), tuple(overrides), plain(config)
    )


def record_path(project: Project, name: str) -> Path:
    """Where the committed record of a bake-off stands: config, code digest, machine, data, rows."""
    return project.root / "bakeoffs" / f"{name}_record.json.gz"


def load_record(project: Project, name: str) -> tuple[dict[str, Any], Observations]:
    """The composed tree (seeds, bakeoff) and the rows of the committed record. LabError where there is none."""
    path = record_path(project, name)
    if not path.is_file():
        raise LabError(f"bake-off {name} has no record yet; make bakeoff NAME={name} RECORD=1")
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        return content["config"], Observations.from_json(json.dumps(content["rows"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise LabError(f"{path}: no record of a bake-off: {error}") from error


def save_record(project: Project, name: str) -> Path:
    """Keep what outputs/bakeoff/<name> holds as the committed record, whole or not at all."""
    folder = project.outputs / "bakeoff" / name
    content = {
        "config": yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        **json.loads((folder / "provenance.json").read_text(encoding="utf-8")),
        "rows": json.loads((folder / "observations.json").read_text(encoding="utf-8")),
    }
    path = record_path(project, name)
    write_atomically(path, gzip.compress(json.dumps(content, allow_nan=False).encode(), mtime=0))
    return path


def bake(project: Project, name: str, overrides: Sequence[str] = (), quiet: bool = False) -> Observations:
    """Execute the bake-off's notebook, track it in MLflow and write outputs/bakeoff/<name>; what it observed."""
    composed = compose_bakeoff(project, name, overrides)
    if not project.notebook(composed.slug).is_file():
        raise LabError(f"notebooks/{composed.slug}.ipynb is missing: bake-off {name} can't run without it")

    def results(folder: Path) -> tuple[Observations, str]:
        if not (folder / "observations.json").is_file():
            raise LabError(f"notebooks/{composed.slug}.ipynb wrote no observations: it has to call run()")
        seen = Observations.from_json((folder / "observations.json").read_text(encoding="utf-8"))
        return seen, json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["code"]

    def track(run: TrackedRun, found: tuple[Observations, str]) -> None:
        run.observations(*found)

    seen, _ = execute(project, composed, project.outputs / "bakeoff" / name, results, track, quiet)
    return seen


def _experiment(project: Project, name: str) -> Any:
    if not (project.root / "bakeoffs" / f"{name}.py").is_file():
        raise LabError(f"bakeoffs/{name}.py is missing")
    if str(project.root) not in sys.path:
        sys.path.insert(0, str(project.root))
    return import_module(f"bakeoffs.{name}")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bakeoff", nargs="?", default="", help="its name, such as serving")
    parser.add_argument("--set", default="", help='Hydra overrides, "bakeoff.requests=500 seeds=8"')
    parser.add_argument("--record", default="", help="1: keep what was observed as the committed record")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(project: Project, asked: argparse.Namespace) -> int:
    if asked.record and asked.set:
        raise LabError("a record holds the committed config: leave SET out, or change conf/bakeoff")
    bake(project, asked.bakeoff, split_overrides(asked.set), asked.quiet)
    print(f"outputs/bakeoff/{asked.bakeoff}/: notebook.html, figures, observations.json")
    if asked.record:
        print(save_record(project, asked.bakeoff).relative_to(project.root))
    return 0
