"""How many requests fit at once, by page size: the allocator counts pages over a stream of requests that come and grow.

A KV block holds page_bytes of every tensor, so that a request wastes half a block on average: with 2 MB pages and
four KV heads of 128 that is 1,024 tokens. Source: vAttention (ASPLOS 2025), Sections 6.2 and 7.6.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.workload import Lengths
from papers.vattention.allocator import Counted, Layout, allocator
from papers.vattention.config import Config
from papers.vattention.deployments import DEPLOYMENTS
from papers.vattention.driver_calls import LARGE_PAGE, SMALL_PAGE

WATERMARK = 0.01  # of the blocks, kept from new requests (vLLM's block manager)
LONGEST, SLOTS = 32_768, 640  # tokens of a request, requests at once: more than memory ever lets in
BETWEEN = (128 << 10, 256 << 10)  # further pages of the patched driver, for the picture


@dataclass(frozen=True)
class Occupancy:
    """Of a run: the largest batch, the mean one, the share of mapped bytes that hold no token (mean), and how often
    a request had to give way and will be computed again.
    """

    largest: int
    mean: float
    waste: float
    preempted: int


def occupancy(layout: Layout, kv_bytes: int, lengths: Lengths, iterations: int) -> Occupancy:
    """Serve requests from an endless queue, first come, first served, one token an iteration each.

    A request is admitted when the blocks of its prompt are free and WATERMARK of all stays so; when growth finds no
    block, the request admitted last goes back to the queue's head (recomputed later). ValueError where none fits, and
    where slots or requests run out before memory does: the batch would then say nothing of pages.
    """
    blocks = kv_bytes // layout.block_bytes
    waiting = list(range(len(lengths.prompt)))[::-1]
    prompts, ends = lengths.prompt.tolist(), (lengths.prompt + lengths.output).tolist()
    generated = [0] * len(prompts)
    tokens = [0] * layout.slots
    running: dict[int, int] = {}  # slot -> request, in order of admission
    sizes: list[int] = []
    wastes: list[float] = []
    preempted = 0
    with allocator(layout, blocks, Counted(layout)) as memory:
        for _ in range(iterations):
            free = memory.free_blocks()
            while waiting and len(running) < layout.slots:
                request = waiting[-1]
                length = prompts[request] + generated[request]
                if free - layout.pages(length) < WATERMARK * blocks:
                    break
                free -= layout.pages(length)
                slot = memory.alloc_reqid(length)
                running[slot], tokens[slot] = waiting.pop(), length
            if not sizes and (len(running) == layout.slots or not waiting):
                raise ValueError(
                    f"{len(running)} requests at once leave memory free: more slots or requests are needed"
                )
            if not running:
                raise ValueError(f"no request fits into {blocks} KV blocks")
            while len(running) > 1 and sum(layout.pages(tokens[slot] + 1) for slot in running) > blocks:
                slot, request = running.popitem()
                preempted += 1
                waiting.append(request)
                memory.free_reqid(slot)
                tokens[slot] = 0
            for slot, request in running.items():
                tokens[slot] += 1
                generated[request] += 1
            memory.step(tokens)
            held = sum(map(layout.pages, tokens))
            sizes.append(len(running))
            wastes.append(1.0 - sum(tokens) * layout.token_bytes / (held * layout.page_bytes))
            for slot in [slot for slot, request in running.items() if tokens[slot] >= ends[request]]:
                memory.free_reqid(slot)
                del running[slot]
                tokens[slot] = 0
            if not waiting and not running:
                break
    return Occupancy(max(sizes), float(np.mean(sizes)), float(np.mean(wastes)), preempted)


def static_batch(layout: Layout, kv_bytes: int) -> int:
    """Requests that fit when each reserves its longest length in physical memory (Orca, FasterTransformer)."""
    return kv_bytes // (layout.tensors * layout.slot_bytes)


def chat_lengths(rng: np.random.Generator, n: int, aligned: bool = False, scale: float = 1.0) -> Lengths:
    """Chat lengths by the brief's fit to openchat_sharegpt4: in ~ lognormal(ln 1730, 0.93), out ~ (ln 415, 0.5).

    The medians are those of Sarathi-Serve (OSDI 2024), Table 2. scale: times both. aligned: end at a multiple of 2,048
    tokens. ValueError for no request and for a scale that is not positive.
    """
    if n < 1 or not scale > 0:
        raise ValueError(f"{n} requests, {scale} times as long, were asked for")
    prompts = np.clip(scale * rng.lognormal(np.log(1730), 0.93, n), 8, 24_000).astype(np.int64)
    outputs = np.clip(scale * rng.lognormal(np.log(415), 0.5, n), 8, 8_000).astype(np.int64)
    if aligned:
        return Lengths(-(-prompts // 2048) * 2048 - 1, np.ones_like(outputs))
    return Lengths(prompts, outputs)


class Run(NamedTuple):
    """A fragmentation run: a model's stream of one seed on pages of one size."""

    model: str
    seed: int
    page: int
    sliced: bool
    lengths: Lengths
    iterations: int


def fill(run: Run) -> Occupancy:
    """The run, simulated."""
    deployment = DEPLOYMENTS[run.model]
    layout = deployment.layout(SLOTS, LONGEST, run.page, sliced=run.sliced)
    return occupancy(layout, deployment.kv_bytes(), run.lengths, run.iterations)


def compare_pages(config: Config, lab: Runtime, seen: Observations) -> None:
    """The largest batch of every model by page size, on chat-like lengths; other pages on the first seed alone."""
    runs = []
    for model in config.models:
        if not lab.wants(gain_of(model)):
            continue
        for seed in lab.seeds:
            rng = lab.rng(seed, "fragmentation")
            lengths = chat_lengths(rng, 4 * config.requests, config.aligned, config.length_scale)
            pages = [(SMALL_PAGE, False), (LARGE_PAGE, False)]
            if seed == lab.seeds[0] and lab.wants("waste"):
                pages += [*((page, False) for page in BETWEEN), (LARGE_PAGE, True)]
            runs += [Run(model, seed, page, sliced, lengths, config.iterations) for page, sliced in pages]
    largest: dict[tuple[str, int, int], int] = {}
    for run, found in zip(runs, lab.map(fill, runs, "batches"), strict=True):
        at: dict[str, str | int] = {"model": run.model, "page": run.page, "sliced": int(run.sliced)}
        seen.add("largest_batch", found.largest, run.seed, **at)
        seen.add("waste", found.waste, run.seed, **at)
        seen.add("mean_batch", found.mean, run.seed, **at)
        seen.add("preempted", found.preempted, run.seed, **at)
        if not run.sliced:
            largest[run.model, run.seed, run.page] = found.largest
    for model, seed, page in largest:
        if page == LARGE_PAGE:
            deployment = DEPLOYMENTS[model]
            static = static_batch(deployment.layout(1, LONGEST, page), deployment.kv_bytes())
            seen.add("largest_batch", static, seed, model=model, page=0, sliced=0)
            seen.add(gain_of(model), largest[model, seed, SMALL_PAGE] / largest[model, seed, page], seed)


def gain_of(model: str) -> str:
    """The metric of a model: its largest batch with pages of 64 KB over that with 2 MB."""
    return "batch_gain_" + model.replace("-", "_")
