"""Restoring a matrix from packed blocks: one operation after another, and fused.

The plain version is what the repository does without its Triton kernels: for each block unpack the signs, multiply the
factors, multiply both, add. The fused one keeps a row of the result in cache while all blocks are added to it, and
never writes a sign or a product to memory. On a CPU it is compiled by numba; on a GPU all blocks of a strip of rows go
through few large operations of torch.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

STRIP = 512  # rows that the batched version restores at once
_SHIFTS = tuple(range(7, -1, -1))  # the first sign of a byte is its highest bit


def random_blocks(
    rng: np.random.Generator, rows: int, columns: int, k: int, blocks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signs (blocks, rows, columns / 8) uint8, left (blocks, rows, k) and right (blocks, k, columns) float16."""
    signs = rng.integers(0, 256, (blocks, rows, columns // 8), dtype=np.uint8)
    left = rng.standard_normal((blocks, rows, k), dtype=np.float32).astype(np.float16)
    right = rng.standard_normal((blocks, k, columns), dtype=np.float32).astype(np.float16)
    return signs, left, right


def plain_numpy(signs: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The matrix, float32 (rows, columns), one numpy operation after another."""
    whole = np.zeros((left.shape[1], right.shape[2]), dtype=np.float32)
    for packed, u, v in zip(signs, left, right, strict=True):
        sign = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
        whole += sign * (u.astype(np.float32) @ v.astype(np.float32))
    return whole


def fused_numba(signs: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same in one compiled pass. ModuleNotFoundError without numba (the extra `kernels`)."""
    whole = np.empty((left.shape[1], right.shape[2]), dtype=np.float32)
    _compiled()(signs, left.astype(np.float32), right.astype(np.float32), _table(), whole)
    return whole


@cache
def _table() -> np.ndarray:
    """+1 and -1 of a byte's signs, float32 (256, 8)."""
    return np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


@cache
def _compiled() -> Callable[..., None]:
    import numba

    @numba.njit(fastmath=True)
    def restore(signs: Any, left: Any, right: Any, table: Any, whole: Any) -> None:
        blocks, rows, k = left.shape
        columns = right.shape[2]
        product = np.empty(columns, dtype=np.float32)
        for row in range(rows):
            line = whole[row]
            line[:] = 0.0
            for block in range(blocks):
                product[:] = 0.0
                for r in range(
                    0, k - k % 4, 4
                ):  # four at once: a fourth of the loads and stores of `product`
                    a, b = left[block, row, r], left[block, row, r + 1]
                    c, d = left[block, row, r + 2], left[block, row, r + 3]
                    v, w, x, y = (
                        right[block, r],
                        right[block, r + 1],
                        right[block, r + 2],
                        right[block, r + 3],
                    )
                    for column in range(columns):
                        product[column] += a * v[column] + b * w[column] + c * x[column] + d * y[column]
                for r in range(k - k % 4, k):
                    a, v = left[block, row, r], right[block, r]
                    for column in range(columns):
                        product[column] += a * v[column]
                for byte in range(columns // 8):
                    sign = table[signs[block, row, byte]]
                    for bit in range(8):
                        line[8 * byte + bit] += sign[bit] * product[8 * byte + bit]

    return restore


def plain_torch(signs: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The matrix in the factors' type, one operation of torch after another, on any device."""
    whole = torch.zeros(left.shape[1], right.shape[2], dtype=left.dtype, device=left.device)
    for packed, u, v in zip(signs, left, right, strict=True):
        whole += _unpacked(packed, left.dtype) * (u @ v)
    return whole


def batched_torch(signs: Tensor, left: Tensor, right: Tensor, strip: int = STRIP) -> Tensor:
    """The same, all blocks of a strip of rows in one operation each."""
    rows = left.shape[1]
    return torch.cat(
        [
            torch.einsum(
                "bmn,bmn->mn",
                _unpacked(signs[:, at : at + strip], left.dtype),
                left[:, at : at + strip] @ right,
            )
            for at in range(0, rows, strip)
        ]
    )


def _unpacked(packed: Tensor, dtype: torch.dtype) -> Tensor:
    shifts = torch.tensor(_SHIFTS, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2).to(dtype) * 2 - 1


def paired_seconds(
    runs: Sequence[Callable[..., object]], blocks: tuple[Any, Any, Any], rounds: int, device: str = "cpu"
) -> list[float]:
    """Of each of `runs(*blocks)` the fastest round, after one that is not counted.

    In turns, so that a machine that is busy for a while slows all of them.
    """
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        times.append([])
        for run in runs:
            _wait(device)
            begun = time.perf_counter()
            run(*blocks)
            _wait(device)
            times[-1].append(time.perf_counter() - begun)
    return [min(of_one) for of_one in zip(*times[1:], strict=True)]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
