"""What mapping costs an iteration: on the critical path, in the background, or not at all.

`decode_series` steps the allocator over a trace on a clock of known seconds: a GPU's driver calls and a profiled
model's iterations (simulated). `measured_steps` and `measured_prefills` time real mmap calls beside a real decoder.
Source: vAttention (ASPLOS 2025), Sections 6.1 and 7.6 (Figures 12 and 13).
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from common.models.decoder import Decoder
from common.serving.latency import LatencyModel
from common.serving.workload import Lengths
from papers.vattention.allocator import Allocator, Counted, Layout, allocator
from papers.vattention.kv_cache import KVTensors, VirtualCache, layout_of


@dataclass(frozen=True)
class Series:
    """Of each decode-only iteration: seconds of compute, and seconds that mapping added."""

    compute: np.ndarray
    added: np.ndarray


def decode_series(
    layout: Layout,
    blocks: int,
    lengths: Lengths,
    latency: LatencyModel,
    call_seconds: float,
    iterations: int,
    mode: str,
) -> Series:
    """The first decode-only iterations of a server that keeps every slot busy.

    mode: "sync" (map on the critical path), "async" (map ahead during compute) or "wait" (map ahead, then wait).
    """
    if mode not in ("sync", "async", "wait"):
        raise ValueError(f"mode {mode!r} is not sync, async or wait")
    backing = Counted(layout)
    compute: list[float] = []
    added: list[float] = []
    queue = list(range(len(lengths.prompt)))[::-1]
    slots: dict[int, list[int]] = {}  # slot -> [tokens, tokens at its end]
    late = 0.0  # seconds that the background thread still needs at the next iteration
    with allocator(layout, blocks, backing, overlap=mode == "async") as memory:
        while len(compute) < iterations and (queue or slots):
            new = []
            while queue and len(slots) < layout.slots:
                index = queue.pop()
                prompt = int(lengths.prompt[index])
                slot = memory.alloc_reqid(prompt)
                slots[slot] = [prompt, prompt + int(lengths.output[index])]
                new.append((prompt, 0))
            if not new:
                for state in slots.values():
                    state[0] += 1
            wanted = [slots[slot][0] if slot in slots else 0 for slot in range(layout.slots)]
            context = sum(wanted)
            seconds = latency.iteration(new, 0 if new else len(slots), 0 if new else context)[0]
            critical, ahead = _step(memory, backing, wanted, call_seconds, mode)
            waited = critical + (ahead if mode == "wait" else late)
            late = max(0.0, ahead - seconds) if mode == "async" else 0.0
            if not new:
                compute.append(seconds)
                added.append(waited)
                for slot in [slot for slot, (now, end) in slots.items() if now >= end]:
                    memory.free_reqid(slot)
                    del slots[slot]
    return Series(np.array(compute), np.array(added))


def _step(
    memory: Allocator, backing: Counted, wanted: list[int], call_seconds: float, mode: str
) -> tuple[float, float]:
    """Seconds of driver calls before compute, and in the background."""
    before, ahead = backing.maps, memory.background_blocks
    if mode == "sync":
        memory.step(wanted)
    else:
        memory.step_async(wanted)
        memory.wait()
    behind = (memory.background_blocks - ahead) * backing.tensors
    return (backing.maps - before - behind) * call_seconds, behind * call_seconds


def prefill_ratio(
    layout: Layout, blocks: int, prompt: int, latency: LatencyModel, call_seconds: float, deferred: bool
) -> float:
    """Prefill seconds of a prompt that follows an equal one, over those without any mapping.

    deferred: the pages of the request before are still mapped (False: they were unmapped when it ended).
    """
    backing = Counted(layout)
    with allocator(layout, blocks, backing) as memory:
        for _ in range(2):
            lengths = [0] * layout.slots
            memory.step(lengths, eager_reclaim=not deferred)
            slot = memory.alloc_reqid(prompt)
            lengths[slot] = prompt
            before = backing.maps
            memory.step(lengths, eager_reclaim=not deferred)
            memory.free_reqid(slot)
    compute = latency.iteration([(prompt, 0)], 0, 0)[0]
    return 1.0 + (backing.maps - before) * call_seconds / compute


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


def excess(steps: Steps) -> float:
    """Seconds that mapping adds to a step: the median where pages were mapped, less the median elsewhere."""
    if not steps.mapped.any() or steps.mapped.all():
        raise ValueError("no iteration, or every one, maps a page; change the page or the prompts")
    return float(np.median(steps.step[steps.mapped]) - np.median(steps.step[~steps.mapped]))


def measured_prefill_step(model: Decoder, prompt: int, page_bytes: int, deferred: bool, rounds: int) -> float:
    """Least seconds of mapping before the prefill of a prompt that follows an equal one, with real pages."""
    layout = layout_of(model.config, 2, prompt + 1, page_bytes)
    tensors = KVTensors(layout, 2 * layout.pages_per_slot)
    seconds = []
    with allocator(layout, 2 * layout.pages_per_slot, tensors) as memory:
        for index in range(rounds + 1):
            slot = memory.alloc_reqid(prompt)
            lengths = [0, 0]
            lengths[slot] = prompt
            before = tensors.seconds
            memory.step(lengths, eager_reclaim=not deferred)
            if index:
                seconds.append(tensors.seconds - before)
            memory.free_reqid(slot)
            memory.step([0, 0], eager_reclaim=not deferred)
    return min(seconds)
