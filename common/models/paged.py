"""Caches of many sequences in one pool of blocks: PagedAttention's memory, with a gather before attention.

A sequence's blocks lie anywhere in the pool; its block table says where. The kernel that computes attention here wants
contiguous keys and values, so each append gathers them first, which costs a copy of the context an iteration. vLLM's
own kernel reads the blocks where they lie. Source: vLLM (SOSP 2023), Section 4.
"""

import torch
from torch import Tensor

from common.models.decoder import DecoderConfig


class BlockPool:
    """Keys and values of all sequences, shape (layers, 2, kv_heads, blocks * block_tokens, head_dim)."""

    def __init__(self, config: DecoderConfig, blocks: int, block_tokens: int = 16) -> None:
        self.data = torch.zeros(config.layers, 2, config.groups, blocks * block_tokens, config.head_dim)
        self.block_tokens = block_tokens
        self.free = list(range(blocks))

    def new(self, capacity: int) -> "PagedCache":
        """An empty cache that may grow to `capacity` tokens; it holds no block yet."""
        return PagedCache(self, capacity)

    def take(self) -> int:
        """A free block. RuntimeError where there is none: the accounting that admitted its owner was wrong."""
        if not self.free:
            raise RuntimeError("the pool has no free KV block")
        return self.free.pop()


class PagedCache:
    """A sequence's share of a pool; see decoder.Cache."""

    def __init__(self, pool: BlockPool, capacity: int) -> None:
        self.pool = pool
        self.capacity = capacity
        self.length = 0
        self.table: list[int] = []  # its blocks, in the order of its tokens
        self._places = torch.empty(0, dtype=torch.int64)  # of all tokens that its blocks hold, in the pool

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache; the result is a gathered copy."""
        end = self.length + keys.shape[1]
        while len(self._places) < end:
            block = self.pool.take()
            self.table.append(block)
            first = block * self.pool.block_tokens
            self._places = torch.cat([self._places, torch.arange(first, first + self.pool.block_tokens)])
        stored = self.pool.data[layer]
        new = self._places[self.length : end]
        stored[0][:, new] = keys
        stored[1][:, new] = values
        places = self._places[:end]
        return stored[0].index_select(1, places), stored[1].index_select(1, places)

    def advance(self, new: int) -> None:
        """See Cache."""
        self.length += new

    def release(self) -> None:
        """See Cache; the blocks go back to the pool."""
        self.pool.free += self.table
        self.table = []
        self._places = self._places[:0]
        self.length = 0
