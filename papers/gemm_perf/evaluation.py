"""One table of runs, several ways to split it: what a model's score says depends on which rows it may not have seen.

`evaluate` fits the forest on each split and scores all test rows together, target by target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.stats.splits import Split, grouped_folds, leave_one_group_out, random_split
from papers.gemm_perf.forest import Features, Recipe, Score, clean, clip, fit, score

TEST_SHARE = 0.2
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Table:
    """Runs with their features, targets (name -> values) and the number of each row's size."""

    features: Features
    targets: dict[str, np.ndarray]
    size: np.ndarray


def splits(way: str, table: Table, rng: np.random.Generator, repeats: int = 1) -> list[Split]:
    """random: 80/20 of the rows, `repeats` times; grouped: five folds of whole sizes; leave-one-m-out."""
    if way == "random":
        return [random_split(len(table.size), TEST_SHARE, rng) for _ in range(repeats)]
    if way == "grouped":
        return grouped_folds(table.size, FOLDS, rng)
    if way == "leave-one-m-out":
        return list(leave_one_group_out(np.asarray(table.features.columns["m"])))
    raise ValueError(f"no way to split called {way!r}: random, grouped or leave-one-m-out")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of all test rows, one after another: their numbers in the table, truth and prediction by target."""

    rows: np.ndarray
    truth: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]

    def scores(self) -> dict[str, Score]:
        """Target -> score."""
        return {name: score(self.truth[name], self.predicted[name]) for name in self.truth}


def evaluate(
    table: Table, names: Sequence[str], parts: list[Split], recipe: Recipe, seed: int
) -> Predictions:
    """Fit on every training part and predict its test part. names: which targets."""
    raw = np.column_stack([table.targets[name] for name in names])
    cleaned = clean(table.features.matrix(recipe.labels_only), raw)
    if len(cleaned.rows) != len(raw):
        raise ValueError(f"{len(raw) - len(cleaned.rows)} rows lack a target: drop them before splitting")
    rows, truth, predicted = [], [], []
    for part in parts:
        of = slice(None) if recipe.clip_before_split else part.train
        x, y = clip(cleaned.x, cleaned.x[of]), clip(cleaned.y, cleaned.y[of])
        aim = np.log(y[part.train]) if recipe.log_targets else y[part.train]
        found = fit(x[part.train], aim, recipe, seed).predict(x[part.test])
        rows.append(part.test)
        # the paper scores clipped truth; the sound variant must answer for the values as measured
        truth.append(y[part.test] if recipe.clip_before_split else cleaned.y[part.test])
        predicted.append(np.exp(found) if recipe.log_targets else found)
    t, p = np.concatenate(truth), np.concatenate(predicted)
    return Predictions(
        np.concatenate(rows),
        {name: t[:, i] for i, name in enumerate(names)},
        {name: p[:, i] for i, name in enumerate(names)},
    )


def importance(table: Table, name: str, part: Split, recipe: Recipe, seed: int) -> dict[str, float]:
    """Feature -> how much R2 of the test part falls when that feature alone is shuffled there (negative: none)."""
    cleaned = clean(table.features.matrix(), table.targets[name][:, None])
    x, y = clip(cleaned.x, cleaned.x), clip(cleaned.y, cleaned.y)
    model = fit(x[part.train], y[part.train], recipe, seed)
    truth = y[part.test][:, 0]
    whole = score(truth, model.predict(x[part.test])[:, 0]).r2
    rng = np.random.default_rng(seed)
    fallen = {}
    for column, feature in enumerate(table.features.columns):
        shuffled = x[part.test].copy()
        shuffled[:, column] = rng.permutation(shuffled[:, column])
        fallen[feature] = whole - score(truth, model.predict(shuffled)[:, 0]).r2
    return fallen
