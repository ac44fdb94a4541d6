"""Bootstrap intervals against scipy, closed forms and their own promise (coverage)."""

import math

import numpy as np
import pytest
from scipy import stats

from common.stats.intervals import bootstrap_interval
from common.stats.paired import mean_difference, ratio_of_means


def test_one_value_is_its_own_interval():
    assert bootstrap_interval([2.5]) == (2.5, 2.5)


def test_equal_values_give_a_point():
    assert bootstrap_interval([0.1] * 7) == (0.1, 0.1)


def test_interval_is_scipys_bca():
    values = np.random.default_rng(3).exponential(size=20)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="BCa", rng=np.random.default_rng(4)
    ).confidence_interval
    assert bootstrap_interval(values, confidence=0.9, seed=4) == pytest.approx((expected.low, expected.high))


def test_large_normal_sample_agrees_with_the_t_interval():
    values = np.random.default_rng(0).normal(10, 2, 500)
    expected = stats.t.interval(0.95, 499, values.mean(), values.std(ddof=1) / math.sqrt(500))
    width = expected[1] - expected[0]
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.05 * width)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    trials = 200
    hits = 0
    for _ in range(trials):
        low, high = bootstrap_interval(rng.normal(5, 1, 30), confidence=0.8)
        hits += low <= 5 <= high
    # binomial standard deviation at 0.8 is 2.8 points; a bootstrap of 30 values covers a point or two less
    assert hits / trials == pytest.approx(0.8, abs=0.09)


def test_interval_lies_within_the_values_and_around_their_mean():
    values = [1.8, 2.1, 2.0, 2.6, 1.9]
    low, high = bootstrap_interval(values)
    assert min(values) <= low < np.mean(values) < high <= max(values)


def test_more_confidence_gives_a_wider_interval():
    values = np.random.default_rng(1).normal(size=15)
    narrow, wide = bootstrap_interval(values, 0.5), bootstrap_interval(values, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_same_seed_gives_the_same_bits():
    values = [1.0, 1.5, 2.5, 2.0, 1.1]
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_two_values_have_a_finite_interval():
    low, high = bootstrap_interval([1.0, 2.0])
    assert 1.0 <= low <= high <= 2.0


def test_values_that_differ_in_the_last_bit_have_an_interval():
    low, high = bootstrap_interval([0.3, 0.1 + 0.2, 0.3])
    assert 0.3 <= low <= high <= 0.1 + 0.2


def test_interval_scales_with_the_unit():
    values = np.random.default_rng(2).lognormal(size=12)
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(values * 1024) == (1024 * low, 1024 * high)  # a power of two: no rounding


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="an interval needs"):
        bootstrap_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_must_be_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0, 2.0], confidence)


def test_difference_of_pairs_is_the_interval_of_the_differences():
    rng = np.random.default_rng(5)
    theirs = rng.normal(100, 30, 12)
    ours = theirs + rng.normal(1, 0.1, 12)
    found = mean_difference(ours, theirs)
    assert (found.low, found.high) == bootstrap_interval(ours - theirs)
    assert found.value == pytest.approx(np.mean(ours - theirs))


def test_what_a_seed_does_to_both_cancels():
    rng = np.random.default_rng(6)
    seed_effect = rng.lognormal(0, 1, 10)
    paired = ratio_of_means(2 * seed_effect * rng.normal(1, 0.01, 10), seed_effect)
    assert paired.low < 2 < paired.high
    assert paired.high - paired.low < 0.1  # unpaired the interval would span a factor


def test_ratio_is_of_means_and_not_of_pairs():
    assert ratio_of_means([2.0, 30.0], [1.0, 10.0]).value == pytest.approx(32 / 11)


def test_equal_ratio_in_each_pair_gives_a_point():
    found = ratio_of_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_unequal_numbers_of_seeds_are_no_pairs():
    with pytest.raises(ValueError, match="same length, not 2 and 3"):
        mean_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_ratio_over_zero_is_refused():
    with pytest.raises(ValueError, match="positive"):
        ratio_of_means([1.0, 2.0], [1.0, 0.0])
