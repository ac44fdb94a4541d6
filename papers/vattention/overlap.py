"""What mapping costs an iteration: on the critical path, in the background, or not at all.

The allocator is stepped over a trace on a clock of known seconds: a GPU's driver calls and a profiled model's
iterations (simulated). live_overlap.py times real mmap calls beside a real decoder. Source: vAttention (ASPLOS 2025),
Sections 6.1 and 7.6 (Figures 12 and 13).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.latency import LatencyModel
from common.serving.workload import Lengths, read_trace
from papers.vattention.allocator import Allocator, Counted, Layout, allocator
from papers.vattention.config import Config
from papers.vattention.deployments import DEPLOYMENTS, latency_of
from papers.vattention.driver_calls import LARGE_PAGE, SMALL_PAGE, call_seconds

SLOTS = 64  # the authors' run_figure_11.sh


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


def overlap_at_scale(config: Config, lab: Runtime, seen: Observations) -> None:
    """Decode-only iterations of Llama-3-8B with 2 MB pages, batch 64: the authors' run_figure_11.sh."""
    deployment, latency = DEPLOYMENTS["llama-3-8b"], latency_of("llama-3-8b")
    layout = deployment.layout(SLOTS, 32768, LARGE_PAGE)
    seconds = 1e-6 * config.call_us or call_seconds(LARGE_PAGE)
    blocks = deployment.kv_bytes() // layout.block_bytes
    path = lab.data("vattention-sync-async")
    for seed in lab.seeds:
        rng = lab.rng(seed, "overlap")
        removed = []
        for number in range(config.series):
            lengths = overlap_lengths(rng, path, config.requests)
            highest = {}
            for system in ("sync", "async"):
                mode = system if config.overlap or system == "sync" else "wait"
                series = decode_series(layout, blocks, lengths, latency, seconds, config.iterations, mode)
                highest[system] = 1e3 * series.added.max()
                if seed == lab.seeds[0] and number == 0:
                    for index, (compute, added) in enumerate(zip(series.compute, series.added, strict=True)):
                        seen.add(
                            "iteration_ms", 1e3 * (compute + added), seed, system=system, iteration=index
                        )
            removed.append(highest["sync"] - highest["async"])
        seen.add("highest_spike_ms", float(np.mean(removed)), seed)
        seen.add("call_us", 1e6 * seconds, seed)


def overlap_lengths(rng: np.random.Generator, path: Path | None, requests: int) -> Lengths:
    """Of the authors' trace where it can be had, else like it: prompts of 1,600 to 2,000, outputs of 500 to 1,000."""
    if path is not None:
        return read_trace(path).sample(rng, requests)
    return Lengths(rng.integers(1600, 2001, requests), rng.integers(500, 1001, requests))


def prefills_at_scale(config: Config, seen: Observations) -> None:
    """Prefill of Llama-3-8B behind a request of the same length, with pages of 64 KB; the claim reads one prompt."""
    layout = DEPLOYMENTS["llama-3-8b"].layout(2, 200_000, SMALL_PAGE)
    blocks, latency, seconds = 2 * layout.pages_per_slot, latency_of("llama-3-8b"), call_seconds(SMALL_PAGE)
    for prompt in sorted({*config.prefills, config.prefill}):
        ratios = {}
        for system, kept in (("eager", False), ("deferred", config.deferred)):
            ratios[system] = prefill_ratio(layout, blocks, prompt, latency, seconds, kept)
            seen.add("prefill_over_unmapped", ratios[system], prompt=prompt, system=system)
        if prompt == config.prefill:
            seen.add("prefill_gain_64kb", ratios["eager"] / ratios["deferred"])
    seen.add("small_page_bytes", layout.page_bytes)
