"""Student's interval against scipy and its own promise, and how many values a width takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common.stats.student import difference_below, half_width, quantile, student_interval, values_needed

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


@given(VALUES.filter(lambda values: np.ptp(values) > 1e-3), st.floats(0.5, 0.999))
def test_interval_is_scipys(values: list[float], confidence: float) -> None:
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert student_interval(values, confidence) == pytest.approx(
        (expected.low, expected.high), rel=1e-6, abs=1e-6
    )


def test_one_value_has_no_spread_that_could_be_seen() -> None:
    assert student_interval([2.0]) == (-math.inf, math.inf)


def test_equal_values_give_a_point() -> None:
    assert student_interval([0.1] * 7) == pytest.approx((0.1, 0.1), abs=1e-12)


def test_an_array_and_a_list_give_the_same() -> None:
    values = [1.8, 2.1, 2.0, 2.6, 1.9]
    assert student_interval(np.array(values)) == student_interval(values)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [[1.0, 2.0]], 3.0])
def test_what_is_no_row_of_finite_values_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one row of finite values"):
        student_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 95.0])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        student_interval([1.0, 2.0], confidence)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_interval_covers_the_mean_of_normal_values_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(n).normal(5, 2, (2000, n)).tolist()
    hits = sum(low <= 5 <= high for low, high in map(student_interval, draws))
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)  # four standard errors


@pytest.mark.parametrize(("spread", "needed"), [(0.1, 5), (0.25, 10), (0.5, 26)])
def test_seeds_needed_for_a_quarter_of_the_effect(spread: float, needed: int) -> None:
    assert values_needed(spread, 0.25) == needed


@given(st.floats(0.01, 5.0), st.floats(0.05, 1.0), st.floats(0.9, 0.999))
def test_seeds_needed_are_the_first_that_suffice(spread: float, half: float, confidence: float) -> None:
    n = values_needed(spread, half, confidence=confidence)

    def likely(n: int) -> float:  # of so many, with the spread at its 95% quantile
        widest = spread * math.sqrt(stats.chi2.ppf(0.95, n - 1) / (n - 1))
        return float(stats.t.ppf((1 + confidence) / 2, n - 1)) * widest / math.sqrt(n)

    if n is None:
        assert likely(1000) > half
    else:
        assert likely(n) <= half * (1 + 1e-9)
        assert n == 5 or likely(n - 1) > half * (1 - 1e-9)


@pytest.mark.parametrize("half", [0.0, -1.0, math.nan])
def test_no_number_of_seeds_reaches_no_width(half: float) -> None:
    assert values_needed(0.1, half) is None


def test_half_width_falls_with_values_and_rises_with_confidence() -> None:
    assert half_width(1.0, 5) > half_width(1.0, 10) > half_width(1.0, 100)
    assert quantile(5, 0.99) > quantile(5) == pytest.approx(2.7764, abs=1e-4)


def test_a_difference_is_judged_pair_by_pair() -> None:
    moment = [1.0, 5.0, 9.0, 3.0, 7.0]  # what both sides met
    under = [0.5 * x - 0.1 + 0.01 * i for i, x in enumerate(moment)]
    assert difference_below(under, moment, 0.5)
    assert not difference_below(under[::-1], moment, 0.5)
    assert not difference_below([0.0], [9.0], 0.5)
    with pytest.raises(ValueError):
        difference_below([1.0, 2.0], [1.0], 0.5)
