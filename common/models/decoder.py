"""A small decoder-only language model with a KV cache a sequence: the whole of it, read top to bottom.

RMSNorm, rotary positions, causal attention, gated MLP, tied embedding. Sequences of different lengths share the linear
layers as one packed matrix, and attend one by one, so that a batch costs what serving systems model: a constant, a part
per token, and a part per token of context. Weights are random unless loaded: for timing and exactness, not for prose.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes; `positions` is the longest sequence in tokens."""

    vocab: int = 512
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    positions: int = 512

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


class KVCache:
    """Keys and values of one sequence, shape (layers, 2, heads, capacity, head_dim); `length` tokens are stored."""

    def __init__(self, config: DecoderConfig, capacity: int) -> None:
        self.data = torch.zeros(config.layers, 2, config.heads, capacity, config.head_dim)
        self.length = 0

    def stored(self) -> Tensor:
        """What is stored, contiguous, shape (layers, 2, heads, length, head_dim): what a migration sends."""
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
        self.heads, self.head_dim = config.heads, config.head_dim
        self.attention_norm = nn.RMSNorm(config.hidden)
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(config.hidden)
        self.up = nn.Linear(config.hidden, 2 * config.intermediate, bias=False)
        self.down = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(
        self, x: Tensor, lengths: list[int], caches: list[KVCache], index: int, rotation: Tensor
    ) -> Tensor:
        """x: packed new tokens, shape (sum of lengths, hidden); each sequence's keys and values join its cache."""
        q, k, v = self.qkv(self.attention_norm(x)).view(len(x), 3, self.heads, self.head_dim).unbind(1)
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        mixed = []
        start = 0
        for new, cache in zip(lengths, caches, strict=True):
            rows = slice(start, start + new)
            past = cache.length
            cache.data[index, 0, :, past : past + new] = k[rows].transpose(0, 1)
            cache.data[index, 1, :, past : past + new] = v[rows].transpose(0, 1)
            keys, values = cache.data[index, :, :, : past + new]
            mask = None
            if new > 1 and past:  # a later chunk of a prompt sees all earlier tokens and its own past
                mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
            mixed.append(
                F.scaled_dot_product_attention(
                    q[rows].transpose(0, 1), keys, values, attn_mask=mask, is_causal=new > 1 and not past
                ).transpose(0, 1)
            )
            start += new
        x = x + self.out(torch.cat(mixed).reshape(len(x), -1))
        gate, up = self.up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """The model. Weights come from `generator`, so that every process that builds it has the same ones."""

    rotations: Tensor

    def __init__(self, config: DecoderConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden)
        self.register_buffer("rotations", _rotations(config), persistent=False)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, config.hidden**-0.5, generator=generator)

    @torch.inference_mode()
    def forward(self, tokens: list[Tensor], caches: list[KVCache]) -> Tensor:
        """Logits after the last new token of each sequence, shape (sequences, vocab).

        tokens: new tokens of each sequence, int64 of shape (n,): a prompt, a chunk of one, or the one token to decode
        from. caches: their caches, which grow by n. Raises ValueError where a cache has no room for them.
        """
        lengths = [len(new) for new in tokens]
        for new, cache in zip(lengths, caches, strict=True):
            if cache.length + new > cache.data.shape[3]:
                raise ValueError(
                    f"{new} tokens do not fit behind {cache.length} in a cache of {cache.data.shape[3]}"
                )
        positions = torch.cat([
            torch.arange(cache.length, cache.length + new) for new, cache in zip(lengths, caches, strict=True)
        ])  # fmt: skip
        rotation = self.rotations[positions]
        x = self.embedding(torch.cat(tokens))
        for index, layer in enumerate(self.layers):
            x = layer(x, lengths, caches, index, rotation)
        for new, cache in zip(lengths, caches, strict=True):
            cache.length += new
        last = torch.tensor(lengths).cumsum(0) - 1
        return self.norm(x[last]) @ self.embedding.weight.T


def _rotations(config: DecoderConfig) -> Tensor:
    """Rotary angles as complex numbers, shape (positions, head_dim / 2)."""
    frequency = 10_000.0 ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    angle = torch.outer(torch.arange(config.positions, dtype=torch.float32), frequency)
    return torch.polar(torch.ones_like(angle), angle)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary position embedding of x, shape (tokens, heads, head_dim)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation[:, None]).flatten(2).type_as(x)
