"""JupyterLab and the MLflow UI: on loopback, one click away, without the user's settings."""

import json
import os
import re
from pathlib import Path

import pytest

from common.lab import servers
from common.lab.project import Project

Started = tuple[str, dict[str, str]]  # the command and its environment


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, toy: Project) -> list[Started]:
    """The servers that this process has become."""
    become: list[Started] = []
    monkeypatch.setattr(servers, "check_free", lambda what, port: None)
    monkeypatch.setattr(os, "execve", lambda path, command, given: become.append((" ".join(command), given)))
    monkeypatch.setattr(os, "chdir", lambda path: None)
    return become


def test_the_servers_bind_to_loopback(started: list[Started], toy: Project) -> None:
    servers.serve(toy, "ui", 5001)
    servers.serve(toy, "lab")
    (ui, given), (jupyter, _) = started
    assert "--host 127.0.0.1 --port 5001" in ui and f"sqlite:///{toy.root}/mlflow/mlflow.db" in ui
    assert f"--artifacts-destination {toy.root}/mlflow/artifacts" in ui
    assert given["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "--ServerApp.ip=127.0.0.1" in jupyter and "--ServerApp.port_retries=0" in jupyter


def test_the_printed_address_of_jupyterlab_needs_no_login(
    started: list[Started], toy: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.serve(toy, "lab", 8899)
    ((command, given),) = started
    (token,) = re.findall(
        r"^http://127.0.0.1:8899/lab/tree/notebooks\?token=([\w-]{32}) ", capsys.readouterr().out
    )
    assert (
        given["JUPYTER_TOKEN"] == token and token not in command
    )  # others may read a command, not its environment


def test_jupyterlab_is_rooted_at_the_repository_and_asks_nothing(
    started: list[Started], toy: Project
) -> None:
    servers.serve(toy, "lab")
    ((command, given),) = started
    assert f"--ServerApp.root_dir={toy.root} " in command
    settings = Path(given["JUPYTER_CONFIG_DIR"]) / "labconfig" / "page_config.json"
    assert json.loads(settings.read_text()) == {
        "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}
    }


def test_jupyterlab_sees_no_settings_of_the_users(
    started: list[Started], toy: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_PATH", "PYTHONSTARTUP", "MATPLOTLIBRC"):
        monkeypatch.setenv(name, "/home/me")
    servers.serve(toy, "lab")
    servers.serve(toy, "lab")  # what it has made is there already
    _, given = started[-1]
    assert "/home/me" not in given.values()
    spec = json.loads((Path(given["JUPYTER_PATH"]) / "kernels" / "python3" / "kernel.json").read_text())
    assert "common.lab.kernel" in spec["argv"]
    assert os.listdir(given["IPYTHONDIR"]) == []
