"""Odd values: refused in one line, or run, or found out."""

import pytest

from common.lab.abuse import compose_odd, odd_settings, tried
from common.lab.card import Card
from common.lab.config import Composed, compose
from common.lab.project import Project
from tests.lab.test_commands import edit
from tests.lab.toy import lab, write_project


def test_every_field_gets_odd_values_nested_ones_too(toy: Project) -> None:
    fields = {field for field, _ in odd_settings(compose(toy, "toy", "smoke"))}
    assert fields == {
        "requests", "rates", "mechanism", "shuffled", "noise.scale", "bias", "tardy", "wait", "fail",
    }  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str], list[str]]:
    """What the command says of a toy whose bound on `wait` lets through what its experiment can't bear."""
    root = write_project(tmp_path_factory.mktemp("abused"))
    edit(root / "papers" / "toy" / "config.py", "At(0.0, 1000.0)", "At(-2.0, 0.1)")
    ended = lab(root, "abuse", "toy")
    return ended.returncode, ended.stdout.splitlines(), ended.stderr.splitlines()


def test_values_are_refused_or_run(said: tuple[int, list[str], list[str]]) -> None:
    _, fine, _ = said
    assert (
        "toy requests=0: refused: SET.requests: 0 is out of range; it is a number from 1 to 1,000,000" in fine
    )
    assert any(
        line.startswith("toy rates=[1.0, 1.0]: refused: SET.rates: names an item twice") for line in fine
    )
    assert any(line.startswith("toy requests=1: runs; upheld: ") for line in fine)


def test_what_a_wide_bound_lets_through_is_found_out(said: tuple[int, list[str], list[str]]) -> None:
    code, _, failed = said
    assert code == 1
    assert failed == [
        "toy wait=-1: ValueError: sleep length must be non-negative",
        "toy fail=True: RuntimeError: the experiment broke",
    ]


def test_a_run_that_does_not_end_is_stopped(toy: Project) -> None:
    odd = compose_odd(compose(toy, "toy", "smoke"), "wait", 100)
    assert isinstance(odd, Composed)
    trial = tried(toy, Card.load(toy.card("toy")), odd, "wait=100: ", 1.0)
    assert trial.failed and trial.line == "wait=100: still runs after 1 s"
