"""The textbook shared-memory tiled SGEMM of the authors' repository, and what follows from its code alone.

A block of t x t threads computes t x t elements of C = A B: it loads a t x t tile of A and of B into shared memory,
waits, multiplies, waits, and goes on along K. `t` is an argument at run time, so that the inner loop is not unrolled.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np
import torch

from common.hardware.occupancy import WARP, warps_of

BYTES = 4  # float32
LINE = 128  # bytes: a warp's access to global memory takes one pass for each line that it touches
BANKS = 32  # of shared memory, four bytes wide each
SOURCE = r"""
extern "C" __global__ void tiled_sgemm(const float* A, const float* B, float* C, int M, int N, int K, int t) {
    extern __shared__ float shared[];
    float* As = shared;
    float* Bs = shared + t * t;
    int x = threadIdx.x, y = threadIdx.y;
    long row = (long)blockIdx.y * t + y, column = (long)blockIdx.x * t + x;
    float r = 0.0f;
    for (int kk = 0; kk < (K + t - 1) / t; ++kk) {
        int a = kk * t + x, b = kk * t + y;
        As[y * t + x] = (row < M && a < K) ? A[row * K + a] : 0.0f;
        Bs[y * t + x] = (column < N && b < K) ? B[(long)b * N + column] : 0.0f;
        __syncthreads();
        for (int e = 0; e < t; ++e) r += As[y * t + e] * Bs[e * t + x];
        __syncthreads();
    }
    if (row < M && column < N) C[row * N + column] = r;
}
"""
# Registers a thread, as ptxas of CUDA 13.0 reports them for the source above (nvcc -arch=sm_xx -Xptxas -v).
REGISTERS = {"8.0": 32, "8.9": 40, "9.0": 32}


@dataclass(frozen=True)
class Launch:
    """Of a product of [m, k] and [k, n] with tile t: grid, block and dynamic shared memory."""

    grid: tuple[int, int]  # blocks along n, along m
    block: tuple[int, int]
    shared_bytes: int


def launch(m: int, n: int, tile: int) -> Launch:
    """ValueError for a tile whose block has more than 1,024 threads."""
    if not 1 <= tile <= 32:
        raise ValueError(f"a tile of {tile} has {tile * tile} threads a block; 1 to 1024 are possible")
    return Launch((ceil(n / tile), ceil(m / tile)), (tile, tile), 2 * tile * tile * BYTES)


def lane_use(tile: int) -> float:
    """Share of the lanes of a block's warps that have a thread: t^2 / (32 warps)."""
    return tile * tile / (WARP * warps_of(tile * tile))


def loaded_bytes(m: int, n: int, k: int, tile: int) -> float:
    """Bytes that all threads load from global memory: 8 M N K / t for multiples of t; each element once a tile."""
    blocks = ceil(m / tile) * ceil(n / tile)
    return 2.0 * BYTES * tile * tile * ceil(k / tile) * blocks


def barriers(k: int, tile: int) -> int:
    """Barriers of a block: two a step along K."""
    return 2 * ceil(k / tile)


@dataclass(frozen=True)
class Passes:
    """Passes through an SM's load-store unit for one step along K of one block, summed over its warps.

    global_loads: a pass for each line of 128 bytes that a warp touches. shared_stores, shared_loads: a pass for each
    word of the busiest bank; two loads an element of the inner loop, whatever the tile.
    """

    global_loads: float
    shared_stores: float
    shared_loads: float

    @property
    def total(self) -> float:
        """Passes of the step; the unit takes one a cycle."""
        return self.global_loads + self.shared_stores + self.shared_loads


@cache
def passes(tile: int) -> Passes:
    """Counted from the addresses of every warp, averaged over the tile's place along a row (rows begin on a line)."""
    threads = np.arange(tile * tile)
    lines = stores = loads = 0.0
    places = LINE // BYTES  # after so many tiles the alignment repeats, if not earlier
    for first in range(0, len(threads), WARP):
        warp = threads[first : first + WARP]
        rows, columns = warp // tile, warp % tile
        for place in range(places):
            begins = (place * tile + columns) * BYTES // LINE
            lines += 2 * len(set(zip(rows.tolist(), begins.tolist(), strict=True))) / places
        stores += 2 * _conflict(warp)
        for e in range(tile):
            loads += _conflict(rows * tile + e) + _conflict(e * tile + columns)
    return Passes(lines, stores, loads)


def _conflict(words: np.ndarray) -> int:
    """Passes for one access of a warp to shared memory: distinct words in the busiest bank (equal words: broadcast)."""
    distinct = np.unique(words)
    return int(np.bincount(distinct % BANKS).max())


def tiled_product(a: torch.Tensor, b: torch.Tensor, tile: int) -> torch.Tensor:
    """What the kernel computes, step by step on any device: [m, k] @ [k, n] with zeros outside; the same sum order.

    All blocks at once: a step adds the products of one tile column of A with one tile row of B, element after element.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"no product of shapes {tuple(a.shape)} and {tuple(b.shape)}")
    launch(a.shape[0], b.shape[1], tile)
    result = torch.zeros(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
    for start in range(0, a.shape[1], tile):
        for e in range(start, min(start + tile, a.shape[1])):
            result.addcmul_(a[:, e : e + 1], b[e : e + 1])
    return result
