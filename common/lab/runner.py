"""Reproductions: execute a paper's notebook, track the run, and put all outputs into place at once.

Everything is assembled in a folder of its own under outputs/.staging and renamed to outputs/<slug> at the end, so that
nothing is ever half-written there and runs beside each other never mix. A store that is lost meanwhile costs no output.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from common.lab.bare import check_device
from common.lab.card import Card
from common.lab.config import Composed, compose
from common.lab.cores import workers
from common.lab.errors import LabError
from common.lab.execution import execute_notebook
from common.lab.orphans import follow_parent
from common.lab.project import Project
from common.lab.record import Record
from common.lab.staging import put_into_place, staging

if TYPE_CHECKING:
    from common.lab.tracking import TrackedRun

Results = TypeVar("Results")
ENDS_WITH = "PAPERLAB_ENDS_WITH"  # the process with which a run ends


@dataclass(frozen=True)
class Request:
    """What `make reproduce` asks for; `target` is where the outputs end up."""

    slug: str
    profile: str = "default"
    overrides: tuple[str, ...] = ()
    target: Path | None = None
    quiet: bool = False


class NotTracked(LabError):
    """All is done and in its place, but the store could not be told. `results`: what the call would have returned."""

    def __init__(self, results: Any, outage: Exception) -> None:
        super().__init__(f"not tracked: {outage}")
        self.results = results


def reproduce(project: Project, request: Request) -> Record:
    """Execute the notebook under a profile, track it in MLflow and write outputs/<slug>; the record of what came out.

    LabError in one line for any mistake; then nothing is left under outputs/<slug> that was not there before. Only
    NotTracked comes after the outputs are in place.
    """
    workers()  # a wrong number of them is told before anything runs
    slug = project.check_slug(request.slug)
    card = Card.load(project.card(slug))
    composed = compose(project, slug, request.profile, request.overrides)
    check_device(composed.device)
    if not project.notebook(slug).is_file():
        raise LabError(f"notebooks/{slug}.ipynb is missing: {slug} can't be reproduced without it")
    target = request.target or project.outputs / slug
    fetch_data(card, request.quiet)

    def results(folder: Path) -> Record:
        for name in ("observations.json", "arms.json.gz"):
            _product(folder, name, slug)
        return Record.load(_product(folder, "results.json", slug))

    return execute(project, composed, target, results, lambda run, record: run.results(record), request.quiet)


def execute(
    project: Project,
    composed: Composed,
    target: Path,
    results: Callable[[Path], Results],
    track: Callable[["TrackedRun", Results], None],
    quiet: bool = False,
) -> Results:
    """Execute the notebook named like `composed.slug`, put all that it wrote into `target` at once, track the run.

    results(folder): reads what the notebook wrote into `folder`; its answer is returned. track(run, results): logs it.
    NotTracked where the store is lost after the run has begun.
    """
    with terminable(), staging(project, composed.slug) as workspace:
        # these bring nbconvert and mlflow: seconds that a wrong name should not cost
        from common.lab.page import write_page
        from common.lab.tracking import Store, StoreError

        store = Store(project)
        store.bury_the_dead()
        placed: list[Results] = []
        try:
            with store.run(composed) as run:
                folder, copy = workspace / "outputs", workspace / "copy"
                folder.mkdir()
                try:
                    execute_notebook(project, composed, workspace, folder, quiet)
                    write_page(folder)
                    found = results(folder)
                except BaseException:
                    with contextlib.suppress(LabError):
                        run.artifacts(folder)  # what there is, to see what went wrong
                    raise
                shutil.copytree(folder, copy)
                put_into_place(project, workspace, copy, target)
                placed.append(found)
                track(run, found)
                run.artifacts(folder)
        except StoreError as outage:
            if placed:
                raise NotTracked(placed[0], outage) from outage
            raise
    return found


def fetch_data(card: Card, quiet: bool = False) -> None:
    """Fetch the card's data sets where they can be had, each tried once; one line on those that can't.

    An experiment does without, and its record says so. What it or its notebook asks for later fails at once.
    """
    if not card.data:
        return
    registry = import_module("common.data")
    for name in card.data:
        with contextlib.suppress(registry.DataError):
            registry.fetch(name)
    line = registry.stand_in_line(card.data)
    if line and not quiet:
        print(f"{line}; make data PAPER={card.slug} says why", file=sys.stderr)


def _product(folder: Path, name: str, slug: str) -> Path:
    if not (folder / name).is_file():
        raise LabError(f"notebooks/{slug}.ipynb wrote no {name}: it has to call lab.run() and lab.judge()")
    return folder / name


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: tracked as KILLED, nothing left behind; so does the end of ENDS_WITH."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    if parent := os.environ.pop(ENDS_WITH, ""):
        follow_parent(signal.SIGTERM, int(parent))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
