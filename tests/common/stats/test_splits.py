"""Splits: parts that are disjoint and whole, groups that stay together, and scikit-learn as an independent judge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.stats.splits import Split, group_numbers, grouped_folds, leave_one_group_out, random_split

labels = st.lists(st.integers(0, 9), min_size=2, max_size=80).filter(lambda rows: len(set(rows)) >= 2)


def whole(split: Split, rows: int) -> bool:
    return np.array_equal(np.sort(np.concatenate([split.train, split.test])), np.arange(rows))


@given(st.integers(2, 200), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_random_split_holds_every_row_once(rows: int, share: float, seed: int) -> None:
    if np.ceil(rows * share) >= rows:
        with pytest.raises(ValueError, match="leave one part empty"):
            random_split(rows, share, np.random.default_rng(seed))
        return
    split = random_split(rows, share, np.random.default_rng(seed))
    assert whole(split, rows)
    assert len(split.test) == np.ceil(rows * share)


def test_a_random_split_counts_as_scikit_learn_does() -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    for rows in (7, 10, 16128, 2101):
        train, test = selection.train_test_split(np.arange(rows), test_size=0.2, random_state=42)
        ours = random_split(rows, 0.2, np.random.default_rng(42))
        assert (len(ours.train), len(ours.test)) == (len(train), len(test))


@given(labels, st.integers(2, 5), st.one_of(st.none(), st.integers(0, 9)))
def test_every_group_is_tested_once_and_never_trained_on_meanwhile(
    rows: list[int], folds: int, seed: int | None
) -> None:
    groups = np.array(rows)
    rng = None if seed is None else np.random.default_rng(seed)
    if folds > len(set(rows)):
        with pytest.raises(ValueError, match="can't be dealt"):
            grouped_folds(groups, folds, rng)
        return
    splits = grouped_folds(groups, folds, rng)
    assert len(splits) == folds
    for split in splits:
        assert whole(split, len(rows))
        assert not set(groups[split.train]) & set(groups[split.test])
    assert np.array_equal(np.sort(np.concatenate([s.test for s in splits])), np.arange(len(rows)))


@given(labels, st.integers(2, 5))
def test_folds_are_as_large_as_those_of_scikit_learns_groupkfold(rows: list[int], folds: int) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    if folds > len(set(rows)):
        return
    theirs = selection.GroupKFold(folds).split(np.zeros(len(rows)), groups=rows)
    ours = grouped_folds(rows, folds)
    assert sorted(len(s.test) for s in ours) == sorted(len(test) for _, test in theirs)


@given(labels)
def test_leaving_one_group_out_is_scikit_learns(rows: list[int]) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    theirs = selection.LeaveOneGroupOut().split(np.zeros(len(rows)), groups=rows)
    for ours, (train, test) in zip(leave_one_group_out(rows), theirs, strict=True):
        assert np.array_equal(ours.train, train) and np.array_equal(ours.test, test)


def test_groups_may_be_rows_of_several_columns() -> None:
    sizes = np.array([[512, 1024], [1024, 512], [512, 1024], [2048, 512]])
    assert list(group_numbers(sizes)) == [0, 1, 0, 2]


def test_the_same_generator_gives_the_same_folds_and_another_one_others() -> None:
    groups = np.repeat(np.arange(20), 3)
    first, again, other = (grouped_folds(groups, 4, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all(np.array_equal(a.test, b.test) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(first, other, strict=True))


def test_no_rows_and_one_group_are_refused() -> None:
    with pytest.raises(ValueError, match="one label a row"):
        group_numbers([])
    with pytest.raises(ValueError, match="at least two groups"):
        next(leave_one_group_out([1, 1]))
