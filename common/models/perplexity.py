"""Perplexity by the standard protocol: windows of `context` tokens that move by `stride`, each token scored once.

A window scores the tokens that no earlier window has scored, with all of its own earlier tokens as context; the
perplexity is exp of the mean over tokens, not over windows. Losses are kept a window, so that two models are compared
on the same windows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Model = Callable[[Tensor], Tensor]  # tokens (batch, length) to logits (batch, length, vocab)


@dataclass(frozen=True)
class Windows:
    """tokens: int64 of shape (n, context). scored: how many of a window's last tokens count, int64 of shape (n,)."""

    tokens: Tensor
    scored: Tensor


def windows(tokens: Tensor, context: int, stride: int | None = None, most: int | None = None) -> Windows:
    """Cut a text of shape (length,) into full windows; a rest shorter than that is left out.

    stride: `context` if None, so that windows do not overlap. most: at most so many windows, from the beginning.
    ValueError for a text shorter than a window, and for a stride that is not between 1 and `context`.
    """
    step = context if stride is None else stride
    if not 1 <= step <= context:
        raise ValueError(f"a stride lies between 1 and the context of {context}, not {step}")
    if context < 2 or len(tokens) < context:
        raise ValueError(f"a text of {len(tokens)} tokens has no window of {context} (at least two)")
    cut = tokens.unfold(0, context, step)[:most].contiguous()
    scored = torch.full((len(cut),), step if step < context else context - 1)
    scored[0] = context - 1  # nothing stands before the first token
    return Windows(cut, scored)


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of each token but the first, nats, shape (batch, length - 1), float32."""
    flat = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


@torch.inference_mode()
def window_losses(model: Model, cut: Windows, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Summed loss of each window's scored tokens, nats, and their number; float64 and int64 of shape (n,).

    model: from tokens to logits, such as `lambda tokens: llama(tokens).logits`.
    """
    sums = []
    for tokens, scored in _batches(cut, batch):
        losses = token_losses(model(tokens), tokens).double()
        counts = torch.arange(losses.shape[1], 0, -1) <= scored[:, None]
        sums.append((losses * counts).sum(dim=1))
    return torch.cat(sums), cut.scored


def perplexity(model: Model, cut: Windows, batch: int = 1) -> float:
    """Perplexity of a model on windows; inf where it overflows."""
    return from_losses(*window_losses(model, cut, batch))


def from_losses(sums: Tensor, counts: Tensor) -> float:
    """Perplexity of summed losses (nats) and numbers of tokens; inf where it overflows or a loss is not finite."""
    mean = float(sums.sum() / counts.sum())
    return math.exp(mean) if mean < 700 else math.inf


def _batches(cut: Windows, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(cut.tokens.split(batch), cut.scored.split(batch), strict=True)
