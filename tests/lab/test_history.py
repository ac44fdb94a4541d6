"""Bounds come first: what git says of a claim before it was recorded."""

import subprocess
from pathlib import Path

import pytest

from common.lab.history import changed_bounds, is_shallow, unexcused
from common.lab.project import Project
from tests.lab.test_commands import edit, recorded


def commit(root: Path) -> None:
    """Commit all there is."""
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        [*author, "commit", "-q", "--allow-empty", "-m", "step"],
    ):
        subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def history(toy: Project) -> Project:
    """A repository in which the toy's card was committed before its record."""
    commit(toy.root)
    recorded(toy)
    commit(toy.root)
    return toy


def test_bounds_as_they_stood_before_the_record_need_no_word(history: Project) -> None:
    assert not is_shallow(history.root)
    assert changed_bounds(history, "toy") == []


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("value: 2.0, kind: value", "value: 2.1, kind: value", "paper.value"),
        ("tolerance: 0.1\n", "tolerance: 0.2\n", "tolerance"),
        ("no_effect: 10.0", "no_effect: 9.0", "no_effect"),
        ("free: {bias: [-0.1, 0.1]}", "free: {bias: [-0.1, 0.0]}", "free"),
        ("    control: without\n    placebo: shuffled", "    requires: {gain: 1.0}\n    control: without\n"
         "    placebo: shuffled", "requires"),
    ],
)  # fmt: skip
def test_a_bound_that_changed_after_the_record_is_found_until_it_says_why(
    history: Project, old: str, new: str, field: str
) -> None:
    edit(history.card("toy"), old, new)
    ((claim, found, _, _),) = changed_bounds(history, "toy")
    assert found == field
    (line,) = unexcused(history, "toy")
    assert f"claims.{claim}.{field} was" in line and "say so under revised" in line
    revised = (
        f"    revised: [{{field: {field.split('.')[0]}, from: a, to: b, why: the paper's v2 says so}}]\n"
    )
    edit(history.card("toy"), f"  - id: {claim}\n", f"  - id: {claim}\n{revised}")
    assert unexcused(history, "toy") == []


def test_a_claim_that_came_with_its_record_is_found(toy: Project) -> None:
    card = toy.card("toy").read_text()
    edit(toy.card("toy"), "  - id: peak\n", "  - id: summit\n")
    commit(toy.root)
    toy.card("toy").write_text(card)
    recorded(toy)
    commit(toy.root)
    assert changed_bounds(toy, "toy") == [("peak", "claim", None, "there")]


def test_words_and_sources_are_no_bounds(history: Project) -> None:
    edit(history.card("toy"), 'source: "v1, Table 1"', 'source: "v2, Table 1"')
    edit(history.card("toy"), "statement: The mechanism doubles", "statement: It doubles")
    assert changed_bounds(history, "toy") == []


def test_a_folder_without_a_repository_counts_as_shallow(tmp_path: Path) -> None:
    assert is_shallow(tmp_path)
