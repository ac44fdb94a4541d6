"""JupyterLab and the MLflow UI, on this machine's loopback address only."""

import os
import socket
import sys

from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.tracking import Store

LOOPBACK = "127.0.0.1"
PORTS = {"ui": 5000, "lab": 8888}  # the usual ones of MLflow and Jupyter


def serve(project: Project, what: str, port: int | None = None) -> None:
    """Become the server; does not return. LabError where the port is taken."""
    port = port or PORTS[what]
    check_free(what, port)
    page = ""
    if what == "ui":
        store = Store(project)
        store.bury_the_dead()
        page = store.page()
        os.environ.setdefault(
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"
        )  # eight processes that run no job of ours
        command = [sys.executable, "-m", "mlflow", "ui", "--host", LOOPBACK, "--port", str(port)]
        command += ["--backend-store-uri", store.uri, "--workers", "1"]
        if store.database:
            command += ["--artifacts-destination", str(store.database.parent / "artifacts")]
    else:
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            f"--ServerApp.ip={LOOPBACK}",
            f"--ServerApp.port={port}",
        ]
        command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={project.root / 'notebooks'}"]
        command += ["--ServerApp.allow_root=True"] if os.geteuid() == 0 else []
    print(f"http://{LOOPBACK}:{port}{page} (Ctrl-C ends it)", flush=True)
    os.chdir(project.root)
    os.execv(sys.executable, command)


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
