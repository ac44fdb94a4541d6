"""Reproductions: execute a paper's notebook, track the run, and put all outputs into place at once.

Everything is assembled in a folder of its own under outputs/.staging and renamed to outputs/<slug> at the end, so that
nothing is ever half-written there and runs beside each other never mix.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from common.lab.bare import check_device
from common.lab.card import Card
from common.lab.config import Composed, compose
from common.lab.errors import LabError
from common.lab.execution import execute_notebook
from common.lab.project import Project
from common.lab.record import Record
from common.lab.staging import put_into_place, staging

if TYPE_CHECKING:
    from common.lab.tracking import TrackedRun

Results = TypeVar("Results")


@dataclass(frozen=True)
class Request:
    """What `make reproduce` asks for; `target` is where the outputs end up."""

    slug: str
    profile: str = "default"
    overrides: tuple[str, ...] = ()
    target: Path | None = None
    quiet: bool = False


def reproduce(project: Project, request: Request) -> Record:
    """Execute the notebook under a profile, track it in MLflow and write outputs/<slug>; the record of what came out.

    LabError in one line for any mistake; then nothing is left under outputs/<slug> that was not there before.
    """
    slug = project.check_slug(request.slug)
    card = Card.load(project.card(slug))
    composed = compose(project, slug, request.profile, request.overrides)
    check_device(composed.device)
    if not project.notebook(slug).is_file():
        raise LabError(f"notebooks/{slug}.ipynb is missing: {slug} can't be reproduced without it")
    target = request.target or project.outputs / slug
    fetch_data(card, request.quiet)

    def results(folder: Path, run: "TrackedRun") -> Record:
        record = Record.load(_product(folder, "results.json", slug))
        for name in ("observations.json", "arms.json.gz"):
            _product(folder, name, slug)
        run.results(record)
        return record

    return execute(project, composed, target, results, request.quiet)


def execute(
    project: Project,
    composed: Composed,
    target: Path,
    results: Callable[[Path, "TrackedRun"], Results],
    quiet: bool = False,
) -> Results:
    """Execute the notebook named like `composed.slug`, track the run, and put all that it wrote into `target` at once.

    results(folder, run): reads what the notebook wrote into `folder` and logs it; its answer is returned.
    """
    with terminable(), staging(project, composed.slug) as workspace:
        # these bring nbconvert and mlflow: seconds that a wrong name should not cost
        from common.lab.page import write_page
        from common.lab.tracking import Store

        store = Store(project)
        store.bury_the_dead()
        with store.run(composed) as run:
            folder = workspace / "outputs"
            folder.mkdir()
            try:
                execute_notebook(project, composed, workspace, folder, quiet)
                write_page(folder)
                found = results(folder, run)
            except BaseException:
                with contextlib.suppress(LabError):
                    run.artifacts(folder)  # what there is, to see what went wrong
                raise
            run.artifacts(folder)
            put_into_place(project, workspace, folder, target)
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
    """SIGTERM ends a run as Ctrl-C does: tracked as KILLED, nothing left behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
