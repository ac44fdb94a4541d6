"""Splits of a table into training and test rows, as arrays of row numbers. numpy alone.

A random split of rows lets near-copies of a test row stay in training; where rows come in groups (one product's size,
one user, one document), a grouped split keeps each group on one side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers, ascending, of the training and the test part; disjoint, and all rows together."""

    train: np.ndarray
    test: np.ndarray


def random_split(rows: int, test_share: float, rng: np.random.Generator) -> Split:
    """Rows at random: ceil(rows x test_share) of them to the test part, as scikit-learn's train_test_split counts.

    ValueError unless both parts have a row.
    """
    test = int(np.ceil(rows * test_share)) if 0 < test_share < 1 else 0
    if not 0 < test < rows:
        raise ValueError(f"{rows} rows with a test share of {test_share} leave one part empty")
    order = rng.permutation(rows)
    return Split(np.sort(order[test:]), np.sort(order[:test]))


def grouped_folds(
    groups: Sequence[object] | np.ndarray, folds: int, rng: np.random.Generator | None = None
) -> list[Split]:
    """`folds` splits in which every group is tested exactly once and is never in both parts.

    groups: one label a row, shape (rows,) or (rows, columns). Larger groups are dealt first, each to the fold with the
    fewest rows so far, so that folds are about equally large (the rule of scikit-learn's GroupKFold). rng: the order of
    groups of equal size; without it that of their labels. ValueError for fewer groups than folds.
    """
    number, sizes = _numbered(groups)
    if not 2 <= folds <= len(sizes):
        raise ValueError(f"{len(sizes)} groups can't be dealt to {folds} folds")
    order = np.arange(len(sizes)) if rng is None else rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    load = np.zeros(folds, dtype=np.int64)
    fold_of = np.zeros(len(sizes), dtype=np.int64)
    for group in order:
        fold_of[group] = np.argmin(load)
        load[fold_of[group]] += sizes[group]
    rows = fold_of[number]
    return [Split(np.flatnonzero(rows != fold), np.flatnonzero(rows == fold)) for fold in range(folds)]


def leave_one_group_out(groups: Sequence[object] | np.ndarray) -> Iterator[Split]:
    """One split a group, in the order of their labels, with that group as the test part.

    ValueError for fewer than two groups.
    """
    number, sizes = _numbered(groups)
    if len(sizes) < 2:
        raise ValueError("leaving one group out needs at least two groups")
    for group in range(len(sizes)):
        yield Split(np.flatnonzero(number != group), np.flatnonzero(number == group))


def group_numbers(groups: Sequence[object] | np.ndarray) -> np.ndarray:
    """The rows' groups as numbers 0, 1, ... in the order of their labels; shape (rows,)."""
    return _numbered(groups)[0]


def _numbered(groups: Sequence[object] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(groups)
    if labels.ndim not in (1, 2) or len(labels) == 0:
        raise ValueError(f"groups are one label a row, shape (rows,) or (rows, columns), not {labels.shape}")
    _, number, sizes = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    return number.reshape(-1), sizes
