"""JupyterLab and the MLflow UI, on this machine's loopback address only."""

import json
import os
import secrets
import socket
import sys

from common.lab.errors import LabError
from common.lab.execution import kernel_home
from common.lab.files import write_atomically
from common.lab.project import Project
from common.lab.surroundings import clean
from common.lab.tracking import Store

ANNOUNCEMENTS = (
    "@jupyterlab/apputils-extension:announcements"  # a question about news, over a corner of the page
)
OPENED = "lab/tree/notebooks"  # where JupyterLab opens
LOOPBACK = "127.0.0.1"
PORTS = {"ui": 5000, "lab": 8888}  # the usual ones of MLflow and Jupyter


Server = tuple[str, list[str], dict[str, str]]  # its address, arguments of python -m, environment variables


def serve(project: Project, what: str, port: int | None = None) -> None:
    """Become the server; does not return. LabError where the port is taken."""
    port = port or PORTS[what]
    check_free(what, port)
    address, command, extra = (_ui if what == "ui" else _lab)(project, port)
    print(f"{address} (Ctrl-C ends it)", flush=True)
    os.chdir(project.root)
    os.execve(sys.executable, [sys.executable, "-m", *command], {**clean(os.environ, project.root), **extra})


def _ui(project: Project, port: int) -> Server:
    """MLflow's pages, opened at the runs of the paper that ran last."""
    store = Store(project)
    store.bury_the_dead()
    command = ["mlflow", "ui", "--host", LOOPBACK, "--port", str(port)]
    command += ["--backend-store-uri", store.uri, "--workers", "1"]
    if store.database:
        command += ["--artifacts-destination", str(store.database.parent / "artifacts")]
    jobs = os.environ.get(
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"
    )  # eight processes that run no job of ours
    return f"http://{LOOPBACK}:{port}{store.page()}", command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": jobs}


def _lab(project: Project, port: int) -> Server:
    """JupyterLab on the repository, without the user's settings: its kernels are those of `make reproduce`.

    The token is in the printed address, so that a click is enough, and reaches the server through the environment,
    where no other user of this machine can read it.
    """
    home = project.outputs / ".lab"
    token = secrets.token_urlsafe(24)
    extra = kernel_home(home) | {"JUPYTER_TOKEN": token}
    settings = json.dumps({"disabledExtensions": {ANNOUNCEMENTS: True}})
    write_atomically(home / "config" / "labconfig" / "page_config.json", settings)
    command = ["jupyterlab", f"--ServerApp.ip={LOOPBACK}", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={project.root}"]
    command += [f"--LabApp.default_url=/{OPENED}"]
    command += ["--ServerApp.allow_root=True"] if os.geteuid() == 0 else []
    return f"http://{LOOPBACK}:{port}/{OPENED}?token={token}", command, extra


def check_free(what: str, port: int) -> None:
    """LabError where something else listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise LabError(
                f"port {port} can't be used ({error}); try make {what} PORT={port % 60000 + 1}"
            ) from error
