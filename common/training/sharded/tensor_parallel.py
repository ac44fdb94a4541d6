"""Collectives inside a layer, forwards and backwards (Shoeybi et al. 2019, arXiv 1909.08053, Section 3).

A column-parallel matrix wants its input whole and gives a piece of its output; a row-parallel one takes that piece and
gives a part of a sum. `enter` before the first adds up gradients, `leave` after the second adds up outputs.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, group: Any) -> Tensor:
        context.group = group
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=context.group)
        return total, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, group: Any) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def enter(x: Tensor, group: Any) -> Tensor:
    """The same tensor; its gradient is the sum over the group's ranks. None: alone."""
    return x if group is None else _Enter.apply(x, group)


def leave(x: Tensor, group: Any) -> Tensor:
    """The sum over the group's ranks; gradients pass as they are."""
    return x if group is None else _Leave.apply(x, group)


def lookup(table: Tensor, tokens: Tensor, index: int, group: Any) -> Tensor:
    """Rows of an embedding whose rows lie on several ranks, this one being the index-th; (..., hidden)."""
    own = tokens - index * len(table)
    here = (own >= 0) & (own < len(table))
    rows = table[own.clamp(0, len(table) - 1)]
    return leave(torch.where(here[..., None], rows, torch.zeros_like(rows)), group)


def cross_entropy_sum(logits: Tensor, targets: Tensor, index: int, vocab: int, group: Any) -> Tensor:
    """Sum of -log softmax at the targets (n,), of logits (n, own rows) whose columns lie on several ranks.

    vocab: columns that mean something; those behind are padding and count for nothing.
    """
    first = index * logits.shape[1]
    padding = torch.arange(first, first + logits.shape[1], device=logits.device) >= vocab
    logits = logits.masked_fill(padding, float("-inf"))
    largest = logits.detach().amax(dim=1)
    if group is not None:
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    total = leave((logits - largest[:, None]).exp().sum(dim=1), group)
    own = targets - first
    here = (own >= 0) & (own < logits.shape[1])
    picked = logits.gather(1, own.clamp(0, logits.shape[1] - 1)[:, None])[:, 0] - largest
    return (total.log() - leave(torch.where(here, picked, torch.zeros_like(picked)), group)).sum()
