"""What the forest is compared with: a line, a roofline, neighbours by size, and a look-up of each size's mean.

All predict one target from the rows of a training part. The look-up knows nothing but which size a row has: a model
that does no better under a random split of rows has learned the identity of sizes.
"""

import numpy as np

from common.hardware.float32 import Float32Board
from papers.gemm_perf.tile_model import LAUNCH_SECONDS


def linear(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Ordinary least squares with an intercept."""
    from sklearn.linear_model import LinearRegression

    return np.asarray(LinearRegression().fit(x, y).predict(x_test))


def lookup(group: np.ndarray, y: np.ndarray, group_test: np.ndarray) -> np.ndarray:
    """The mean of the training rows of the same group; of all training rows where the group was not seen."""
    count = np.bincount(group, minlength=int(max(group.max(), group_test.max())) + 1)
    total = np.bincount(group, weights=y, minlength=len(count))
    means = np.where(count > 0, total / np.maximum(count, 1), y.mean())
    return means[group_test]


def nearest(size: np.ndarray, y: np.ndarray, size_test: np.ndarray, neighbours: int = 3) -> np.ndarray:
    """Nearest training sizes by the logarithms of m, n and k, weighted by 1 / distance; a seen size gives its own mean.

    size: (rows, 3). Means are geometric.
    """
    from sklearn.neighbors import KNeighborsRegressor

    seen, number = np.unique(size, axis=0, return_inverse=True)
    number = number.reshape(-1)
    means = np.bincount(number, weights=np.log(y)) / np.bincount(number)
    model = KNeighborsRegressor(min(neighbours, len(seen)), weights="distance").fit(np.log(seen), means)
    asked, back = np.unique(size_test, axis=0, return_inverse=True)
    return np.exp(model.predict(np.log(asked)))[back.reshape(-1)]


def roofline(
    board: Float32Board,
    flop: np.ndarray,
    moved: np.ndarray,
    seconds: np.ndarray,
    flop_test: np.ndarray,
    moved_test: np.ndarray,
) -> np.ndarray:
    """Launch + max(flops / (peak a), bytes / (bandwidth b)); the shares a, b in (0, 1] fit best in the mean |log|."""
    shares = np.geomspace(0.05, 1.0, 40)
    compute = (flop / board.flops)[:, None] / shares
    memory = (moved / board.bandwidth)[:, None] / shares
    logs = np.log(seconds)
    best, chosen = np.inf, (1.0, 1.0)
    for a in range(len(shares)):
        predicted = np.log(LAUNCH_SECONDS + np.maximum(compute[:, a : a + 1], memory))
        error = np.abs(predicted - logs[:, None]).mean(axis=0)
        if error.min() < best:
            best, chosen = float(error.min()), (float(shares[a]), float(shares[error.argmin()]))
    a_share, b_share = chosen
    return LAUNCH_SECONDS + np.maximum(
        flop_test / board.flops / a_share, moved_test / board.bandwidth / b_share
    )
