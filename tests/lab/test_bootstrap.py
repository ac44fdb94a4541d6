"""The environment is made once, by one process, and every command of the design is in the Makefile."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.lab import bootstrap
from tests.lab.toy import REPOSITORY

COMMANDS = {
    "reproduce", "falsify", "record", "sweep", "smoke", "scoreboard", "lab", "ui", "data", "new", "test", "gpu-profile",
    "config", "help",
}  # fmt: skip


@pytest.fixture
def installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An environment in a folder of its own, whose installations are only written down."""
    called: list[str] = []
    for name in ("pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_text("x")

    def install(*arguments: str) -> int:
        called.append(arguments[-1].removeprefix(str(tmp_path)))
        return 0

    def make(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        (tmp_path / ".venv").mkdir(exist_ok=True)
        called.append("venv")
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(bootstrap, "ROOT", str(tmp_path))
    monkeypatch.setattr(bootstrap, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(bootstrap, "install", install)
    monkeypatch.setattr(bootstrap, "works", lambda: True)
    monkeypatch.setattr(bootstrap.subprocess, "run", make)
    return called


def test_nothing_is_installed_again_while_nothing_changed(installs: list[str]) -> None:
    assert bootstrap.main([]) == 0 and installs == ["venv", ""]
    assert bootstrap.main([]) == 0 and installs == ["venv", ""]


def test_an_extra_is_installed_on_first_use_only(installs: list[str]) -> None:
    for _ in range(2):
        assert bootstrap.main(["test"]) == 0
        assert installs == ["venv", "[test]"]


def test_a_changed_lock_installs_again_into_the_same_environment(installs: list[str], tmp_path: Path) -> None:
    bootstrap.main([])
    (tmp_path / "requirements.lock").write_text("y")
    assert bootstrap.main([]) == 0 and installs == ["venv", "", ""]


def test_a_failed_installation_is_tried_again(installs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(bootstrap, "install", lambda *arguments: 1)
        assert bootstrap.main([]) == 1
    assert bootstrap.main([]) == 0 and installs[-1] == ""


def test_an_old_python_is_told_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (99, 0))
    assert bootstrap.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: Python 3.11 or newer is needed and .* is 3\.\d+; try make PYTHON=", line)


# --- an environment that was copied or moved with its folder --------------------------------------------------------

PLAIN = "#!{folder}/bin/python\n"
LONG = "#!/bin/sh\n'{quotes}exec' {folder}/bin/python3 \"$0\" \"$@\"\n' '{quotes}\n"
BLANK = '#!/bin/sh\n\'{quotes}exec\' "{folder}/bin/python" "$0" "$@"\n\' \'{quotes}\n'


@pytest.mark.parametrize("script", [PLAIN, LONG, BLANK])
@pytest.mark.parametrize("moved", [False, True])
def test_a_script_of_another_folder_makes_the_environment_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, moved: bool
) -> None:
    here, there = tmp_path / "a copy" / ".venv", tmp_path / "the first" / ".venv"
    for folder in (here, there):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
    (here / "bin" / "jupyter").write_text(script.format(folder=there if moved else here, quotes="''"))
    (here / "bin" / "activate").write_text("# of a shell\n")
    (here / "bin" / "beeline").write_text("#!/usr/bin/env bash\n")
    monkeypatch.setattr(bootstrap, "VENV", str(here))
    monkeypatch.setattr(bootstrap, "PYTHON", str(here / "bin" / "python"))
    ran = subprocess.CompletedProcess([], 0, f"{here}\n")
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *command, **options: ran)
    assert bootstrap.works() is not moved
    if moved:
        shutil.rmtree(there.parent)
        assert not bootstrap.works()


def test_pip_installs_into_the_environment_whatever_the_user_has_set_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []
    start = subprocess.Popen

    def watch(command: list[str], **options: Any) -> Any:
        seen.append(command)
        return start([sys.executable, "-c", ""], **options)

    monkeypatch.setattr(bootstrap.subprocess, "Popen", watch)
    assert bootstrap.install("-e", "somewhere") == 0
    assert seen[0][1:5] == ["-I", "-m", "pip", "install"] and "--no-user" in seen[0]


def test_make_help_lists_every_command() -> None:
    ended = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^  make (\S+)", ended.stdout, re.M)) >= COMMANDS
