"""The toy project, importable in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bakeoffs
import papers
from common.lab.project import Project
from tests.lab.toy import write_project


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith(("papers.toy", "bakeoffs.toy"))]:
        del sys.modules[name]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project with the one paper `toy`, in a folder whose name has a space."""
    root = write_project(tmp_path / "a project")
    monkeypatch.setattr(papers, "__path__", [str(root / "papers"), *papers.__path__])
    monkeypatch.setattr(bakeoffs, "__path__", [str(root / "bakeoffs"), *bakeoffs.__path__])
    _forget()
    yield Project(root)
    _forget()
