"""The predictor of the authors' repository: nine features, clipped columns, one random forest of depth 6 a target.

    features   m, n, k, three block-size labels, flops = 2mnk, bytes = 4(mk + kn + mn), flops / bytes
    clip       every feature and target to its 1% and 99% quantiles, over all rows (test rows included)
    model      StandardScaler, then MultiOutputRegressor(RandomForestRegressor(100 trees, max_depth 6))

`Recipe` holds what may be changed: the sound variant clips with quantiles of the training part and fits log targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.hardware.gemm_tables import GemmEnergy, GemmTimes
from papers.gemm_perf.cutlass_grid import Grid, flops, moved_bytes

QUANTILES = (0.01, 0.99)
DTYPES = ("fp32", "tf32", "fp16", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How the forest is fitted. The defaults are the paper's."""

    trees: int = 100
    depth: int = 6
    clip_before_split: bool = True  # False: quantiles of the training part alone
    log_targets: bool = False
    labels_only: bool = False  # a control: the features are the block-size (or dtype) labels alone


@dataclass(frozen=True, eq=False)
class Features:
    """Columns by name, shape (rows,) each; `labels` names those that say nothing of the product's size."""

    columns: Mapping[str, np.ndarray]
    labels: tuple[str, ...]

    def matrix(self, labels_only: bool = False) -> np.ndarray:
        """Shape (rows, features)."""
        chosen = self.labels if labels_only else tuple(self.columns)
        return np.column_stack([self.columns[name] for name in chosen]).astype(float)


def grid_features(runs: Grid) -> Features:
    """The paper's nine."""
    labels = dict(zip(("blocksize1", "blocksize2", "blocksize3"), runs.blocks.T, strict=True))
    return Features(
        {**_sizes(runs.m, runs.n, runs.k), **labels, **_derived(runs.m, runs.n, runs.k, 4)}, tuple(labels)
    )


def table_features(table: GemmTimes | GemmEnergy) -> Features:
    """Of cuBLAS products: no block sizes (the library chooses them), one column a dtype instead."""
    element = np.where(np.isin(table.dtype, ("fp32", "tf32")), 4, 2)
    labels = {dtype: table.dtype == dtype for dtype in DTYPES}
    return Features(
        {**_sizes(table.m, table.n, table.k), **_derived(table.m, table.n, table.k, element), **labels},
        DTYPES,
    )


def _sizes(m: np.ndarray, n: np.ndarray, k: np.ndarray) -> dict[str, np.ndarray]:
    return {"m": m, "n": n, "k": k}


def _derived(m: np.ndarray, n: np.ndarray, k: np.ndarray, element: np.ndarray | int) -> dict[str, np.ndarray]:
    flop, moved = flops(m, n, k), moved_bytes(m, n, k, element)
    return {"total_flops": flop, "bytes": moved, "intensity": flop / moved}


def permuted_sizes(features: Features, groups: np.ndarray, rng: np.random.Generator) -> Features:
    """A control: every size gets the features of another size; rows of one size stay together, labels stay."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    other = rng.permutation(len(first))[number]
    moved = {
        name: column if name in features.labels else column[first][other]
        for name, column in features.columns.items()
    }
    return Features(moved, features.labels)


def numeric(column: Sequence[object] | np.ndarray) -> np.ndarray:
    """A column as numbers, thousands commas stripped; NaN where an entry is none."""
    cleaned = np.full(len(column), np.nan)
    for row, entry in enumerate(column):
        try:
            cleaned[row] = float(str(entry).replace(",", ""))
        except ValueError:
            continue
    return cleaned


@dataclass(frozen=True, eq=False)
class Cleaned:
    """Features without gaps, targets of the rows that have one, and which rows those are."""

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray


def clean(x: np.ndarray, y: np.ndarray) -> Cleaned:
    """Gaps of a feature become its median; a row without one of the targets is dropped. x (rows, f), y (rows, t)."""
    rows = np.flatnonzero(np.all(np.isfinite(y), axis=1))
    filled = np.where(np.isfinite(x), x, np.nanmedian(np.where(np.isfinite(x), x, np.nan), axis=0))
    return Cleaned(filled[rows], y[rows], rows)


def clip(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Every column limited to the QUANTILES of the same column of `of`."""
    low, high = np.quantile(of, QUANTILES, axis=0)
    return np.clip(values, low, high)


def fit(x: np.ndarray, y: np.ndarray, recipe: Recipe, seed: int) -> Any:
    """The authors' pipeline on x (rows, features) and y (rows, targets); `.predict(x)` gives (rows, targets)."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    forest = RandomForestRegressor(n_estimators=recipe.trees, max_depth=recipe.depth, random_state=seed)
    return make_pipeline(StandardScaler(), MultiOutputRegressor(forest)).fit(x, y)


@dataclass(frozen=True)
class Score:
    """Of predictions against truth: R2, mean squared and absolute error, mean and median |error| / truth in percent."""

    r2: float
    mse: float
    mae: float
    mean_ape: float
    median_ape: float


def score(truth: np.ndarray, predicted: np.ndarray) -> Score:
    """Both of shape (rows,). R2 of a constant truth is 0 where it was met and -1 where not (it is undefined)."""
    if truth.shape != predicted.shape or truth.ndim != 1 or len(truth) == 0:
        raise ValueError(f"a score needs two equal rows of values, not {truth.shape} and {predicted.shape}")
    error = predicted - truth
    spread = float(np.sum((truth - truth.mean()) ** 2))
    missed = float(np.sum(error**2))
    ape = 100.0 * np.abs(error) / np.abs(truth)
    r2 = 1.0 - missed / spread if spread > 0 else (0.0 if missed == 0 else -1.0)
    return Score(
        r2, float(np.mean(error**2)), float(np.mean(np.abs(error))), float(ape.mean()), float(np.median(ape))
    )
