"""A small decoder-only language model with a KV cache a sequence: the whole of it, read top to bottom.

RMSNorm, rotary positions, causal grouped-query attention, gated MLP, tied embedding: Llama's layout. Sequences of
different lengths share the linear layers as one packed matrix, and attend one by one, so that a batch costs what
serving systems model: a constant, a part per token, and a part per token of context. Weights are random unless loaded:
for timing and exactness, not for prose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes; `positions` is the longest sequence in tokens, `kv_heads` the heads of keys and values (None: all)."""

    vocab: int = 512
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    positions: int = 512
    kv_heads: int | None = None
    rotary_base: float = 10_000.0
    norm_eps: float | None = None  # None: the smallest step of the number format

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads


class Cache(Protocol):
    """Where keys and values of one sequence are kept. `length` tokens are stored; `capacity` fit."""

    length: int

    @property
    def capacity(self) -> int: ...

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store what new tokens add to a layer, two tensors of shape (kv_heads, new, head_dim), behind what is stored.

        All keys and all values of the layer come back, the new ones included, shape (kv_heads, length + new, head_dim).
        """

    def advance(self, new: int) -> None:
        """Every layer has stored `new` tokens."""

    def release(self) -> None:
        """Nobody needs what is stored any more; the memory may go to another sequence."""


@runtime_checkable
class AttendingCache(Protocol):
    """A cache that computes attention itself, because not all that it stores is here."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store new keys and values, (kv_heads, new, head_dim); attention of the queries, (heads, new, head_dim)."""


class KVCache:
    """Keys and values of one sequence side by side, shape (layers, 2, kv_heads, capacity, head_dim)."""

    def __init__(self, config: DecoderConfig, capacity: int) -> None:
        self.data = torch.zeros(config.layers, 2, config.groups, capacity, config.head_dim)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.data.shape[3]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache."""
        end = self.length + keys.shape[1]
        self.data[layer, 0, :, self.length : end] = keys
        self.data[layer, 1, :, self.length : end] = values
        return self.data[layer, 0, :, :end], self.data[layer, 1, :, :end]

    def advance(self, new: int) -> None:
        """See Cache."""
        self.length += new

    def release(self) -> None:
        """See Cache."""
        self.data = self.data[:, :, :, :0]
        self.length = 0

    def stored(self) -> Tensor:
        """What is stored, contiguous, shape (layers, 2, kv_heads, length, head_dim): what a migration sends."""
        return self.data[:, :, :, : self.length].contiguous()

    @classmethod
    def received(cls, config: DecoderConfig, stored: Tensor, capacity: int) -> "KVCache":
        """A cache with room for `capacity` tokens that begins with what another process stored."""
        cache = cls(config, capacity)
        cache.length = stored.shape[3]
        cache.data[:, :, :, : cache.length] = stored
        return cache


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim = config.heads, config.groups, config.head_dim
        self.attention_norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.qkv = nn.Linear(config.hidden, (config.heads + 2 * config.groups) * config.head_dim, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.up = nn.Linear(config.hidden, 2 * config.intermediate, bias=False)
        self.down = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(
        self, x: Tensor, lengths: list[int], caches: Sequence[Cache], index: int, rotation: Tensor
    ) -> Tensor:
        """x: packed new tokens, shape (sum of lengths, hidden); each sequence's keys and values join its cache."""
        qkv = self.qkv(self.attention_norm(x)).view(len(x), -1, self.head_dim)
        turned = _rotate(qkv[:, : self.heads + self.groups], rotation).transpose(0, 1)
        queries, keys = turned[: self.heads], turned[self.heads :]
        values = qkv[:, self.heads + self.groups :].transpose(0, 1)
        mixed = []
        start = 0
        for new, cache in zip(lengths, caches, strict=True):
            rows = slice(start, start + new)
            asked, new_keys, new_values = queries[:, rows], keys[:, rows], values[:, rows]
            if isinstance(cache, AttendingCache):
                mixed.append(cache.attend(index, asked, new_keys, new_values))
            else:
                mixed.append(attend(asked, *cache.append(index, new_keys, new_values)))
            start += new
        x = x + self.out(torch.cat(mixed, dim=1).transpose(0, 1).reshape(len(x), -1))
        gate, up = self.up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last tokens of a sequence, shape (heads, new, head_dim).

    queries: (heads, new, head_dim). keys, values: of all tokens so far, the new ones last, (kv_heads, total, head_dim).
    """
    heads, new, dim = queries.shape
    groups, total, _ = keys.shape
    if new == 1:  # one query sees everything, so the heads of a group can be its rows
        rows = queries.reshape(1, groups, heads // groups, dim)
        return F.scaled_dot_product_attention(rows, keys[None], values[None]).reshape(heads, 1, dim)
    mask = None
    if new < total:  # a later chunk of a prompt sees all earlier tokens and its own past
        mask = torch.ones(new, total, dtype=torch.bool, device=queries.device).tril(total - new)
    return F.scaled_dot_product_attention(
        queries[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=groups != heads,
    )[0]


class Decoder(nn.Module):
    """The model. Weights come from `generator` (None: unset): processes that build it alike have the same ones."""

    rotations: Tensor

    def __init__(self, config: DecoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, config.norm_eps)
        self.register_buffer("rotations", rotations(config), persistent=False)
        if generator is None:
            return
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, config.hidden**-0.5, generator=generator)

    @torch.inference_mode()
    def forward(self, tokens: Sequence[Tensor], caches: Sequence[Cache]) -> Tensor:
        """Logits after the last new token of each sequence, shape (sequences, vocab).

        tokens: new tokens of each sequence, int64 of shape (n,): a prompt, a chunk of one, or the one token to decode
        from. caches: their caches, which grow by n. Raises ValueError where a cache has no room for them.
        """
        lengths = [len(new) for new in tokens]
        last = torch.tensor(lengths).cumsum(0) - 1
        return self.head(self.hidden(tokens, caches)[last])

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[Tensor], caches: Sequence[Cache]) -> Tensor:
        """Hidden values after the last layer of all new tokens, shape (sum of n, hidden); see forward."""
        lengths = [len(new) for new in tokens]
        for new, cache in zip(lengths, caches, strict=True):
            if cache.length + new > cache.capacity:
                raise ValueError(
                    f"{new} tokens do not fit behind {cache.length} in a cache of {cache.capacity}"
                )
        positions = torch.cat([
            torch.arange(cache.length, cache.length + new) for new, cache in zip(lengths, caches, strict=True)
        ])  # fmt: skip
        rotation = self.rotations[positions]
        x = self.embedding(torch.cat(list(tokens)))
        for index, layer in enumerate(self.layers):
            x = layer(x, lengths, caches, index, rotation)
        for new, cache in zip(lengths, caches, strict=True):
            cache.advance(new)
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden values, shape (tokens, vocab); the embedding is the output head too."""
        return self.norm(hidden) @ self.embedding.weight.T


def rotations(config: DecoderConfig) -> Tensor:
    """Rotary angles as complex numbers, shape (positions, head_dim / 2)."""
    frequency = config.rotary_base ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    angle = torch.outer(torch.arange(config.positions, dtype=torch.float32), frequency)
    return torch.polar(torch.ones_like(angle), angle)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary position embedding of x, shape (tokens, heads, head_dim)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation[:, None]).flatten(2).type_as(x)
