"""What a block table costs attention: the same arithmetic on contiguous keys and on blocks that lie anywhere.

Two paged variants. Gathered: collect the blocks, then the unchanged torch kernel. Blocked: online softmax over tiles of
keys, where a tile is a view of contiguous memory or is put together from its blocks; nothing else differs, so that no
baseline is slowed. Sources: vLLM (SOSP 2023), Section 4.3; FlashAttention-2 (2023), Section 3.1.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.models.decoder import attend

TILE = 256  # keys of a tile: FlashAttention-2's smallest page
ROWS = 128  # queries of a tile


@dataclass(frozen=True)
class Paged:
    """Keys and values in blocks, each pool of shape (blocks, block_tokens, kv_heads, head_dim), and a block table."""

    keys: Tensor
    values: Tensor
    table: Tensor  # int64, (blocks of the sequence,)

    @staticmethod
    def scatter(keys: Tensor, values: Tensor, block_tokens: int, generator: torch.Generator) -> "Paged":
        """Contiguous keys and values, (tokens, kv_heads, head_dim), in blocks of a shuffled pool."""
        tokens = len(keys)
        if block_tokens < 1 or not tokens or tokens % block_tokens:
            raise ValueError(f"{tokens} tokens are no whole number of blocks of {block_tokens}")
        shape = (tokens // block_tokens, block_tokens, *keys.shape[1:])
        table = torch.randperm(shape[0], generator=generator)
        pools = []
        for one in (keys, values):
            pool = torch.empty(shape, dtype=one.dtype)
            pool[table] = one.view(shape)
            pools.append(pool)
        return Paged(pools[0], pools[1], table)

    def gather(self) -> tuple[Tensor, Tensor]:
        """Contiguous copies, (tokens, kv_heads, head_dim); of a single block there is nothing to copy."""
        if len(self.table) == 1:
            block = int(self.table[0])
            return self.keys[block], self.values[block]
        return self.keys[self.table].flatten(0, 1), self.values[self.table].flatten(0, 1)

    def tile(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Tokens [first, end): a view where one block holds them, else put together from its blocks."""
        size = self.keys.shape[1]
        begin, last = first // size, (end - 1) // size
        if begin == last:
            block, inside = int(self.table[begin]), slice(first - begin * size, end - begin * size)
            return self.keys[block, inside], self.values[block, inside]
        blocks = self.table[begin : last + 1]
        inside = slice(first - begin * size, end - begin * size)
        return (
            self.keys.index_select(0, blocks).flatten(0, 1)[inside],
            self.values.index_select(0, blocks).flatten(0, 1)[inside],
        )


def gathered_attention(queries: Tensor, paged: Paged) -> Tensor:
    """Causal attention of the last tokens, (heads, new, head_dim), with the unchanged kernel on a gathered copy."""
    keys, values = paged.gather()
    return attend(queries, keys.transpose(0, 1), values.transpose(0, 1))


def blocked_attention(
    queries: Tensor, tokens: int, tile: Callable[[int, int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Causal attention of the last tokens, (heads, new, head_dim), with an online softmax over tiles of keys.

    tokens: keys in all. tile: keys and values of tokens [first, end), each (tokens, heads, head_dim).
    """
    _, new, dim = queries.shape
    if not 1 <= new <= tokens:
        raise ValueError(f"{new} queries are not the last of {tokens} tokens")
    scale = dim**-0.5
    out = torch.empty_like(queries)
    for start in range(0, new, ROWS):
        rows = queries[:, start : start + ROWS] * scale
        last = tokens - new + start + rows.shape[1]  # keys that the last of these rows sees
        seen = torch.arange(tokens - new + start, last)
        top = torch.full((*rows.shape[:2], 1), -torch.inf)
        total = torch.zeros_like(top)
        mixed = torch.zeros_like(rows)
        for first in range(0, last, TILE):
            end = min(first + TILE, last)
            keys, values = tile(first, end)
            scores = rows @ keys.permute(1, 2, 0)
            if end > seen[0] + 1:
                scores.masked_fill_(torch.arange(first, end) > seen[:, None], -torch.inf)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights = torch.exp(scores - higher)
            fade = torch.exp(top - higher)
            total = total * fade + weights.sum(-1, keepdim=True)
            mixed = mixed * fade + weights @ values.transpose(0, 1)
            top = higher
        out[:, start : start + ROWS] = mixed / total
    return out


@dataclass(frozen=True)
class Ratios:
    """Seconds of the paged variant over the contiguous one."""

    gathered: float
    blocked: float


def paged_over_contiguous(
    new: int, context: int, heads: int, dim: int, block_tokens: int, rounds: int, generator: torch.Generator
) -> Ratios:
    """Attention of `new` tokens at the end of `context`: the fastest of rounds in turn, CPU seconds of this thread.

    Set one torch thread; other programs on the machine then hardly matter.
    """
    keys, values = (torch.randn(context, heads, dim, generator=generator) for _ in range(2))
    queries = torch.randn(heads, new, dim, generator=generator)
    paged = Paged.scatter(keys, values, block_tokens, generator)
    plain, gathered = in_turn(
        lambda: attend(queries, keys.transpose(0, 1), values.transpose(0, 1)),
        lambda: gathered_attention(queries, paged),
        rounds,
    )
    blocked, paged_blocked = in_turn(
        lambda: blocked_attention(queries, context, lambda first, end: (keys[first:end], values[first:end])),
        lambda: blocked_attention(queries, context, paged.tile),
        rounds,
    )
    return Ratios(gathered / plain, paged_blocked / blocked)


def in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Least CPU seconds of this thread for each of two calls, run A B, B A, A B ...

    A call finds in the caches what the one before it left there, so that neither may always be the second.
    """
    if rounds < 2:
        raise ValueError(f"{rounds} rounds do not let each call be the second once")
    seconds: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        for which in (0, 1) if index % 2 else (1, 0):
            begun = time.thread_time()
            (first, second)[which]()
            if index:  # the first round warms up
                seconds[which].append(time.thread_time() - begun)
    return min(seconds[0]), min(seconds[1])
