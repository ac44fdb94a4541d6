"""Worker processes that begin with what the paper imports, on one thread."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.lab.closure import imported
from common.lab.project import Project
from common.lab.workers import environment
from tests.lab.toy import REPOSITORY, write_project

PROBE = """
import sys
from pathlib import Path
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.lab.workers import warm_up
from tests.lab.test_workers import loaded
if sys.argv[2] == "warm":
    warm_up(Project(Path(sys.argv[1])), "toy")
print(Runtime([0], workers=2).map(loaded, ["colorsys", "wave"], "x"))
"""


def loaded(module: str) -> tuple[bool, int]:
    """Whether this process has a module, and how many threads it has beside the one that follows its parent."""
    return module in sys.modules, len(os.listdir("/proc/self/task")) - 1


def toy(tmp_path: Path) -> Path:
    """A paper that imports `colorsys` inside a function, a module that is not there, and `wave` for types alone."""
    root = write_project(tmp_path)
    source = root / "papers" / "toy" / "experiment.py"
    lazily = "\n\ndef late():\n    import colorsys\n    import nowhere_to_be_found\n"
    typed = "\nif TYPE_CHECKING:\n    import wave\n"
    source.write_text("from typing import TYPE_CHECKING\n" + source.read_text() + lazily + typed)
    return root


def test_workers_have_what_the_experiment_imports_and_nothing_that_only_types_need(tmp_path: Path) -> None:
    root = toy(tmp_path)
    found = {}
    for state in ("warm", "cold"):
        command = [sys.executable, "-c", PROBE, str(root), state]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        found[state] = json.loads(ended.stdout.replace("(", "[").replace(")", "]").lower())
    assert found["warm"] == [[True, 1], [False, 1]]
    assert [has for has, _ in found["cold"]] == [False, False]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary folder whose sockets' paths stay under a hundred characters, as pytest's own may not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


TWICE = """
import os, sys, tempfile
from pathlib import Path
from common.lab.runtime import Runtime
from common.lab.workers import temporary_files
from tests.lab.test_workers import loaded
before = tempfile.gettempdir()
for name in ("first", "second"):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    with temporary_files(folder):
        assert Runtime([0], workers=2).map(loaded, ["colorsys", "sys"], "x")
        assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(folder)
        assert [path.name[:5] for path in folder.iterdir()] == ["pymp-"]
    assert tempfile.gettempdir() == before and not list(folder.iterdir())
assert Runtime([0], workers=2).map(loaded, ["colorsys", "sys"], "x")
"""


def test_a_fork_server_ends_with_its_temporary_folder_and_the_next_works(short_path: Path) -> None:
    command = [sys.executable, "-c", TWICE, str(short_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr


def test_imports_within_functions_are_seen_and_those_for_types_are_not(tmp_path: Path) -> None:
    names = imported(Project(toy(tmp_path)), "toy")
    assert {"colorsys", "papers.toy.doubling.doubled", "common.lab.runtime"} <= names
    assert "wave" not in names


def test_an_environment_is_put_back_as_it_was() -> None:
    os.environ["PAPERLAB_TEST_KNOWN"] = "before"
    os.environ.pop("PAPERLAB_TEST_NEW", None)
    try:
        with environment({"PAPERLAB_TEST_KNOWN": "during", "PAPERLAB_TEST_NEW": "1"}):
            assert os.environ["PAPERLAB_TEST_KNOWN"] == "during" and os.environ["PAPERLAB_TEST_NEW"] == "1"
        assert os.environ["PAPERLAB_TEST_KNOWN"] == "before" and "PAPERLAB_TEST_NEW" not in os.environ
    finally:
        os.environ.pop("PAPERLAB_TEST_KNOWN")
