"""Block-wise quantisation: a flat tensor in blocks, each divided by its largest magnitude and coded by a code book.

An outlier then costs the precision of its block alone, and the largest magnitude of every block has no error. One
block over the whole tensor is tensor-wise quantisation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

WHOLE = 0  # a block size: the tensor is one block


class Quantised(NamedTuple):
    """A tensor of `shape` as codes, uint8 of shape (elements,), and the scale of each block, float32 of (blocks,)."""

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    block: int

    @property
    def nbytes(self) -> int:
        """Bytes that both tensors hold, one a code."""
        return self.codes.nbytes + self.scales.nbytes


def quantise(tensor: Tensor, code: Tensor, block: int = 2048) -> Quantised:
    """The nearest code of each element, relative to the largest magnitude of its block; the last block may be short.

    code: ascending values, at most 256, with zero among them. block: elements, WHOLE for one block. A value in the
    middle between two codes takes the lower one. Raises ValueError for NaN or infinity, which no code stands for.
    """
    if len(code) > 256 or bool((code[1:] < code[:-1]).any()):
        raise ValueError(f"a code book has at most 256 ascending values, not {len(code)} or unordered ones")
    if block < 0:
        raise ValueError(f"a block has a positive number of elements, or is WHOLE; not {block}")
    flat = tensor.detach().reshape(-1).to(torch.float32)
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("a tensor with NaN or infinity cannot be quantised")
    size = block or max(1, len(flat))
    blocks = _padded(flat, size)
    scales = blocks.abs().amax(dim=1)
    scaled = blocks / torch.where(scales > 0, scales, 1.0)[:, None]
    codes = torch.bucketize(scaled, (code[1:] + code[:-1]) / 2).to(torch.uint8)
    return Quantised(codes.reshape(-1)[: len(flat)].contiguous(), scales, tensor.shape, size)


def dequantise(quantised: Quantised, code: Tensor) -> Tensor:
    """The values that the codes stand for, float32, in the shape of the original."""
    values = _padded(code[quantised.codes.long()], quantised.block) * quantised.scales[:, None]
    return values.reshape(-1)[: len(quantised.codes)].reshape(quantised.shape)


def _padded(flat: Tensor, size: int) -> Tensor:
    """In rows of `size`, the last filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)
