"""How many requests fit at once, by page size: exact counts of pages over a stream of requests that come and grow.

A KV block holds page_bytes of every tensor, so that a request wastes half a block on average: with 2 MB pages and
four KV heads of 128 that is 1,024 tokens. Source: vAttention (ASPLOS 2025), Sections 6.2 and 7.6.
"""

from dataclasses import dataclass

import numpy as np

from common.serving.workload import Lengths
from papers.vattention.allocator import Layout

WATERMARK = 0.01  # of the blocks, kept from new requests (vLLM's block manager)


@dataclass(frozen=True)
class Occupancy:
    """Of a run: the largest batch, the mean one, and the share of mapped bytes that hold no token (mean)."""

    largest: int
    mean: float
    waste: float


def occupancy(layout: Layout, kv_bytes: int, lengths: Lengths, iterations: int) -> Occupancy:
    """Serve requests from an endless queue, first come, first served, one token an iteration each.

    A request is admitted when the blocks of its prompt are free and WATERMARK of all stays so; when growth finds no
    block, the request admitted last goes back to the queue's head (recomputed later).
    """
    capacity = kv_bytes // layout.block_bytes
    token, page = layout.token_bytes, layout.page_bytes
    prompts, outputs = lengths.prompt, lengths.output
    running = np.zeros(0, dtype=np.int64)  # indices, in order of admission
    done = np.zeros(len(prompts), dtype=np.int64)  # tokens generated
    waiting = list(range(len(prompts)))[::-1]
    sizes, wastes = [], []

    def blocks(tokens: np.ndarray) -> np.ndarray:
        return -(-tokens * token // page)

    for _ in range(iterations):
        held = blocks(prompts[running] + done[running])
        free = capacity - int(held.sum())
        while waiting:
            need = int(-(-int(prompts[waiting[-1]] + done[waiting[-1]]) * token // page))
            if free - need < WATERMARK * capacity:
                break
            running = np.append(running, waiting.pop())
            free -= need
        if not len(running):
            raise ValueError(f"no request fits into {capacity} KV blocks")
        while len(running) > 1 and blocks(prompts[running] + done[running] + 1).sum() > capacity:
            waiting.append(int(running[-1]))
            running = running[:-1]
        done[running] += 1
        tokens = prompts[running] + done[running]
        sizes.append(len(running))
        wastes.append(1.0 - float(tokens.sum()) * token / (float(blocks(tokens).sum()) * page))
        running = running[done[running] < outputs[running]]
        if not waiting and not len(running):
            break
    return Occupancy(max(sizes), float(np.mean(sizes)), float(np.mean(wastes)))


def static_batch(layout: Layout, kv_bytes: int) -> int:
    """Requests that fit when each reserves its longest length in physical memory (Orca, FasterTransformer)."""
    return kv_bytes // (layout.tensors * layout.slot_bytes)
