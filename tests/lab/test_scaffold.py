"""A scaffolded paper passes every check at once; a bad name or one that is taken changes nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.lab.card import Card
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.record import Record
from common.lab.scaffold import scaffold
from tests.lab.test_reproduce import error_line
from tests.lab.toy import REPOSITORY, environment, lab, write_project

TITLE = 'A "quoted" title: with \\ and {braces}, # and """'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(write_project(tmp_path / "a project"))


def snapshot(project: Project) -> set[Path]:
    return set(project.root.rglob("*"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the scaffolded paper `fresh`, made by the command."""
    project = Project(write_project(tmp_path_factory.mktemp("scaffold") / "a project"))
    ended = lab(project.root, "new", "fresh", "--title", TITLE)
    assert ended.returncode == 0, ended.stderr
    assert "next: the claims in papers/fresh/paper.yaml" in ended.stdout
    return project


def test_its_card_says_the_title_as_it_was_given(made: Project) -> None:
    assert Card.load(made.card("fresh")).title == TITLE


def test_everything_that_is_checked_of_a_paper_is_in_order(made: Project) -> None:
    ended = lab(made.root, "check", "fresh")
    assert ended.returncode == 0, ended.stderr


def test_its_own_tests_pass(made: Project) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/papers/test_fresh.py"]
    ended = subprocess.run(command, cwd=made.root, env=environment(made.root), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert "3 passed" in ended.stdout


def test_its_files_are_formatted_and_clean(made: Project) -> None:
    places = ["papers/fresh", "notebooks/fresh.ipynb", "tests/papers/test_fresh.py"]
    for command in (["check"], ["format", "--check"]):
        settings = ["--config", str(REPOSITORY / "pyproject.toml"), "--no-cache"]
        ended = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, *places],
            cwd=made.root,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout


def test_its_notebook_runs_and_its_claim_is_not_run(made: Project) -> None:
    ended = lab(made.root, "reproduce", "fresh", "--quiet")
    assert ended.returncode == 0, ended.stderr
    (claim,) = Record.load(made.outputs / "fresh" / "results.json").claims
    assert (claim.verdict, claim.reason) == ("not run", "needs an implementation")


def test_its_notebook_is_as_nbformat_writes_it(made: Project) -> None:
    import nbformat

    text = made.notebook("fresh").read_text()
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert TITLE in "".join(json.loads(text)["cells"][0]["source"])


@pytest.mark.parametrize(
    ("slug", "title", "message"),
    [
        ("", "T", 'make new PAPER=<slug> TITLE="..."'),
        ("Fresh", "T", "'Fresh' can't be a slug: small letters"),
        ("2fresh", "T", "can't be a slug"),
        ("fresh-er", "T", "can't be a slug"),
        ("../fresh", "T", "can't be a slug"),
        ("class", "T", "no word of Python's"),
        ("sweep", "T", "belongs to a command"),
        ("toy", "T", "toy is taken: papers/toy exists"),
        ("fresh", "  ", 'make new PAPER=fresh TITLE="..."'),
        ("fresh", "x" * 301, "one line of at most 300"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_is_written(
    project: Project, slug: str, title: str, message: str
) -> None:
    before = snapshot(project)
    with pytest.raises(LabError, match=re.escape(message)):
        scaffold(project, slug, title)
    assert snapshot(project) == before


def test_a_name_that_is_half_taken_is_refused(project: Project) -> None:
    project.notebook("fresh").write_text("mine")
    with pytest.raises(LabError, match=re.escape("fresh is taken: notebooks/fresh.ipynb exists")):
        scaffold(project, "fresh", "T")
    assert project.notebook("fresh").read_text() == "mine"
    assert not project.card("fresh").exists()


def test_a_place_that_can_not_be_written_leaves_nothing_half_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(project)
    write_text = Path.write_text

    def full_disk(path: Path, text: str, **options: str) -> int:
        if path.suffix == ".ipynb":
            raise OSError(28, "No space left on device", str(path))
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(LabError, match="fresh.ipynb: can't be written: No space left"):
        scaffold(project, "fresh", "T")
    assert snapshot(project) == before


def test_the_command_refuses_in_one_line(project: Project) -> None:
    assert "toy is taken" in error_line(lab(project.root, "new", "toy", "--title", "T"))
