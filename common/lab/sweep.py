"""`make sweep`: one experiment at every combination of listed values, through Hydra's multirun.

    make sweep PAPER=distserve SET="paper.requests=500,1000 seeds=8" LAUNCHER=joblib

The launcher (conf/launcher/) decides where points run: on this machine's cores (joblib), on a Slurm cluster (slurm) or
through submitit without a cluster (local). Each point runs the experiment, judges its claims and is tracked as a child
of the sweep's run; negative controls are left to `make falsify`. Everything lands in outputs/sweep/<slug>/<time>/, one
folder a point, with summary.csv and summary.png at the end. A point that fails is reported, the others stand.
"""

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import os
import secrets
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from common.lab import arms
from common.lab.card import Card
from common.lab.config import (
    HYDRA_VERSION,
    Composed,
    check_overrides,
    compose,
    from_tree,
    register_schema,
    split_overrides,
)
from common.lab.cores import allowed_cores, workers
from common.lab.errors import LabError
from common.lab.evaluate import assess, make_record, measure
from common.lab.files import write_atomically
from common.lab.machine import now
from common.lab.orphans import follow_parent
from common.lab.project import Project

PARENT = "PAPERLAB_SWEEP_PARENT"  # the sweep's MLflow run, told to the points' processes
ERROR_FILE, NOT_TRACKED_FILE = "error.json", "not_tracked.txt"
OURS = ("paper", "launcher")  # overrides that the sweep makes itself
POLL = 0.3  # seconds between two looks at which points are done


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep: its fixed overrides, and its axes with their values (as text, in Hydra's order of points)."""

    slug: str
    profile: str
    overrides: tuple[str, ...]  # as given
    fixed: tuple[str, ...]
    axes: dict[str, tuple[str, ...]]

    @property
    def points(self) -> list[dict[str, str]]:
        """Every combination of values, in the order in which Hydra numbers its jobs."""
        return [
            dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())
        ]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("slug", nargs="?", default="", help="the paper")
    parser.add_argument("--profile", default="default", help="smoke, default, full or cuda")
    parser.add_argument(
        "--set", default="", help='Hydra overrides, at least one with several values: "paper.rate=1,2,4"'
    )
    parser.add_argument("--launcher", default="joblib", help="joblib, slurm or local")


def run(project: Project, asked: argparse.Namespace) -> int:
    """The command: sweep, print the summary; 1 where a point failed or was not tracked."""
    from rich.console import Console

    from common.lab.runner import NotTracked
    from common.lab.sweep_summary import summary_table

    outages = []
    try:
        folder, outcomes = sweep(
            project, asked.slug, asked.profile, split_overrides(asked.set), asked.launcher
        )
    except NotTracked as outage:
        folder, outcomes = outage.results
        outages.append(str(outage))
    outages += [f"{outcome.name}: {outcome.not_tracked}" for outcome in outcomes if outcome.not_tracked]
    Console(width=None if sys.stdout.isatty() else 140).print(summary_table(asked.slug, outcomes))
    failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
    for line in failed + outages:
        print(f"error: {line}", file=sys.stderr)
    place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(f"{place}/: summary.csv, summary.png, a folder a point")
    return int(bool(failed or outages))


def sweep(
    project: Project, slug: str, profile: str, overrides: Sequence[str], launcher: str
) -> tuple[Path, list[Any]]:
    """Run every point and write the summary; the folder and one Outcome (sweep_summary) a point.

    LabError in one line for whatever is wrong before the first point starts.
    """
    from common.lab.runner import NotTracked, fetch_data, terminable
    from common.lab.sweep_summary import collect, write_summary
    from common.lab.tracking import Store, StoreError  # brings mlflow, which a wrong name should not wait for

    workers()  # a wrong number of them is told before anything runs
    made = plan(project, slug, profile, overrides)
    _check_launcher(project, launcher)
    composed = [
        compose(project, slug, profile, [*made.fixed, *(f"{key}={value}" for key, value in point.items())])
        for point in made.points
    ]
    fetch_data(Card.load(project.card(slug)))
    folder = _folder(project, slug)
    store = Store(project)
    store.bury_the_dead()
    outcomes: list[Any] = []
    try:
        with terminable(), store.run(_as_a_whole(composed[0], made)) as parent:
            with _surroundings(project, parent.id, launcher), _progress(folder, slug, len(composed)):
                broken = _multirun(project, made, launcher, folder)
            found = collect(folder, made.points, broken or "did not finish")
            if broken and not any(outcome.record for outcome in found):
                raise LabError(f"the sweep broke off: {broken}")
            write_summary(folder, slug, found)
            outcomes = found
            store.bury_the_dead()  # points whose process was killed
            parent.artifacts(folder)
    except StoreError as outage:
        if outcomes:
            raise NotTracked((folder, outcomes), outage) from outage
        raise
    return folder, outcomes


def plan(project: Project, slug: str, profile: str, overrides: Sequence[str]) -> Plan:
    """Which points a sweep has. LabError where a key is unknown or nothing has several values."""
    project.check_slug(slug)
    project.check_profile(slug, profile)
    check_overrides(overrides, register_schema(project, slug), sweep=True)
    fixed, axes = [], {}
    for text in overrides:
        override = OverridesParser.create().parse_override(text)
        if not override.is_sweep_override():
            fixed.append(text)
        elif override.key_or_group in axes:
            raise LabError(f"SET: {override.key_or_group} is given twice")
        else:
            axes[override.key_or_group] = _values(text, override)
    if not axes:
        raise LabError(
            'a sweep needs a key with several values, such as SET="seeds=2,4"; without one it is make reproduce'
        )
    return Plan(slug, profile, tuple(overrides), tuple(fixed), axes)


