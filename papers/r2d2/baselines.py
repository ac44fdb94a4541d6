"""What R2D2 is compared with: a learned classifier of pairs, k-means on tables, and MinHash sketches of their cells.

All are given the pairs of tables whose schemas allow containment, which the schema stage finds exactly, and their best
threshold, or number of clusters, by the truth: they could only do worse on their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.parquet import Footer
from papers.r2d2.schema_graph import Edge

if TYPE_CHECKING:
    import pyarrow

PERMUTATIONS = 128
TREES = 100


@dataclass(frozen=True)
class Score:
    """Share of the predicted edges that are true, and of the true ones that were predicted."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    def loss(self, ours: "Score") -> float:
        """By how much precision or recall, whichever is worse, falls short of ours."""
        return max(ours.precision - self.precision, ours.recall - self.recall)


def score(predicted: np.ndarray, truth: np.ndarray) -> Score:
    """Of boolean arrays of equal shape; precision of no prediction is 1, recall of no true edge too."""
    hits = int(np.sum(predicted & truth))
    return Score(
        hits / int(predicted.sum()) if predicted.any() else 1.0,
        hits / int(truth.sum()) if truth.any() else 1.0,
    )


def best_threshold(values: np.ndarray, truth: np.ndarray) -> Score:
    """The best F1 over all thresholds `value >= threshold`."""
    return max(
        (score(values >= threshold, truth) for threshold in np.unique(values)), key=lambda found: found.f1
    )


@dataclass(frozen=True, eq=False)
class Profile:
    """A table for the baselines: rows, and of each column (mean, spread, low, high, distinct values) as numbers."""

    rows: int
    columns: dict[tuple[str, str], np.ndarray]


def profiles(paths: Sequence[Path], footers: Sequence[Footer]) -> list[Profile]:
    """Statistics of every column from the data; strings and dates through 32 bits of a hash or their day numbers."""
    import pyarrow.parquet as parquet

    found = []
    for path, footer in zip(paths, footers, strict=True):
        table = parquet.ParquetFile(path).read()
        columns = {}
        for column in footer.columns:
            values = _numbers(table[column.name])
            finite = values[np.isfinite(values)]
            shape = [finite.mean(), finite.std(), finite.min(), finite.max()] if len(finite) else [0.0] * 4
            columns[column.name, column.type] = np.array([*shape, float(len(np.unique(values)))])
        found.append(Profile(footer.rows, columns))
    return found


def _numbers(column: "pyarrow.ChunkedArray") -> np.ndarray:
    """A column as floats, null as NaN."""
    import polars

    series = polars.from_arrow(column)
    assert isinstance(series, polars.Series)
    if series.dtype == polars.String:
        hashed = (series.hash(seed=0) % 2**32).cast(polars.Float64)
        series = (
            hashed.to_frame("h").select(polars.when(series.is_not_null()).then(polars.col("h"))).to_series()
        )
    elif series.dtype == polars.Date:
        series = series.cast(polars.Int32)
    return series.cast(polars.Float64).to_numpy()


def pair_features(pairs: Sequence[Edge], tables: Sequence[Profile]) -> np.ndarray:
    """Schema similarity, sizes, and how the statistics of common columns differ; shape (pairs, 12)."""
    rows = []
    for above, below in pairs:
        b, a = tables[above], tables[below]
        common = [column for column in a.columns if column in b.columns]
        one = np.array([a.columns[column] for column in common])
        other = np.array([b.columns[column] for column in common])
        spread = np.maximum(other[:, 3] - other[:, 2], 1e-9)
        differences = np.abs(one[:, :4] - other[:, :4]) / spread[:, None]
        distinct = (one[:, 4] + 1) / (other[:, 4] + 1)
        sticks_out = np.maximum(other[:, 2] - one[:, 2], one[:, 3] - other[:, 3]) / spread
        rows.append(
            [
                len(common) / len(a.columns.keys() | b.columns.keys()),
                len(a.columns),
                len(b.columns),
                np.log((a.rows + 1) / (b.rows + 1)),
                *differences.mean(0),
                differences.max(),
                distinct.mean(),
                distinct.max(),
                sticks_out.max(),
            ]
        )
    return np.array(rows, dtype=float)


