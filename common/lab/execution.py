"""A paper's notebook executed by papermill in a kernel of this interpreter."""

import contextlib
import json
import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from common.lab.config import Composed
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.progress import PROGRESS
from common.lab.project import Project
from common.lab.session import OUTPUT
from common.lab.staging import sockets_of
from common.lab.surroundings import around

KERNEL = "python3"  # the name in every notebook; here always this very interpreter
SLOWEST_START = 300  # seconds a kernel may take to start on a machine that is busy
# Sockets in the file system, for runs could race for ports; a client that finds what it was not woken for.
MANAGER = {"transport": "ipc", "client_factory": "common.lab.kernel_client.Client"}
WIDGETS = "application/vnd.jupyter.widget-state+json"
POLL = 0.3  # seconds between two looks at the notebook's progress
# glibc gives large tensors back to the system when they are freed, which then has to map and clear pages for the next:
# an eighth of the time of GPTQ. A gigabyte that was freed is kept instead. Other C libraries read none of this.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**26)}


def execute_notebook(
    project: Project, composed: Composed, workspace: Path, folder: Path, quiet: bool
) -> None:
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
    sockets = sockets_of(workspace)
    sockets.mkdir(mode=0o700)
    slug = composed.slug
    parameters = {"profile": composed.profile, "overrides": list(composed.overrides)}
    surroundings = {
        OUTPUT: str(folder),
        PROGRESS: str(relay),
        "PAPERLAB_ROOT": str(project.root),
        "JUPYTER_RUNTIME_DIR": str(sockets),
        **kernel_home(workspace / "jupyter"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **KEPT_MEMORY,
    }
    try:
        with around(project.root, surroundings):
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
                config=Config({"KernelManager": MANAGER}),
            )
    except papermill.exceptions.PapermillExecutionError as error:
        place = f"notebooks/{slug}.ipynb, cell {error.cell_index}"
        name = "" if error.ename == "LabError" else f"{error.ename}: "
        raise LabError(f"{place}: {name}{error.evalue}") from error
    refuse_broken_widgets(json.loads((folder / "notebook.ipynb").read_text()), f"notebooks/{slug}.ipynb")


def refuse_broken_widgets(executed: dict[str, Any], name: str) -> None:
    """LabError where a widget of an executed notebook holds an error: `interact` keeps it, and the cell passes."""
    widgets = executed["metadata"].get("widgets", {}).get(WIDGETS, {}).get("state", {})
    for model in widgets.values():
        for output in model["state"].get("outputs", ()):
            if output["output_type"] == "error":
                raise LabError(f"{name}, a widget: {output['ename']}: {output['evalue']}")


def kernel_home(home: Path) -> dict[str, str]:
    """Make a folder in which Jupyter finds a kernel of this interpreter and no settings; the variables that say so.

    Whatever kernels, settings and startup files the user has, a notebook runs in this one and without them.
    """
    # what the kernel itself complains of (say, when it is interrupted) is no output of the notebook's
    quiet = 'exec "$@"' if os.environ.get("DEBUG") else 'exec "$@" 2>/dev/null'
    launch = [sys.executable, "-m", "common.lab.kernel", "-f", "{connection_file}"]
    spec = {
        "argv": ["/bin/sh", "-c", quiet, "kernel", *launch],
        "display_name": "Python 3",
        "language": "python",
    }
    for name in ("kernels", "ipython", "config"):
        (home / name).mkdir(parents=True, exist_ok=True)
    write_atomically(home / "kernels" / KERNEL / "kernel.json", json.dumps(spec))
    return {
        "JUPYTER_PATH": str(home),
        "JUPYTER_DATA_DIR": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "IPYTHONDIR": str(home / "ipython"),
    }


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
