"""The benchmark of the judge runs, and its own comparison with the former rule is with the former rule."""

import numpy as np
import pytest

from benchmarks.judge import Rate, cases, intervals_before, main, missed, tally
from common.stats.intervals import bootstrap_interval


def test_the_quick_table_has_every_part_and_misses_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0
    text = capsys.readouterr().out
    for part in ("False verdicts", "Power", "Controls", "Before", "Noise that nobody promised"):
        assert f"## {part}" in text
    assert all(f"| {case.name} |" in text for case in cases())


def test_the_same_seeds_give_the_same_table() -> None:
    case = cases()[0]
    assert tally(case, 0.5, 0.25, 5, 50) == tally(case, 0.5, 0.25, 5, 50)


def test_the_rule_before_has_the_former_interval() -> None:
    values = np.random.default_rng(0).normal(1, 0.3, (3, 8))
    low, high = intervals_before(values, 4999)
    for row, ends in zip(values, zip(low, high, strict=True), strict=True):
        former = bootstrap_interval(row)
        assert ends == pytest.approx(former, abs=0.03 * (former[1] - former[0]))


def test_five_seeds_uphold_nothing_that_is_not_there() -> None:
    """The contract's own numbers, at the spread where each is worst; three standard errors of 1000 runs are allowed."""
    allowed = 0.025 + 3 * (0.025 * 0.975 / 1000) ** 0.5
    by_name = {case.name: case for case in cases()}
    for name, x, spread in (
        ("value", 0.5, 0.1),
        ("value, tolerance 0.5", 0.5, 0.1),
        ("value, ratio 2, lognormal", 0.5, 0.25),
        ("range 0.1 to 1.9", 0.05, 0.1),
        ("up to, best of 4", 0.5, 0.25),
        ("at most (1 is the bound)", 1.0, 0.5),
        ("parity (1 is the margin)", -1.0, 0.1),
        ("direction", 0.0, 0.5),
    ):
        assert tally(by_name[name], x, spread, 5, 1000)["reproduced"] <= allowed * 1000, name


def test_five_seeds_see_the_papers_effect_at_a_spread_of_a_tenth() -> None:
    for case in cases():
        if case.name in ("value", "value, ratio 2, lognormal", "range 0.8 to 1.2", "up to, at its setting"):
            assert tally(case, 1.0, 0.1, 5, 300)["reproduced"] >= 0.98 * 300, case.name


def test_a_cell_above_its_target_is_named() -> None:
    case = cases()[0]
    assert missed([(case, "none", {5: Rate(30, 1000, 0.1)})]) == []
    assert missed([(case, "none", {5: Rate(60, 1000, 0.1)})]) == [
        "value, none, 5 seeds, spread 0.1: 6.0% of 1000"
    ]
