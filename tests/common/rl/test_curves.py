"""Learning curves: means, intervals, windows and pairs."""

import numpy as np
import pytest

from common.rl.curves import learning_curve, paired_difference
from common.stats.intervals import bootstrap_interval


def test_each_point_has_the_bootstrap_interval_of_its_seeds() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4))
    curve = learning_curve(values)
    assert curve.mean == pytest.approx(values.mean(axis=0))
    for point in range(4):
        assert (curve.low[point], curve.high[point]) == bootstrap_interval(values[:, point])


def test_a_window_averages_and_stands_at_its_last_point() -> None:
    curve = learning_curve([[1.0, 3.0, 5.0, 7.0, 100.0]], at=[10, 20, 30, 40, 50], window=2)
    assert curve.mean.tolist() == [2.0, 6.0] and curve.at.tolist() == [20, 40]


def test_pairs_cancel_what_a_seed_does_to_both_arms() -> None:
    luck = np.random.default_rng(1).normal(scale=10, size=(5, 1))
    ours, theirs = luck + np.array([[1.0, 2.0]]), luck + np.array([[0.0, 0.0]])
    gap = paired_difference(ours, theirs)
    assert gap.mean == pytest.approx([1.0, 2.0]) and gap.high - gap.low == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize(
    "values, options, message",
    [
        ([[1.0], [1.0, 2.0]], {}, "same number"),
        ([[1.0, float("nan")]], {}, "finite"),
        ([[1.0, 2.0]], {"at": [1]}, "don't stand at"),
        ([[1.0, 2.0]], {"window": 3}, "does not fit"),
    ],
)
def test_bad_input_is_refused(values: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_curve(values, **options)


def test_arms_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="paired by seed"):
        paired_difference([[1.0]], [[1.0], [2.0]])
