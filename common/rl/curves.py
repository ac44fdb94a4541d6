"""Learning curves over seeds: a mean and an interval at each point, and two arms compared seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """Arrays of shape (points,): where, the mean over seeds, and the ends of its bootstrap interval."""

    at: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def learning_curve(
    values: Sequence[Sequence[float]] | np.ndarray,
    at: Sequence[float] | np.ndarray | None = None,
    window: int = 1,
    confidence: float = 0.95,
) -> Curve:
    """A curve from values of shape (seeds, points), averaged over `window` points each.

    at: where the points are (such as updates), by default 0, 1, ...; a window stands at its last point. ValueError for
    seeds of different length, for values that are not finite and for a window that does not fit.
    """
    grid = _grid(values)
    places = np.arange(grid.shape[1], dtype=float) if at is None else np.asarray(at, dtype=float)
    if places.shape != (grid.shape[1],):
        raise ValueError(f"{grid.shape[1]} points don't stand at {places.shape} places")
    if not 1 <= window <= grid.shape[1]:
        raise ValueError(f"a window of {window} does not fit {grid.shape[1]} points")
    whole = grid.shape[1] // window * window
    grid = grid[:, :whole].reshape(len(grid), -1, window).mean(axis=2)
    return _with_interval(grid, places[window - 1 : whole : window], confidence)


def paired_difference(
    ours: Sequence[Sequence[float]] | np.ndarray,
    theirs: Sequence[Sequence[float]] | np.ndarray,
    at: Sequence[float] | np.ndarray | None = None,
    confidence: float = 0.95,
) -> Curve:
    """ours - theirs at each point, both (seeds, points); row i of both belongs to the same seed."""
    a, b = _grid(ours), _grid(theirs)
    if a.shape != b.shape:
        raise ValueError(f"arms are paired by seed and point: {a.shape} and {b.shape} don't fit")
    places = np.arange(a.shape[1], dtype=float) if at is None else np.asarray(at, dtype=float)
    return _with_interval(a - b, places, confidence)


def _grid(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    lengths = {len(row) for row in values}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"every seed needs the same number of points, at least one, not {sorted(lengths)}")
    grid = np.asarray(values, dtype=float)
    if not np.all(np.isfinite(grid)):
        raise ValueError("a learning curve needs finite values")
    return grid


def _with_interval(grid: np.ndarray, at: np.ndarray, confidence: float) -> Curve:
    from common.stats.intervals import bootstrap_interval  # brings scipy

    ends = np.array([bootstrap_interval(column, confidence) for column in grid.T])
    return Curve(at, grid.mean(axis=0), ends[:, 0], ends[:, 1])
