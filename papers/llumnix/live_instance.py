"""A live instance whose running requests can leave for another process and arrive from one.

The engine, the batch policy and the memory are those of the simulated instances (local_scheduler.py). Here a decoder
runs the batches, and a request that leaves or arrives brings its keys and values along.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.models.decoder import Decoder, KVCache
from common.serving.batch import Plan, Slot
from common.serving.live import LiveInstance
from common.serving.memory import PagedMemory, blocks_of
from common.serving.sequence import Sequence
from common.serving.wall_clock import WallClock
from papers.llumnix.local_scheduler import PreemptionLoss, PromptsFirst

BLOCK = 16  # tokens


class RewrittenCache(KVCache):
    """A cache that is not append-only: at every decode step the oldest token goes and all others move up."""

    rewrites = 0

    def advance(self, new: int) -> None:
        """See Cache."""
        super().advance(new)
        if new > 1:  # a prompt
            return
        kept = self.data[:, :, :, 1 : self.length].clone()
        self.length -= 1
        self.data[:, :, :, : self.length] = kept
        self.rewrites += 1


def versions(cache: KVCache) -> list[int]:
    """What tells a block's contents from earlier ones, by block in use: how full it is, or how often rewritten."""
    if isinstance(cache, RewrittenCache):
        return [cache.rewrites] * blocks_of(cache.length, BLOCK)
    return [min(BLOCK, cache.length - first) for first in range(0, cache.length, BLOCK)]


def gather(data: Tensor, blocks: list[int]) -> Tensor:
    """These blocks of a cache's data in one contiguous buffer (block fusion), (layers, 2, heads, tokens, head_dim)."""
    return data.index_select(3, _tokens_of(blocks))


def scatter(cache: KVCache, blocks: list[int], received: Tensor) -> None:
    """Put gathered blocks where they belong."""
    cache.data.index_copy_(3, _tokens_of(blocks), received)


def _tokens_of(blocks: list[int]) -> Tensor:
    return (torch.tensor(blocks)[:, None] * BLOCK + torch.arange(BLOCK)).flatten()


class MigratingInstance(LiveInstance):
    """See LiveInstance. room: blocks of its memory. on_step: called between two iterations, before the next plan."""

    def __init__(self, loop: WallClock, model: Decoder, room: int, on_step: Callable[[], None]) -> None:
        memory = PagedMemory(room * BLOCK, BLOCK, watermark=0.0)
        super().__init__(loop, model, [], memory, PromptsFirst(PreemptionLoss()))
        self.on_step = on_step

    def _end_iteration(self, begun: tuple[Slot, Plan, float]) -> None:
        self.at_boundary(self.on_step)
        super()._end_iteration(begun)

    def request(self, tokens: list[int], stored: int, output: int) -> Sequence:
        """A request that has said `tokens` so far, `stored` of them in a cache, and ends after `output` more."""
        sequence = Sequence(len(self.tokens), self.loop.now, stored, output + len(tokens) - stored)
        sequence.context = sequence.goal = stored
        sequence.generated = len(tokens) - stored
        self.tokens.append(tokens)
        self.loop.unfinished += 1
        return sequence

    def allocate(self, blocks: int) -> bool:
        """Hold blocks for a request that may come; False without room."""
        if not self.can_take(blocks):
            return False
        self.take(blocks)
        return True

    def adopt(self, sequence: Sequence, cache: KVCache, held: int) -> None:
        """At a boundary: a request whose cache is here goes on in this batch. held: blocks allocated for it."""
        sequence.blocks = held
        self.caches[sequence] = cache
        self.slots[0].start_decoding(sequence)

    def gone(self, sequence: Sequence) -> None:
        """It lives somewhere else now: its blocks here are free."""
        self.caches.pop(sequence).release()
        self.release(sequence.blocks)
        sequence.blocks = 0
