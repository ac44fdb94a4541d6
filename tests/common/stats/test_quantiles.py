"""Quantile tables against the distributions that they were made of."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from common.stats.quantiles import QuantileTable

PROBABILITIES = np.linspace(0, 1, 201)


def test_drawn_values_follow_the_sample_that_the_table_is_made_of():
    sample = np.random.default_rng(0).gamma(2, 50, 20_000)
    drawn = QuantileTable.from_sample(sample, PROBABILITIES).sample(np.random.default_rng(1), 20_000)
    assert stats.ks_2samp(sample, drawn).statistic < 0.02
    assert drawn.min() >= sample.min() and drawn.max() <= sample.max()


def test_two_points_are_the_uniform_distribution():
    drawn = QuantileTable(np.array([0.0, 1.0]), np.array([3.0, 5.0])).sample(np.random.default_rng(2), 5_000)
    assert stats.kstest(drawn, stats.uniform(3, 2).cdf).pvalue > 0.01


def test_mean_is_the_area_under_the_quantile_function():
    exponential = QuantileTable(PROBABILITIES[:-1] / PROBABILITIES[-2], -np.log(1 - PROBABILITIES[:-1]))
    drawn = exponential.sample(np.random.default_rng(3), 200_000)
    assert exponential.mean == pytest.approx(drawn.mean(), rel=0.01)
    assert QuantileTable(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.0, 4.0])).mean == 1.0  # half of mean 2


def test_quantiles_are_numpys_between_the_points():
    sample = np.random.default_rng(4).normal(size=500)
    table = QuantileTable.from_sample(sample, PROBABILITIES)
    assert table.at(PROBABILITIES) == pytest.approx(np.quantile(sample, PROBABILITIES))
    assert table.at(np.array([0.5025])) == pytest.approx(np.mean(table.at(np.array([0.5, 0.505]))))


def test_a_table_does_not_change():
    source = np.array([1.0, 2.0])
    table = QuantileTable(np.array([0.0, 1.0]), source)
    source[0] = 9
    assert table.values[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        table.values[0] = 9


@pytest.mark.parametrize(
    ("probabilities", "values", "reason"),
    [
        ([0.0, 1.0], [2.0, 1.0], "not descend"),
        ([0.0, 0.9], [1.0, 2.0], "from 0 to 1"),
        ([0.0, 0.5, 0.5, 1.0], [1.0, 2.0, 3.0, 4.0], "strictly"),
        ([0.0, 1.0], [1.0, 2.0, 3.0], "two columns"),
        ([0.0, 1.0], [1.0, np.nan], "finite"),
    ],
)
def test_a_table_that_is_no_quantile_function_is_refused(probabilities, values, reason):
    with pytest.raises(ValueError, match=reason):
        QuantileTable(np.array(probabilities), np.array(values))


def test_quantiles_bring_no_scipy():
    code = "import sys, common.stats.quantiles; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