def forest(features: np.ndarray, truth: np.ndarray, labelled_share: float, rng: np.random.Generator) -> Score:
    """A random forest trained on a share of the pairs, scored on the others at its best threshold.

    labelled_share 1: all labels are known, and the same pairs are scored.
    """
    from sklearn.ensemble import RandomForestClassifier

    labelled = rng.random(len(truth)) < labelled_share
    if len(np.unique(truth[labelled])) < 2:
        return Score(1.0, 1.0) if len(np.unique(truth)) < 2 else score(np.ones(len(truth), bool), truth)
    model = RandomForestClassifier(TREES, random_state=int(rng.integers(2**31)), n_jobs=1)
    model.fit(features[labelled], truth[labelled])
    scored = ~labelled if not labelled.all() else labelled
    return best_threshold(model.predict_proba(features[scored])[:, 1], truth[scored])


def k_means(
    tables: Sequence[Profile], pairs: Sequence[Edge], truth: np.ndarray, numbers: Sequence[int], seed: int
) -> Score:
    """Pairs within a cluster of tables by schema and statistics, at the best of these numbers of clusters."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    names = {column: place for place, column in enumerate(sorted({c for t in tables for c in t.columns}))}
    grid = np.zeros((len(tables), len(names), 6))
    for place, table in enumerate(tables):
        for column, values in table.columns.items():
            # a column's presence, and its statistics with large numbers drawn together
            grid[place, names[column]] = [1.0, *(np.sign(values) * np.log1p(np.abs(values)))]
    scale = grid.std(0)
    vectors = ((grid - grid.mean(0)) / np.where(scale > 0, scale, 1.0)).reshape(len(tables), -1)
    above, below = np.array([u for u, _ in pairs]), np.array([v for _, v in pairs])
    found = []
    for number in sorted({min(max(1, number), len(tables)) for number in numbers}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different tables than clusters
            cluster = KMeans(number, n_init=2, random_state=seed).fit_predict(vectors)
        found.append(score(cluster[above] == cluster[below], truth))
    return max(found, key=lambda each: each.f1)


def sketches(paths: Sequence[Path], footers: Sequence[Footer]) -> tuple[list[Any], np.ndarray]:
    """A MinHash of each table's cells (column, value), and how many distinct ones it has, shape (tables,).

    Cells and not rows, since a projection shares no row with its container but all of its cells.
    """
    import polars
    from datasketch import MinHash

    signatures, sizes = [], []
    for path, footer in zip(paths, footers, strict=True):
        frame = polars.read_parquet(path)
        cells = np.unique(
            np.concatenate(
                [
                    frame[column.name].unique().hash(seed=_seed(column.name, column.type)).to_numpy()
                    >> np.uint64(32)
                    for column in footer.columns
                ]
            )
        )
        sketch = MinHash(PERMUTATIONS, seed=1, hashfunc=int)
        sketch.update_batch(cells.tolist())
        signatures.append(sketch)
        sizes.append(max(1, len(cells)))
    return signatures, np.array(sizes)


def _seed(*words: str) -> int:
    """A number of a column's name and type, the same in every process."""
    import zlib

    return zlib.crc32("\x1f".join(words).encode())


def lsh_ensemble(
    signatures: Sequence[Any], sizes: np.ndarray, pairs: Sequence[Edge], truth: np.ndarray
) -> Score:
    """Estimated containment at its best threshold: an LSH Ensemble's candidates or all pairs, whichever is better.

    The ensemble (Zhu et al., VLDB 2016) asks for a containment of 0.8; all pairs have no index's misses.
    """
    from datasketch import MinHashLSHEnsemble

    index = MinHashLSHEnsemble(threshold=0.8, num_perm=PERMUTATIONS, num_part=8)
    index.index((place, sketch, int(sizes[place])) for place, sketch in enumerate(signatures))
    candidates = {
        (int(above), below)
        for below, sketch in enumerate(signatures)
        for above in index.query(sketch, int(sizes[below]))
    }
    above, below = np.array([u for u, _ in pairs]), np.array([v for _, v in pairs])
    jaccard = np.array([signatures[u].jaccard(signatures[v]) for u, v in pairs])
    estimated = np.round(jaccard * (sizes[above] + sizes[below]) / (1 + jaccard) / sizes[below], 3)
    found = np.array([pair in candidates for pair in pairs])
    return max(
        (best_threshold(values, truth) for values in (estimated, np.where(found, estimated, 0.0))),
        key=lambda each: each.f1,
    )