def _values(text: str, override: Override) -> tuple[str, ...]:
    try:
        values = tuple(override.sweep_string_iterator())
    except (HydraException, ValueError, TypeError) as error:
        raise LabError(f"SET: {text!r} lists no values: {error}") from error
    if len(set(values)) < len(values):
        raise LabError(f"SET: {text!r} lists a value twice")
    return values


def _check_launcher(project: Project, launcher: str) -> None:
    known = sorted(path.stem for path in (project.root / "conf" / "launcher").glob("*.yaml"))
    if launcher not in known:
        raise LabError(f"unknown LAUNCHER {launcher!r}; one of {', '.join(known)}")
    if launcher == "slurm" and shutil.which("srun") is None:
        raise LabError(
            "LAUNCHER=slurm needs a Slurm cluster, and there is no srun here; LAUNCHER=joblib uses this machine"
        )


def _folder(project: Project, slug: str) -> Path:
    """outputs/sweep/<slug>/<time>-<random>: apart from outputs/<slug>, which every reproduction replaces as a whole."""
    stamp = now().partition("+")[0].replace(":", "-")
    folder = project.outputs / "sweep" / slug / f"{stamp}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise LabError(f"{folder}: can't be written: {error.strerror}") from error
    return folder


def _as_a_whole(first: Composed, made: Plan) -> Composed:
    """What the sweep's own MLflow run shows: the config with all values of an axis in the place of one."""
    tree = copy.deepcopy(dict(first.tree))
    for key, values in made.axes.items():
        *outer, last = key.split(".")[1:] or [key]
        inside = tree
        for step in outer:
            inside = inside[step]
        inside[last] = ",".join(values)
    return dataclasses.replace(first, tree=tree, overrides=("sweep", *made.overrides))


def _multirun(project: Project, made: Plan, launcher: str, folder: Path) -> str:
    """Hand the sweep to Hydra, as its command line would; why it broke off, empty where it ran through."""
    register_schema(project, made.slug)
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    command = [
        "sweep",
        "--multirun",
        f"--config-path={project.root / 'conf'}",
        "--config-name=config",
        f"paper={made.slug}/{made.profile}",
        f"launcher={launcher}",
        f"hydra.sweep.dir='{quoted}'",
        "hydra.sweep.subdir=${hydra.job.num}",
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
        *made.overrides,
    ]
    before, sys.argv = sys.argv, command
    try:
        hydra.main(version_base=HYDRA_VERSION, config_path=None)(_point)()
    except Exception as error:  # a point's own error is caught where it happens: this is the launcher's
        if os.environ.get("DEBUG"):
            traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:300]}"
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
    return ""


@contextmanager
def _surroundings(project: Project, parent: str, launcher: str) -> Iterator[None]:
    """The environment that the points' processes inherit."""
    path = [
        str(project.root),
        str(Path(__file__).resolve().parents[2]),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    values = {
        "PAPERLAB_ROOT": str(project.root),
        "PYTHONPATH": os.pathsep.join(path),
        "HYDRA_FULL_ERROR": "1",  # errors are raised to us, not printed
        PARENT: parent,
    }
    if launcher == "joblib" and "PAPERLAB_WORKERS" not in os.environ:
        values["PAPERLAB_WORKERS"] = "1"  # points already fill the cores
    if launcher == "joblib" and "LOKY_MAX_CPU_COUNT" not in os.environ:
        values["LOKY_MAX_CPU_COUNT"] = str(allowed_cores())  # joblib's own limit
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _progress(folder: Path, slug: str, total: int) -> Iterator[None]:
    """A bar of finished points on a terminal."""
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(
        total=total, desc=f"{slug} sweep", unit="point", leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def follow() -> None:
            while not done.wait(POLL):
                bar.n = len([*folder.glob("*/results.json"), *folder.glob(f"*/{ERROR_FILE}")])
                bar.refresh()

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _point(tree: DictConfig) -> None:
    """One point, in whatever process the launcher put it: measure, judge, track; an error is written beside it."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    overrides = [text for text in job.overrides.task if text.partition("=")[0] not in OURS]
    if job.runtime.choices["launcher"] == "joblib":
        _end_with_parent()
    try:
        slug, _, profile = job.runtime.choices["paper"].partition("/")
        plain = OmegaConf.to_container(tree, resolve=True)
        assert isinstance(plain, dict)
        _measure(folder, slug, profile, {str(key): value for key, value in plain.items()}, overrides)
    except Exception as error:
        if os.environ.get("DEBUG"):
            traceback.print_exc()
        line = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        content = {"overrides": overrides, "error": " ".join(line.split())}
        write_atomically(folder / ERROR_FILE, json.dumps(content) + "\n")


_end_with_parent = functools.cache(follow_parent)  # once a process, which may run several points


def _measure(folder: Path, slug: str, profile: str, tree: dict[str, Any], overrides: Sequence[str]) -> None:
    from common.lab.staging import staging
    from common.lab.tracking import Store, StoreError

    project = Project.current()
    composed = from_tree(project, slug, profile, tree, overrides)
    record = None
    try:
        with staging(project, slug), Store(project).run(composed, parent=os.environ.get(PARENT)) as run:
            measurement = measure(project, composed)
            write_atomically(folder / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
            write_atomically(folder / "observations.json", measurement.seen.to_json())
            card = Card.load(project.card(slug))
            claims = assess(card, composed, {arms.OURS: measurement.seen})
            record = make_record(project, card, composed, claims, measurement.known)
            record.save(folder / "results.json")  # it says that the point is done
            run.results(record)
            run.artifacts(folder)
    except StoreError as outage:
        if record is None:
            raise
        write_atomically(folder / NOT_TRACKED_FILE, f"not tracked: {outage}\n")
