"""The Makefile hands on what was typed, letter for letter, and runs none of it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.toy import REPOSITORY, write

# In the place of .venv's Python and of the one that makes it: writes down its arguments and the user's settings of it.
STUB = """\
#!/bin/sh
cd "$(dirname "$0")" && while [ ! -f Makefile ]; do cd ..; done
{ printf '%s\\0' "$@"; env | grep -o '^PYTHON[A-Z]*=' | grep -v '^PYTHON='; printf '\\1'; } >> log
"""
TYPED = (
    "seeds=${paper.requests}",
    "paper.label='$(shell touch RAN)' seeds=3",
    "paper.label='it\\'s `touch RAN` \"b\" $(touch RAN)' # $$ $@ $(PAPER)",
    "paper.rates=[1,\n2] \\",
)
GIVEN = ("PAPER", "PROFILE", "SET", "LAUNCHER", "FROM", "TITLE", "NAME", "PORT", "OUT", "RECORD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the Makefile beside an environment that is ready."""
    root = tmp_path / "a checkout"
    root.mkdir()
    shutil.copy(REPOSITORY / "Makefile", root)
    write(root / "pyproject.toml", "")
    write(root / "requirements.lock", "")
    for name in (".venv/bin/python", "other python"):
        write(root / name, STUB)
        (root / name).chmod(0o755)
    write(root / ".venv/.stamp-core", "")
    return root


def make(root: Path, *arguments: str, **environment: str) -> list[list[str]]:
    """What Python was called with, call by call, when make was called with these arguments."""
    command = ["make", "-f", str(root / "Makefile"), "PYTHON=./other python", *arguments]
    surroundings = {"PATH": "/usr/local/bin:/usr/bin:/bin", **environment}
    ended = subprocess.run(command, cwd=root, env=surroundings, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not (root / "RAN").exists()
    calls = [call.split("\0") for call in (root / "log").read_text().split("\1")[:-1]]
    assert not any(settings for *_, settings in calls)
    return [words for *words, _ in calls]


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_arrives_and_is_not_run(checkout: Path, typed: str) -> None:
    given = [f"{name}={typed}" for name in (*GIVEN, "DEBUG", "WHATEVER")]
    calls = make(checkout, "record", "sweep", "new", "bakeoff", "ui", "gpu-profile", *given)
    common = ["--profile", typed, "--set", typed]
    for expected in (
        ["extras", typed],
        ["record", typed, *common, "--from", typed],
        ["sweep", typed, *common, "--launcher", typed],
        ["new", typed, "--title", typed],
        ["bakeoff", typed, "--set", typed, "--record", typed],
        ["ui", "--port", typed],
    ):
        assert ["-m", "common.lab", *expected] in calls
    assert calls[-1] == ["-m", "common.serving.profile_gpu", typed]


@pytest.mark.parametrize("typed", TYPED[:2])
def test_what_is_set_in_the_shell_arrives_too(checkout: Path, typed: str) -> None:
    calls = make(checkout, "reproduce", "ui", SET=typed, PORT=typed, PAPER=typed)
    assert calls[-2] == ["-m", "common.lab", "reproduce", typed, "--profile", "default", "--set", typed]
    assert calls[-1] == ["-m", "common.lab", "ui", "--port", typed]


def test_a_command_without_settings_gets_the_defaults(checkout: Path) -> None:
    calls = make(checkout, "sweep", "lab")
    profile = ["--profile", "default", "--set", "", "--launcher", "joblib"]
    assert ["-m", "common.lab", "sweep", "", *profile] in calls and calls[-1] == ["-m", "common.lab", "lab"]


def test_tests_are_named_as_in_a_shell_and_none_of_it_is_run(checkout: Path) -> None:
    calls = make(checkout, "test", "TESTS=tests/lab -k 'one or $(touch RAN)'")
    assert calls[-1][0] == "-c" and 'shlex.split(os.environ["TESTS"])' in calls[-1][1]


def test_no_interpreter_of_ours_is_started_by_a_users_settings(checkout: Path) -> None:
    settings = ("PYTHONHOME", "PYTHONPATH", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONWARNINGS")
    assert make(checkout, "check", **dict.fromkeys(settings, "x")) == [["-m", "common.lab", "check"]]
