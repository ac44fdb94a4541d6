"""Real continuous batching on virtual-memory KV tensors, and the same requests on dense caches: equal token for token.

The engine is common/serving/live.py. Before each iteration the allocator hears how long every slot will be, as a
framework calls `step_async`; the attention call and the scheduler are the ones of any other cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.models.decoder import Cache, Decoder
from common.serving.batch import Plan
from common.serving.engine import simulate
from common.serving.live import LiveInstance, WallClock, workload_of
from common.serving.live import serve as serve_dense
from common.serving.memory import PagedMemory
from common.serving.schedulers import ChunkedPrefill
from common.serving.sequence import Sequence as Request
from papers.vattention.allocator import Allocator, Layout, allocator
from papers.vattention.kv_cache import KVTensors, VirtualCache, layout_of


@dataclass(frozen=True)
class Served:
    """Tokens of each request, and what the KV tensors did for them."""

    tokens: list[list[int]]
    virtual_bytes: int  # of the KV tensors
    physical_bytes: int  # of all pages
    critical_blocks: int  # KV blocks mapped while an iteration waited
    background_blocks: int
    moved: bool  # whether any tensor's address changed
    reused: int  # admissions that found all their pages mapped


class VirtualInstance(LiveInstance):
    """A live instance whose caches are slots of virtual KV tensors."""

    tensors: KVTensors
    allocator: Allocator
    reused = 0

    def _compute(self, plan: Plan, decoding: list[Request]) -> None:
        lengths = [0] * self.tensors.layout.slots
        self._fresh: dict[Request, VirtualCache] = {}
        for cache in self.caches.values():
            assert isinstance(cache, VirtualCache)
            lengths[cache.slot] = cache.length
        for sequence, new in plan.chunks:
            if sequence.context == 0:
                slot = self.allocator.alloc_reqid(new)
                self.reused += self.allocator.mapped(slot) >= self.tensors.layout.pages(new)
                self._fresh[sequence] = VirtualCache(self.tensors, self.allocator, slot)
                lengths[slot] = new
            else:
                lengths[self._slot(sequence)] += new
        for sequence in decoding:
            lengths[self._slot(sequence)] += 1
        self.allocator.step_async(lengths)
        super()._compute(plan, decoding)

    def _cache(self, sequence: Request) -> Cache:
        cache = self.caches[sequence] = self._fresh.pop(sequence)
        return cache

    def _slot(self, sequence: Request) -> int:
        cache = self.caches[sequence]
        assert isinstance(cache, VirtualCache)
        return cache.slot


def serve(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[int],
    *,
    slots: int,
    longest: int,
    page_bytes: int,
    budget: int = 256,
    share: float = 1.0,
    sliced: bool = False,
    alias: bool = False,
) -> Served:
    """Greedy tokens of every request under chunked prefill on virtual KV tensors.

    slots, longest: the largest batch and the longest request, tokens. share: physical pages over those that all slots
    at full length would need. alias: map two slots onto one physical page (the negative control).
    """
    layout: Layout = layout_of(model.config, slots, longest, page_bytes, sliced=sliced)
    blocks = max(layout.pages_per_slot + 1, int(share * slots * layout.pages_per_slot))
    tensors = KVTensors(layout, blocks, alias=alias)
    with allocator(layout, blocks, tensors) as memory:
        clock = WallClock()
        tokens = [list(prompt) for prompt in prompts]
        instance = VirtualInstance(
            clock,
            model,
            tokens,
            PagedMemory(blocks * layout.tokens_per_page, layout.tokens_per_page, watermark=0.0),
            ChunkedPrefill(budget, slots),
        )
        instance.tensors, instance.allocator = tensors, memory
        addresses = [tensors.keys(layer).data_ptr() for layer in range(model.config.layers)]
        simulate(workload_of(prompts, outputs), lambda _: instance, None, clock)
        memory.wait()
        moved = addresses != [tensors.keys(layer).data_ptr() for layer in range(model.config.layers)]
        served = Served(
            [
                row[len(prompt) : len(prompt) + output]
                for row, prompt, output in zip(tokens, prompts, outputs, strict=True)
            ],
            layout.virtual_bytes,
            blocks * layout.block_bytes,
            memory.critical_blocks,
            memory.background_blocks,
            moved,
            instance.reused,
        )
        instance.caches.clear()
    return served


def differing_share(
    model: Decoder, prompts: Sequence[Sequence[int]], outputs: Sequence[int], got: Served
) -> float:
    """Share of the greedy tokens that differ from those of the same engine on dense caches."""
    tokens = sum(len(prompt) for prompt in prompts) + sum(outputs)
    dense = serve_dense(model, prompts, outputs, ChunkedPrefill(256, 64), PagedMemory(2 * tokens + 1024, 16))
    pairs = [(a, b) for x, y in zip(dense.tokens, got.tokens, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a != b for a, b in pairs) / len(pairs)


def random_requests(
    generator: torch.Generator, vocab: int, count: int, longest: int, output: int
) -> tuple[list[list[int]], list[int]]:
    """Prompts of random tokens, 8 to `longest` of them, and how many tokens to generate (half to all of `output`)."""
    lengths = torch.randint(8, longest + 1, (count,), generator=generator).tolist()
    prompts = [torch.randint(vocab, (length,), generator=generator).tolist() for length in lengths]
    return prompts, torch.randint(output // 2, output + 1, (count,), generator=generator).tolist()
