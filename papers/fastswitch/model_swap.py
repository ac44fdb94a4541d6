"""A real model's KV caches swapped out and in while it answers: the answers must not change by a bit.

Several conversations share few "GPU" blocks, so that blocks change hands all the time; what a conversation leaves
behind is overwritten with NaN at once, on both sides. Tables, host copies and copy calls are those of the server.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.models.decoder import Decoder, DecoderConfig, KVCache
from papers.fastswitch.block_groups import BlockGroups, Piece, Run, pieces
from papers.fastswitch.kv_reuse import HostCopies

BLOCK_TOKENS = 16
TINY = DecoderConfig(vocab=256, hidden=64, layers=2, heads=2, intermediate=128, positions=512)


class PagedKV:
    """KV of conversations in blocks of a pool, tensors of shape (blocks, layers, 2, heads, BLOCK_TOKENS, head_dim)."""

    def __init__(self, config: DecoderConfig, gpu_blocks: int, host_blocks: int, keep: bool) -> None:
        self.config = config
        self.tables = BlockGroups(gpu_blocks, target=4)
        self.host = HostCopies(BlockGroups(host_blocks, target=4), BLOCK_TOKENS, keep, lambda _: 0.0)
        shape = (config.layers, 2, config.heads, BLOCK_TOKENS, config.head_dim)
        self.pool = torch.full((gpu_blocks, *shape), torch.nan)
        self.host_pool = torch.full((host_blocks, *shape), torch.nan)
        self.copied_blocks = 0
        self.held_blocks = 0

    def store(self, key: Hashable, cache: KVCache) -> None:
        """Write a conversation's cache into blocks of the pool."""
        needed = -(-cache.length // BLOCK_TOKENS)
        self.tables.allocate(key, needed - self.tables.used(key))
        for index, block in enumerate(_blocks(self.tables.runs(key))):
            tokens = cache.data[:, :, :, index * BLOCK_TOKENS : min((index + 1) * BLOCK_TOKENS, cache.length)]
            self.pool[block, :, :, :, : tokens.shape[3]] = tokens

    def load(self, key: Hashable, length: int) -> KVCache:
        """A conversation's cache from the pool."""
        cache = KVCache(self.config, self.config.positions)
        cache.length = length
        for index, block in enumerate(_blocks(self.tables.runs(key))):
            tokens = min(BLOCK_TOKENS, length - index * BLOCK_TOKENS)
            cache.data[:, :, :, index * BLOCK_TOKENS : index * BLOCK_TOKENS + tokens] = self.pool[
                block, :, :, :, :tokens
            ]
        return cache

    def swap_out(self, key: Hashable, tokens: int, trust: bool = False) -> None:
        """Copy out what the host lacks, and leave NaN behind. trust: take any host copy for complete (wrong)."""
        first = self.host.make_room(key, tokens)
        assert first is not None, "the host is too small"
        if trust and first:
            first = -(-tokens // BLOCK_TOKENS)
        moved = pieces(self.tables.runs(key), self.host.runs(key), first)
        _copy(self.pool, self.host_pool, moved)
        self.copied_blocks += sum(piece.length for piece in moved)
        runs = self.tables.detach(key)
        self.held_blocks += sum(run.length for run in runs)
        for start, length in runs:
            self.pool[start : start + length] = torch.nan
        self.tables.give_back(runs)
        self.host.written(key, tokens, needed=True)

    def swap_in(self, key: Hashable, tokens: int) -> None:
        """Copy a conversation back into whatever blocks are free."""
        self.tables.allocate(key, -(-tokens // BLOCK_TOKENS))
        _copy(self.host_pool, self.pool, pieces(self.host.runs(key), self.tables.runs(key)))
        before = _blocks(self.host.runs(key))
        self.host.read(key)
        for block in set(before) - set(_blocks(self.host.runs(key))):
            self.host_pool[block] = torch.nan


def _blocks(runs: list[Run]) -> list[int]:
    return [block for start, length in runs for block in range(start, start + length)]


def _copy(source: Tensor, target: Tensor, moved: list[Piece]) -> None:
    for start, to, length in moved:
        target[to : to + length] = source[start : start + length]


@dataclass(frozen=True)
class Swapped:
    """changed: share of logits rows that differ by any bit from an undisturbed run. saving: of copied-out blocks."""

    changed: float
    saving: float
    rows: int


def answer_swapped(
    generator: torch.Generator,
    rng: np.random.Generator,
    conversations: int = 6,
    rounds: int = 12,
    keep: bool = True,
    trust: bool = False,
) -> Swapped:
    """Let conversations answer in turns of a few tokens, swapped out after each; compare with undisturbed answers.

    keep: reuse host copies. trust: never copy out again what was copied once, so that copies go stale.
    """
    model = Decoder(TINY, generator)
    prompts = [
        torch.from_numpy(rng.integers(0, TINY.vocab, int(n))) for n in rng.integers(5, 60, conversations)
    ]
    order = [int(who) for _ in range(rounds) for who in rng.permutation(conversations)]
    lengths = [int(n) for n in rng.integers(1, 24, len(order))]
    kv = PagedKV(TINY, gpu_blocks=28, host_blocks=conversations * 32, keep=keep)
    plain = [KVCache(TINY, TINY.positions) for _ in prompts]
    feeds = list(prompts)
    stored = [0] * conversations
    resident: list[int] = []  # the last two stay on the GPU
    changed = rows = 0
    for who, tokens in zip(order, lengths, strict=True):
        if who not in resident and stored[who]:
            kv.swap_in(who, stored[who])
        cache = kv.load(who, stored[who]) if stored[who] else KVCache(TINY, TINY.positions)
        fed = feeds[who]
        for _ in range(tokens):
            if plain[who].length + len(fed) > TINY.positions:
                break
            truth, ours = model([fed], [plain[who]]), model([fed], [cache])
            changed += not torch.equal(truth, ours)
            rows += 1
            fed = truth.argmax(1)  # both go on with the same token, so that every row is a test of its own
        feeds[who] = fed
        kv.store(who, cache)
        stored[who] = cache.length
        if who in resident:
            resident.remove(who)
        resident.append(who)
        while len(resident) > 2 or (len(resident) > 1 and kv.tables.free < 12):
            kv.swap_out(gone := resident.pop(0), stored[gone], trust)
    return Swapped(changed / rows, 1 - kv.copied_blocks / max(1, kv.held_blocks), rows)
