"""What quantised states do to Adam's update u = m / (sqrt(r) + eps): how far off it is, what was flushed to zero.

A second moment that becomes zero is the way it fails: what is left below the line is eps alone, and the update is as
large as m / eps. States are those of a real run, in 32 bits; both are quantised once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.quant.blockwise import dequantise, quantise
from papers.eight_bit_optimizers.optimizer import Adam, States, code_book

Moments = tuple[Tensor, Tensor]  # first and second, of one tensor


@dataclass(frozen=True)
class UpdateError:
    """Means over elements: |u32 - u8|, |u32 - u8| / |u32| where u32 is not zero, positive r that became zero."""

    absolute: float
    relative: float
    flushed: float


def moments_of(optimizer: Adam) -> list[Moments]:
    """32-bit states of an optimizer's tensors that are large enough to be quantised."""
    smallest = optimizer.defaults["smallest"]
    return [
        (state["first"].clone(), state["second"].clone())
        for state in optimizer.state.values()
        if "second" in state
        and state["second"].dtype == torch.float32
        and state["second"].numel() >= smallest
    ]


def kept_in_eight_bits(moments: Moments, states: States) -> tuple[Moments, Moments]:
    """Codes of both moments, int64, and the values that they stand for; shapes as given."""
    codes, values = [], []
    for moment, signed in zip(moments, (True, False), strict=True):
        book = code_book(states.code, signed)
        kept = quantise(moment, book, states.block)
        codes.append(kept.codes.long().view(moment.shape))
        values.append(dequantise(kept, book))
    return (codes[0], codes[1]), (values[0], values[1])


def update_error(moments: Iterable[Moments], states: States, eps: float) -> UpdateError:
    """The error of a setting over all tensors. ValueError where there is no tensor."""
    absolute = relative = flushed = 0.0
    elements = moved = positive = 0
    for first, second in moments:
        _, (first8, second8) = kept_in_eight_bits((first, second), states)
        exact = update(first, second, eps)
        off = (exact - update(first8, second8, eps)).abs()
        absolute += float(off.sum())
        relative += float((off / exact.abs())[exact != 0].sum())
        flushed += float(((second > 0) & (second8 == 0)).sum())
        elements += first.numel()
        moved += int((exact != 0).sum())
        positive += int((second > 0).sum())
    if not elements:
        raise ValueError("no tensor is large enough to be quantised")
    return UpdateError(absolute / elements, relative / max(1, moved), flushed / max(1, positive))


def update(first: Tensor, second: Tensor, eps: float) -> Tensor:
    """m / (sqrt(r) + eps), float64: Section 4's quantity, without bias correction."""
    return first.double() / (second.double().sqrt() + eps)


def error_map(moments: Sequence[Moments], states: States, eps: float) -> tuple[Tensor, Tensor]:
    """Mean |u32 - u8| and number of elements for each pair of codes, float64 of shape (256, 256).

    Rows: codes of the first moment, columns: of the second. NaN where no element has the pair.
    """
    total, count = torch.zeros(256 * 256, dtype=torch.float64), torch.zeros(256 * 256, dtype=torch.float64)
    for first, second in moments:
        (code1, code2), (first8, second8) = kept_in_eight_bits((first, second), states)
        off = (update(first, second, eps) - update(first8, second8, eps)).abs().flatten()
        pair = (256 * code1 + code2).flatten()
        total.index_add_(0, pair, off)
        count.index_add_(0, pair, torch.ones_like(off))
    return (total / count).view(256, 256), count.view(256, 256)
