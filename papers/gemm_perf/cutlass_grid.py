"""The grid of CUTLASS SGEMM runs that the authors profiled, and a model of an RTX 4070 that stands in for their table.

36 sizes x 4 kernels x 4 layout labels x 7 block-size labels x 4 scalings = 16,128 rows. All four kernels have the
tile 128x128x8, so that the block-size and layout labels change nothing: rows of one size are near-replicates.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from common.hardware.float32 import Float32Board
from papers.gemm_perf.config import SIZES_K, SIZES_M, SIZES_N
from papers.gemm_perf.tile_model import LAUNCH_SECONDS
from papers.gemm_perf.tiled_kernel import BYTES

KERNELS = LAYOUTS = ("nn", "nt", "tn", "tt")
BLOCKS = (
    (64, 64, 32), (128, 64, 32), (64, 128, 32), (128, 128, 32), (256, 128, 32), (128, 256, 32), (256, 256, 32),
)  # fmt: skip
SCALINGS = ((1.0, 0.0), (1.0, 1.0), (0.5, 0.5), (2.0, 0.0))  # alpha, beta
CUTLASS_TILE = (128, 128)  # of cutlass_simt_sgemm_128x128_8x2_*_align1
IDLE_WATT = 30.0  # of the authors' board, from their prediction figure (brief)


@dataclass(frozen=True, eq=False)
class Grid:
    """One row a run; `size` numbers the distinct (m, n, k)."""

    m: np.ndarray
    n: np.ndarray
    k: np.ndarray
    blocks: np.ndarray  # shape (rows, 3): the block-size label
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.m)

    @property
    def sizes(self) -> np.ndarray:
        """The distinct (m, n, k), shape (sizes, 3), in the order of their numbers."""
        first = np.unique(self.size, return_index=True)[1]
        return np.column_stack([self.m, self.n, self.k])[first]


def grid(
    ms: tuple[int, ...] = SIZES_M,
    ns: tuple[int, ...] = SIZES_N,
    ks: tuple[int, ...] = SIZES_K,
    repeats: int = 64,
) -> Grid:
    """All runs: every size with every block-size label, `repeats` times (kernels x layouts x scalings = 64)."""
    most = len(KERNELS) * len(LAYOUTS) * len(SCALINGS)
    if not 1 <= repeats <= most:
        raise ValueError(f"a size and block-size label is run 1 to {most} times, not {repeats}")
    sizes = np.array(list(product(ms, ns, ks)))
    labels = np.array(BLOCKS)
    rows = np.repeat(sizes, len(labels) * repeats, axis=0)
    return Grid(
        rows[:, 0],
        rows[:, 1],
        rows[:, 2],
        np.tile(np.repeat(labels, repeats, axis=0), (len(sizes), 1)),
        np.repeat(np.arange(len(sizes)), len(labels) * repeats),
    )


def flops(m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """2 m n k of each row."""
    return 2.0 * m * n * k


def moved_bytes(
    m: np.ndarray, n: np.ndarray, k: np.ndarray, element_bytes: np.ndarray | int = BYTES
) -> np.ndarray:
    """Both operands and the result once: the authors' 4 (mk + kn + mn) in float32."""
    return element_bytes * (1.0 * m * k + 1.0 * k * n + 1.0 * m * n)


def kernel_seconds(board: Float32Board, m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Seconds of the 128x128x8 kernel: whole tiles dealt out to the SMs, at the lanes' peak, or device memory.

    An SM shares its lanes among its tiles, so that the last, partly filled round costs as much as a full one.
    """
    tiles = -(-m // CUTLASS_TILE[0]) * -(-n // CUTLASS_TILE[1])
    rounds = -(-tiles // board.sms)
    tile_seconds = CUTLASS_TILE[0] * CUTLASS_TILE[1] * k / (board.lanes / board.sms) / board.boost_hz
    return LAUNCH_SECONDS + np.maximum(rounds * tile_seconds, moved_bytes(m, n, k) / board.bandwidth)


def active_watts(board: Float32Board, flop: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Power while the kernel runs: from idle to the board's limit in proportion to the FLOP rate (an assumption)."""
    return IDLE_WATT + (board.power_limit_watt - IDLE_WATT) * flop / seconds / board.flops


@dataclass(frozen=True, eq=False)
class Measurements:
    """The four targets of each row. The authors' column "TFlops" holds GFLOP/s; here it is called so."""

    runtime_ms: np.ndarray
    power_watt: np.ndarray
    energy_joule: np.ndarray
    gflops: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """Name -> values."""
        return {name: getattr(self, name) for name in TARGETS}


TARGETS = ("runtime_ms", "power_watt", "energy_joule", "gflops")


def measurements(flop: np.ndarray, seconds: np.ndarray, watts: np.ndarray) -> Measurements:
    """From times and power readings, as the authors derive them: J = W ms / 1000, and GFLOP/s from the time."""
    milliseconds = 1e3 * seconds
    return Measurements(milliseconds, watts, watts * milliseconds / 1e3, flop / seconds / 1e9)


def noisy(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Values with multiplicative (log-normal) noise, `share` of each."""
    return values * np.exp(share * rng.standard_normal(len(values)))
