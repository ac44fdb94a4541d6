"""Block-wise quantisation: a flat tensor in blocks, each divided by its largest magnitude and coded by a code book.

An outlier then costs the precision of its block alone, and the largest magnitude of every block has no error. One
block over the whole tensor is tensor-wise quantisation.
"""

from functools import lru_cache
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
    size = block or max(1, len(flat))
    blocks = _padded(flat, size)
    scales = torch.maximum(blocks.amax(dim=1), -blocks.amin(dim=1))
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("a tensor with NaN or infinity cannot be quantised")
    codes = _nearest(blocks / torch.where(scales > 0, scales, 1.0)[:, None], code)
    return Quantised(codes.reshape(-1)[: len(flat)].contiguous(), scales, tensor.shape, size)


def dequantise(quantised: Quantised, code: Tensor) -> Tensor:
    """The values that the codes stand for, float32, in the shape of the original."""
    values = _padded(code.index_select(0, quantised.codes.int()), quantised.block)
    values *= quantised.scales[:, None]
    return values.reshape(-1)[: len(quantised.codes)].reshape(quantised.shape)


TABLE_BITS = 17  # of a float32: its sign, its exponent and eight digits of its fraction


def _nearest(scaled: Tensor, code: Tensor) -> Tensor:
    """Number of bounds between codes that lie below each value, uint8: what `torch.bucketize` gives, but faster.

    On a CPU the first bits of a value say which code it has or which single bound may lie between it and its code; one
    comparison decides. Where bounds lie closer together than that, and elsewhere, the bounds are searched.
    """
    bounds = (code[1:] + code[:-1]) / 2
    if scaled.device.type == "cpu" and scaled.numel() >= 2**TABLE_BITS // 8:
        table = _table(bounds.numpy().tobytes())
        if table is not None:
            first = table.index_select(
                0, (scaled.view(-1).view(torch.int32) >> (32 - TABLE_BITS)) + len(table) // 2
            )
            above = torch.cat([bounds, bounds.new_tensor([torch.inf])]).index_select(0, first)
            return (first + (scaled.view(-1) > above)).to(torch.uint8).view(scaled.shape)
    return torch.bucketize(scaled, bounds).to(torch.uint8)


@lru_cache(maxsize=8)
def _table(bounds: bytes) -> Tensor | None:
    """Bounds below the smallest value of each group of equal first bits, int32; None where a group holds two bounds."""
    known = torch.frombuffer(bytearray(bounds), dtype=torch.float32)
    shift = 32 - TABLE_BITS
    groups = torch.arange(-(2 ** (TABLE_BITS - 1)), 2 ** (TABLE_BITS - 1), dtype=torch.int32) << shift
    ends = torch.stack([groups, groups | (2**shift - 1)]).view(torch.float32)
    ends = torch.where(ends.isnan(), groups.sign() * torch.inf, ends)
    low, high = torch.bucketize(ends.amin(dim=0), known), torch.bucketize(ends.amax(dim=0), known)
    return low.to(torch.int32) if bool((high - low <= 1).all()) else None


def _padded(flat: Tensor, size: int) -> Tensor:
    """In rows of `size`, the last filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)
