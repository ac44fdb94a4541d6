"""Reproductions: execute a paper's notebook, track the run, and put all outputs into place at once.

Everything is assembled in a folder of its own under outputs/.staging and renamed to outputs/<slug> at the end, so that
nothing is ever half-written there and runs beside each other never mix.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from common.lab.bare import check_device
from common.lab.card import Card
from common.lab.config import Composed, compose
from common.lab.errors import LabError
from common.lab.files import locked
from common.lab.project import Project
from common.lab.record import Record
from common.lab.session import OUTPUT, PROGRESS
from common.lab.workers import environment

if TYPE_CHECKING:
    from common.lab.tracking import TrackedRun

Results = TypeVar("Results")
KERNEL = "python3"  # the name in every notebook; here always this very interpreter
SLOWEST_START = 300  # seconds a kernel may take to start on a machine that is busy
POLL = 0.3  # seconds between two looks at the notebook's progress
# glibc gives large tensors back to the system when they are freed, which then has to map and clear pages for the next:
# an eighth of the time of GPTQ. A gigabyte that was freed is kept instead. Other C libraries read none of this.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**26)}


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
        _product(folder, "observations.json", slug)
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
        from common.lab.tracking import Store  # brings mlflow: seconds that a wrong name should not cost

        store = Store(project)
        store.bury_the_dead()
        with store.run(composed) as run:
            folder = workspace / "outputs"
            folder.mkdir()
            try:
                _execute(project, composed, workspace, folder, quiet)
                _page(folder)
                found = results(folder, run)
            except BaseException:
                with contextlib.suppress(LabError):
                    run.artifacts(folder)  # what there is, to see what went wrong
                raise
            run.artifacts(folder)
            put_into_place(project, workspace, folder, target)
    return found


def fetch_data(card: Card, quiet: bool = False) -> None:
    """Fetch the card's data sets where they can be had; an experiment does without, and its record says so."""
    for name in card.data:
        registry = import_module("common.data")
        try:
            if registry.find(name) is None:
                registry.fetch(name)
        except Exception as error:
            if not quiet:
                line = " ".join(str(error).split())
                print(f"note: going on without real data: {line}", file=sys.stderr)


@contextlib.contextmanager
def staging(project: Project, slug: str) -> Iterator[Path]:
    """A folder of this process's own under outputs/.staging; those of processes that are gone are cleared away."""
    home = project.outputs / ".staging"
    me = psutil.Process()
    folder = home / f"{slug}-{me.pid}-{int(me.create_time())}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise LabError(f"{home}: can't be written: {error.strerror}") from error
    for other in home.iterdir():
        if not _owned(other.name):
            _clear(other)
    try:
        yield folder
    finally:
        _clear(folder)


def _clear(workspace: Path) -> None:
    """Remove a workspace; what a killed process had taken out of its place goes back."""
    with contextlib.suppress(OSError):
        (workspace / "replaced").rename(Path((workspace / "target").read_text()))
    for folder in (workspace, _sockets(workspace)):
        shutil.rmtree(folder, ignore_errors=True)


def _sockets(workspace: Path) -> Path:
    """Where the kernel of a workspace has its sockets: their paths may have only some hundred characters."""
    return Path("/tmp") / f"paperlab-{workspace.name.rpartition('-')[2]}"


def _owned(name: str) -> bool:
    """Whether the process that made a staging folder still lives."""
    try:
        _, pid, born, _ = name.rsplit("-", 3)
        return abs(psutil.Process(int(pid)).create_time() - int(born)) < 2
    except (ValueError, psutil.NoSuchProcess):
        return False


def put_into_place(project: Project, workspace: Path, folder: Path, target: Path) -> None:
    """Replace `target` by `folder` under a lock; an earlier `target` is removed only once the new one stands."""
    with locked(project.outputs / ".lock"):
        old = workspace / "replaced"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            (workspace / "target").write_text(str(target))  # where _clear would put it back
            if target.exists():
                target.rename(old)
            folder.rename(target)
        except OSError as error:
            if old.exists() and not target.exists():
                old.rename(target)
            raise LabError(f"{target}: can't be written: {error.strerror}") from error
        (workspace / "target").unlink()


