"""Round to nearest: groups of a weight matrix's inputs, each with a scale and a zero point (asymmetric integers)."""

from typing import NamedTuple

import torch
from torch import Tensor

WHOLE_ROW = 0  # a group: all inputs of an output channel


class Grouped(NamedTuple):
    """codes: uint8 of shape (rows, columns). scales: float16, zeros: uint8, of shape (rows, groups)."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int


def round_to_nearest(weight: Tensor, bits: int, group: int = WHOLE_ROW) -> Grouped:
    """Codes of a matrix (rows, columns), whose groups of columns are spread over all codes from smallest to largest.

    Zero is always among the values. Raises ValueError if the columns are no multiple of the group.
    """
    rows, columns = weight.shape
    size = group or columns
    if columns % size:
        raise ValueError(f"{columns} columns are no multiple of a group of {size}")
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
    parts = weight.detach().to(torch.float32).view(rows, -1, size)
    low, high = parts.amin(dim=2).clamp(max=0), parts.amax(dim=2).clamp(min=0)
    top = 2**bits - 1
    scales = ((high - low) / top).clamp(min=2.0**-24).to(torch.float16)  # the smallest that float16 has
    wide = scales.to(torch.float32)
    zeros = (-low / wide).round().clamp(0, top)
    codes = ((parts / wide[..., None]).round() + zeros[..., None]).clamp(0, top)
    return Grouped(codes.view(rows, columns).to(torch.uint8), scales, zeros.to(torch.uint8), bits)


def restored(grouped: Grouped) -> Tensor:
    """The values that the codes stand for, float32 of shape (rows, columns)."""
    rows, columns = grouped.codes.shape
    parts = grouped.codes.to(torch.float32).view(rows, grouped.scales.shape[1], -1)
    values = (parts - grouped.zeros.to(torch.float32)[..., None]) * grouped.scales.to(torch.float32)[
        ..., None
    ]
    return values.view(rows, columns)
