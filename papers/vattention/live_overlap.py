"""What real mappings add to the iterations of a real decoder: mmap on the critical path, or beside it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.models.decoder import Decoder
from papers.vattention.allocator import Layout, allocator
from papers.vattention.kv_cache import KVTensors, VirtualCache, layout_of


@dataclass(frozen=True)
class Steps:
    """A real run: seconds of each call of the allocator and of the model, and where pages were mapped."""

    step: np.ndarray
    model: np.ndarray
    mapped: np.ndarray  # whether pages were mapped since the step before ended


def measured_steps(
    model: Decoder,
    prompts: list[torch.Tensor],
    iterations: int,
    page_bytes: int,
    mode: str,
    call_seconds: float = 0.0,
) -> Steps:
    """Decode a batch on a real virtual-memory cache and time each step; mode as in decode_series.

    call_seconds: added to each mapping of a page by sleeping (a GPU driver's cost), without the interpreter lock.
    """
    layout = layout_of(model.config, len(prompts), max(map(len, prompts)) + iterations, page_bytes)
    blocks = layout.slots * layout.pages_per_slot
    tensors = _Slowed(layout, blocks, call_seconds)
    step: list[float] = []
    compute: list[float] = []
    mapped: list[bool] = []
    with allocator(layout, blocks, tensors, overlap=mode == "async") as memory:
        lengths = [len(prompt) for prompt in prompts]
        slots = [memory.alloc_reqid(length) for length in lengths]
        caches = [VirtualCache(tensors, memory, slot) for slot in slots]
        memory.step_async(lengths)
        memory.wait()
        last = model(prompts, caches).argmax(-1)
        calls = tensors.calls
        for _ in range(iterations):
            lengths = [length + 1 for length in lengths]
            begun = time.perf_counter()
            if mode == "sync":
                memory.step(lengths)
            else:
                memory.step_async(lengths)
            between = time.perf_counter()
            mapped.append(tensors.calls != calls)
            calls = tensors.calls
            last = model([one[None] for one in last], caches).argmax(-1)
            step.append(between - begun)
            compute.append(time.perf_counter() - between)
        del caches
    return Steps(np.array(step), np.array(compute), np.array(mapped))


class _Slowed(KVTensors):
    """KV tensors whose mapping takes as long as a GPU driver's besides."""

    def __init__(self, layout: Layout, blocks: int, call_seconds: float) -> None:
        super().__init__(layout, blocks)
        self._call_seconds = call_seconds

    def map(self, slot: int, index: int, block: int) -> None:
        """See KVTensors; one sleep stands for the calls of all tensors."""
        super().map(slot, index, block)
        if self._call_seconds:
            time.sleep(self._call_seconds * self.layout.tensors)


def joined(parts: Sequence[Steps]) -> Steps:
    """Several runs as one."""
    return Steps(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("step", "model", "mapped"))
    )


def excess(steps: Steps) -> float:
    """Seconds that mapping adds to a step: the median where pages were mapped, less the median elsewhere."""
    if not steps.mapped.any() or steps.mapped.all():
        raise ValueError("no iteration, or every one, maps a page; change the page or the prompts")
    return float(np.median(steps.step[steps.mapped]) - np.median(steps.step[~steps.mapped]))


def measured_prefill_step(model: Decoder, prompt: int, page_bytes: int, deferred: bool, rounds: int) -> float:
    """Least seconds of a step before the prefill of a prompt that follows an equal one, with real pages."""
    layout = layout_of(model.config, 2, prompt + 1, page_bytes)
    tensors = KVTensors(layout, 2 * layout.pages_per_slot)
    seconds = []
    with allocator(layout, 2 * layout.pages_per_slot, tensors) as memory:
        for index in range(rounds + 1):
            slot = memory.alloc_reqid(prompt)
            lengths = [0, 0]
            lengths[slot] = prompt
            begun = time.perf_counter()
            memory.step(lengths, eager_reclaim=not deferred)
            if index:
                seconds.append(time.perf_counter() - begun)
            memory.free_reqid(slot)
            memory.step([0, 0], eager_reclaim=not deferred)
    return min(seconds)
