"""The decoder's layers as functions of their weights, each on one tensor rank's pieces of them.

`weights` holds the unit's tensors by the last part of their names ("norm1.weight"); x is (rows, context, hidden).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from common.training.sharded.layout import Groups
from common.training.sharded.parameters import Shape
from common.training.sharded.tensor_parallel import cross_entropy_sum, enter, leave, lookup

Weights = Mapping[str, Tensor]


def embed(weights: Weights, tokens: Tensor, groups: Groups) -> Tensor:
    """Tokens (rows, context) and their positions, as vectors."""
    found = lookup(weights["embedding.weight"], tokens, groups.place.tensor, groups.tensor)
    return found + weights["positions.weight"][: tokens.shape[1]]


def block(weights: Weights, x: Tensor, shape: Shape, groups: Groups, dropout: float = 0.0) -> Tensor:
    """Attention and MLP, each behind its norm and beside its residual; dropout on what is added to the residual.

    Tensor ranks must draw the same masks: their generators agree.
    """
    x = x + F.dropout(attention(weights, _norm(weights, "norm1", x), shape, groups), dropout)
    return x + F.dropout(mlp(weights, _norm(weights, "norm2", x), shape, groups), dropout)


def attention(weights: Weights, x: Tensor, shape: Shape, groups: Groups) -> Tensor:
    """Causal, several query heads for each key head; whole heads on each rank."""
    rows, length, _ = x.shape
    ranks = groups.layout.tensor
    queries, keys = shape.heads // ranks, shape.kv_heads // ranks
    fused = F.linear(enter(x, groups.tensor), weights["attention.qkv.weight"], weights["attention.qkv.bias"])
    parts = fused.split([n * shape.head_dim for n in (queries, keys, keys)], dim=-1)
    q, k, v = (part.view(rows, length, -1, shape.head_dim).transpose(1, 2) for part in parts)
    k, v = (part.repeat_interleave(queries // keys, dim=1) for part in (k, v))
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, length, -1)
    partial = F.linear(seen, weights["attention.out.weight"])
    return leave(partial, groups.tensor) + weights["attention.out.bias"]


def mlp(weights: Weights, x: Tensor, shape: Shape, groups: Groups) -> Tensor:
    """One MLP, or for each token the one of several that a router likes best, times how much it does."""
    if not shape.experts:
        inner = _inner(
            F.linear(enter(x, groups.tensor), weights["mlp.up.weight"], weights["mlp.up.bias"]), shape
        )
        return leave(F.linear(inner, weights["mlp.down.weight"]), groups.tensor) + weights["mlp.down.bias"]
    flat = x.reshape(-1, shape.hidden)
    share, chosen = F.linear(flat, weights["mlp.router.weight"]).softmax(dim=-1).max(dim=-1)
    entered = enter(flat, groups.tensor)
    ups = weights["mlp.up.weight"].chunk(shape.experts)
    up_biases = weights["mlp.up.bias"].chunk(shape.experts)
    downs = weights["mlp.down.weight"].chunk(shape.experts)
    partial = torch.zeros_like(flat)
    for expert in range(shape.experts):
        mine = torch.nonzero(chosen == expert)[:, 0]
        inner = _inner(F.linear(entered[mine], ups[expert], up_biases[expert]), shape)
        partial = partial.index_add(0, mine, F.linear(inner, downs[expert]))
    biases = weights["mlp.down.bias"].view(shape.experts, -1)[chosen]
    return (share[:, None] * (leave(partial, groups.tensor) + biases)).view_as(x)


def loss_sum(weights: Weights, x: Tensor, targets: Tensor, shape: Shape, groups: Groups) -> Tensor:
    """Sum over tokens of the cross-entropy of the next one, nats; a scalar."""
    table = weights["embedding.weight"] if shape.tied else weights["head.weight"]
    flat = enter(_norm(weights, "norm", x), groups.tensor).reshape(-1, shape.hidden)
    logits = F.linear(flat, table)
    return cross_entropy_sum(logits, targets.reshape(-1), groups.place.tensor, shape.vocab, groups.tensor)


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def _inner(up: Tensor, shape: Shape) -> Tensor:
    if not shape.gated:
        return F.gelu(up)
    gate, values = up.chunk(2, dim=-1)
    return F.silu(gate) * values
