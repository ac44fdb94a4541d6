"""What an order does to attention, beside what it does to keys: the error that counts is weighted by queries."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from papers.bfp_outliers.exactness import attention_inputs, turned
from papers.bfp_outliers.packed_rows import BlockRows

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class Errors(NamedTuple):
    """keys: squared error over squared keys. attention: Kullback-Leibler divergence of attention weights, nats."""

    keys: float
    attention: float


@torch.inference_mode()
def queries_and_keys(model: "LlamaForCausalLM", tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Turned queries (layers, batch, heads, length, head_dim) and keys (layers, batch, KV heads, ...)."""
    tables = model.model.rotary_emb(tokens.float(), torch.arange(tokens.shape[1])[None])
    found = [
        turned(block.self_attn, hidden, tables)
        for block, hidden in zip(model.model.layers, attention_inputs(model, tokens), strict=True)
    ]
    return torch.stack([queries for queries, _ in found]), torch.stack([keys for _, keys in found])


def over_queries(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean |k| over the mean |q| of the group's query heads, (layers, KV heads, head_dim): how coarse a step may be.

    A channel's error enters a score times |q|: where queries are large, keys need a fine step.
    """
    groups = queries.unflatten(2, (keys.shape[2], -1)).abs().mean(dim=(1, 3, 4))
    return keys.abs().mean(dim=(1, 3)) / groups.clamp(min=1e-12)


@torch.inference_mode()
def errors(queries: Tensor, keys: Tensor, order: Tensor, code: BlockRows) -> Errors:
    """Of keys that are stored in an order: means over layers, heads and tokens, causal."""
    places = order[:, None, :, None].expand(keys.shape)
    rows = keys.gather(-1, places)
    stored = code.decode(code.encode(rows)).gather(-1, places.argsort(dim=-1))
    squares = (stored - keys).square().sum(dim=(-2, -1)) / keys.square().sum(dim=(-2, -1))
    exact, found = (_log_weights(queries, held) for held in (keys, stored))
    divergence = (exact.exp() * (exact - found)).sum(dim=-1).mean()
    return Errors(float(squares.mean()), float(divergence))


def _log_weights(queries: Tensor, keys: Tensor) -> Tensor:
    length, width = keys.shape[-2:]
    scores = (
        queries
        @ keys.repeat_interleave(queries.shape[2] // keys.shape[2], dim=2).transpose(-1, -2)
        / width**0.5
    )
    return scores.masked_fill(~torch.ones(length, length).tril().bool(), -1e9).log_softmax(dim=-1)
