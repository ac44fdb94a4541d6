"""Iterative absolute value decomposition: a matrix as a sum of blocks, signs times a matrix of low rank.

Block i of what is left, R: S = sign(R), |R| ~ U V by its k largest singular values, R <- R - S * (U V), as in the
repository's BitStackLinear.py.
Absolute values are nearly of low rank where the matrix itself is not, and signs cost one bit each. U and V are kept in
fp16, and what is subtracted is what is kept, so that a block also corrects the rounding of those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OVERSAMPLED = 8  # columns beyond the rank that subspace iteration carries
ROUNDS = 4  # of subspace iteration; the error is within 1% of a full decomposition's (tests)
_SIGNS = torch.from_numpy(  # of a byte's eight bits, highest first; 1 stands for +1
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1
)


@dataclass(frozen=True)
class Block:
    """signs: uint8 (rows, columns / 8), eight signs a byte, first in the highest bit; empty where there are none.

    left (rows, k) and right (k, columns): float16; both (1, 1) where one number stands for all absolute values.
    """

    signs: Tensor
    left: Tensor
    right: Tensor

    @property
    def nbytes(self) -> int:
        """What the block takes."""
        return self.signs.nbytes + self.left.nbytes + self.right.nbytes


def decompose(
    weight: Tensor, k: int, blocks: int, *, absolute: bool = True, residual: bool = True
) -> Iterator[Block]:
    """Blocks of a matrix (rows, columns), most significant first.

    k: singular values a block; 0 keeps one number, the mean of the absolute values. absolute False: no signs, but the
    singular vectors of R itself, as many more as the signs' bytes hold (the paper's ablation). residual False: every
    block is made of the matrix itself, as if none came before. ValueError for columns that are no multiple of eight,
    and for a rank that the matrix has not.
    """
    rows, columns = weight.shape
    if columns % 8:
        raise ValueError(f"signs are packed eight a byte: {columns} columns are no multiple of eight")
    rank = k if absolute else rank_without_signs(rows, columns, k)
    if not 0 <= rank <= min(rows, columns):
        raise ValueError(f"a matrix of {rows} x {columns} has no {rank} singular values")
    left = weight.detach().float().clone()
    block = _block(left, rank, absolute)
    yield block
    for _ in range(blocks - 1):
        if residual:
            left -= restored([block])
            block = _block(left, rank, absolute)
        yield block


def rank_without_signs(rows: int, columns: int, k: int) -> int:
    """Singular values in the bytes of a block with signs: k' = k + mn / (16 (m + n)), as the repository."""
    return k + rows * columns // (16 * (rows + columns))


def block_bytes(rows: int, columns: int, k: int, absolute: bool = True) -> int:
    """Bytes of one block: mn / 8 of signs and 2 k (m + n) of factors (2 x 2 where k is 0)."""
    if not absolute:
        return 2 * rank_without_signs(rows, columns, k) * (rows + columns)
    return rows * columns // 8 + (2 * k * (rows + columns) if k else 4)


def restored(blocks: Sequence[Block], out: Tensor | None = None) -> Tensor:
    """The sum of blocks, float32 (rows, columns); added to `out` where it is given."""
    for block in blocks:
        absolute = block.left.float() @ block.right.float()
        if block.signs.numel():
            absolute = signs_of(block.signs).mul_(absolute)
        out = absolute if out is None else out.add_(absolute)
    if out is None:
        raise ValueError("no block, no matrix: every matrix keeps at least its first one")
    return out


def pack_signs(matrix: Tensor) -> Tensor:
    """Signs of a matrix (rows, columns), eight a byte, uint8 (rows, columns / 8); the sign of zero is +1."""
    return torch.from_numpy(np.packbits((matrix >= 0).numpy(), axis=1))


def signs_of(packed: Tensor) -> Tensor:
    """+1 and -1 of packed signs, float32 (rows, columns): a table of 256 rows, looked up."""
    return torch.nn.functional.embedding(packed.int(), _SIGNS).view(len(packed), -1)


def largest_singular(matrix: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest singular values of a matrix and their vectors, float64: (rows, k), (k,), (k, columns).

    Subspace iteration from a fixed start (Halko et al. 2011, Algorithm 4.4), products in float32 and everything small
    in float64: LAPACK's float32 solver fails to converge on some residuals, its float64 one takes a hundred times as
    long.
    """
    width = min(k + OVERSAMPLED, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0))
    start[:, 0] = 1.0  # near the first vector of a matrix without negative entries
    basis = _orthonormal(matrix @ start)
    for _ in range(ROUNDS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    small = (basis.T @ matrix).double()  # (width, columns)
    squares, turned = torch.linalg.eigh(small @ small.T)
    values = squares.clamp(min=0).sqrt().flip(0)[:k]
    turned = turned.flip(1)[:, :k]
    right = (turned.T @ small) / values.clamp(min=1e-30)[:, None]
    return basis.double() @ turned, values, right


def _block(left: Tensor, rank: int, absolute: bool) -> Block:
    matrix = left.abs() if absolute else left
    signs = pack_signs(left) if absolute else torch.empty(0, 0, dtype=torch.uint8)
    if rank == 0:
        mean = matrix.mean().sqrt().half().view(1, 1)
        return Block(signs, mean, mean.clone())
    vectors, values, turned = largest_singular(matrix, rank)
    root = values.sqrt()
    return Block(signs, (vectors * root).half(), (root[:, None] * turned).half().contiguous())


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns of a tall matrix, by two Cholesky factors in float64; float32."""
    wide = columns.double()
    for _ in range(2):
        wide = wide / wide.norm(dim=0).clamp(min=1e-300)
        gram = wide.T @ wide
        gram.diagonal().add_(1e-12)
        wide = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), wide.T, upper=False).T
    return wide.float()