def _execute(project: Project, composed: Composed, workspace: Path, folder: Path, quiet: bool) -> None:
    """Run the notebook with papermill in a kernel of this interpreter."""
    # nbformat brings jsonschema, which builds a grammar of IRIs on import: two seconds for what no notebook has
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import papermill
        from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    # an interrupt kills the kernel too, and nbclient's task on it then ends unheard: asyncio would print its trace
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    _register_engine()
    relay = workspace / "progress"
    sockets = _sockets(workspace)
    sockets.mkdir(mode=0o700)
    slug = composed.slug
    parameters = {"profile": composed.profile, "overrides": list(composed.overrides)}
    surroundings = {
        OUTPUT: str(folder),
        PROGRESS: str(relay),
        "PAPERLAB_ROOT": str(project.root),
        "PYTHONPATH": os.pathsep.join([str(project.root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JUPYTER_PATH": str(_kernel(workspace)),
        "JUPYTER_RUNTIME_DIR": str(sockets),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **KEPT_MEMORY,
    }
    try:
        with environment(surroundings):
            papermill.execute_notebook(
                str(project.notebook(slug)),
                str(folder / "notebook.ipynb"),
                parameters=parameters,
                engine_name="paperlab",
                kernel_name=KERNEL,
                language="python",
                progress_bar=False if quiet else {"desc": slug, "leave": False},
                cwd=str(folder),
                start_timeout=SLOWEST_START,
                relay=relay,
                config=Config({"KernelManager": {"transport": "ipc"}}),  # no ports that runs could race for
            )
    except papermill.exceptions.PapermillExecutionError as error:
        place = f"notebooks/{slug}.ipynb, cell {error.cell_index}"
        name = "" if error.ename == "LabError" else f"{error.ename}: "
        raise LabError(f"{place}: {name}{error.evalue}") from error


def _kernel(workspace: Path) -> Path:
    """A folder with a kernel of this interpreter, whatever kernels the user has installed."""
    home = workspace / "jupyter"
    # what the kernel itself complains of (say, when it is interrupted) is no output of the notebook's
    quiet = 'exec "$@"' if os.environ.get("DEBUG") else 'exec "$@" 2>/dev/null'
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {
        "argv": ["/bin/sh", "-c", quiet, "kernel", *launch],
        "display_name": "Python 3",
        "language": "python",
    }
    path = home / "kernels" / KERNEL / "kernel.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(spec))
    return home


def _register_engine() -> None:
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):
        """papermill's engine, whose bar also shows how far the experiment inside a cell is."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, relay: Path, **options: Any) -> Any:
            done = threading.Event()

            def follow() -> None:
                while not done.wait(POLL):
                    with contextlib.suppress(OSError, ValueError):
                        told = json.loads(relay.read_text())
                        text = f"{told['label']} {told['done']}/{told['total'] or '?'}"
                        nb_man.pbar.set_postfix_str(text, refresh=False)
                        with nb_man.pbar.get_lock():  # tqdm's own refresh keeps it if the terminal fails
                            if not nb_man.pbar.disable:  # nor closed
                                nb_man.pbar.display()

            watcher = threading.Thread(target=follow, daemon=True)
            if nb_man.pbar:
                watcher.start()
            try:
                return super().execute_managed_notebook(nb_man, kernel_name, **options)
            finally:
                done.set()
                if watcher.is_alive():
                    watcher.join(10 * POLL)  # not for ever: an interrupt may have left the bar's lock taken

    papermill_engines.register("paperlab", Engine)


def _product(folder: Path, name: str, slug: str) -> Path:
    if not (folder / name).is_file():
        raise LabError(f"notebooks/{slug}.ipynb wrote no {name}: it has to call lab.run() and lab.judge()")
    return folder / name


def _page(folder: Path) -> None:
    """notebook.html beside notebook.ipynb."""
    from nbconvert import HTMLExporter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page, _ = HTMLExporter().from_filename(str(folder / "notebook.ipynb"))
    (folder / "notebook.html").write_text(page, encoding="utf-8")


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
