"""What is timed or served for real on this machine: correctness, mapping, attention kernels, block tables."""

import numpy as np
import torch

from common.lab.runtime import Observations, Runtime, one_thread
from common.models.decoder import Decoder, DecoderConfig
from papers.vattention.block_tables import build_seconds
from papers.vattention.config import Config
from papers.vattention.deployments import DEPLOYMENTS
from papers.vattention.driver_calls import LARGE_PAGE, call_seconds
from papers.vattention.live_engine import differing_share, random_requests, serve
from papers.vattention.live_overlap import Steps, excess, joined, measured_prefill_step, measured_steps
from papers.vattention.paged_attention import paged_over_contiguous
from papers.vattention.virtual_memory import Reservation, process_memory, require_linux

PAGE = 64 << 10  # bytes
BATCHES = (1, 8, 32, 64, 128)  # whose block tables are built


def run(config: Config, lab: Runtime, seen: Observations) -> None:
    """Observe all that a control's claims ask for; one torch thread, so that the mapper has a core of its own."""
    require_linux()
    with one_thread():
        if lab.wants("resident_share"):
            reserve(seen)
        for seed in lab.progress(lab.seeds, "measured"):
            generator = lab.torch_generator(seed, "measured")
            sizes = DecoderConfig(layers=config.layers, positions=2048)
            model = Decoder(sizes, generator)
            if lab.wants("differing_tokens"):
                correctness(config, seen, seed, model, generator)
            if lab.wants("overlap_excess_share"):
                overlap(
                    config,
                    seen,
                    seed,
                    model,
                    generator,
                    seed == lab.seeds[0] and lab.wants("injected_step_ms"),
                )
            if lab.wants("deferred_wait_share"):
                deferred(config, seen, seed, model)
            if lab.wants("prefill_gain_cpu", "prefill_kernel_ratio_cpu"):
                kernels(config, seen, seed, generator)
            if lab.wants("table_ms"):
                tables(config, seen, seed)


def reserve(seen: Observations) -> None:
    """The paper's example, Yi-34B on two workers: 12 TB of addresses, and how much of them is resident."""
    layout = DEPLOYMENTS["yi-34b"].layout(500, 200_000, LARGE_PAGE)
    before = process_memory()
    held = [Reservation(layout.slots * layout.slot_bytes) for _ in range(layout.tensors)]
    after = process_memory()
    seen.add("virtual_bytes", after[0] - before[0])
    seen.add("resident_bytes", max(0, after[1] - before[1]))
    seen.add("resident_share", max(0, after[1] - before[1]) / sum(one.size for one in held))


def correctness(
    config: Config, seen: Observations, seed: int, model: Decoder, generator: torch.Generator
) -> None:
    """Greedy tokens of continuous batching, against dense caches; fewer physical pages than slots could fill."""
    requests = random_requests(generator, model.config.vocab, config.live_requests, 300, 40)
    served = serve(model, *requests, slots=4, longest=2048, page_bytes=PAGE, share=0.3, alias=config.alias)
    seen.add("differing_tokens", differing_share(model, *requests, served), seed)
    seen.add("served_virtual_bytes", served.virtual_bytes, seed)
    seen.add("served_physical_bytes", served.physical_bytes, seed)
    seen.add("moved_tensors", float(served.moved), seed)
    seen.add("reused_share", served.reused / config.live_requests, seed)
    for where, blocks in (("critical", served.critical_blocks), ("background", served.background_blocks)):
        seen.add("mapped_blocks", blocks, seed, where=where)


def overlap(
    config: Config, seen: Observations, seed: int, model: Decoder, generator: torch.Generator, injected: bool
) -> None:
    """What real mappings add to an iteration, with overlap over without; and with a GPU driver's call times added."""
    prompts = [torch.randint(512, (64 + 17 * index,), generator=generator) for index in range(8)]
    ahead = "async" if config.overlap else "wait"
    modes = {"sync": "sync", "async": ahead}
    parts: dict[str, list[Steps]] = {system: [] for system in modes}
    for system in ("sync", "async", "async", "sync"):  # in turn, half of the iterations each
        half = config.live_iterations // 2
        parts[system].append(measured_steps(model, prompts, half, PAGE, modes[system]))
    runs = {system: joined(each) for system, each in parts.items()}
    added = {system: excess(steps) for system, steps in runs.items()}
    if added["sync"] > 0:  # else this machine shows nothing that overlap could hide
        seen.add("overlap_excess_share", max(0.0, added["async"]) / added["sync"], seed)
    for system, steps in runs.items():
        seen.add("mapping_excess_us", 1e6 * added[system], seed, system=system)
        seen.add("wait_us", 1e6 * float(np.median(steps.step)), seed, system=system, of="median")
        seen.add("wait_us", 1e6 * float(np.mean(steps.step)), seed, system=system, of="mean")
    if not injected:
        return
    for system, mode in (("sync", "sync"), ("async", ahead)):  # shown, no claim reads it
        slowed = measured_steps(model, prompts, config.live_iterations, PAGE, mode, call_seconds(LARGE_PAGE))
        for index, step in enumerate(slowed.step):
            seen.add("injected_step_ms", 1e3 * step, seed, system=system, iteration=index)


def deferred(config: Config, seen: Observations, seed: int, model: Decoder) -> None:
    """Seconds of the allocator before a prefill that follows an equal one, deferred over without, in turn."""
    waits: dict[str, list[float]] = {"eager": [], "deferred": []}
    for system in ("eager", "deferred", "deferred", "eager"):
        kept = system == "deferred" and config.deferred
        waits[system].append(measured_prefill_step(model, 1500, PAGE, kept, 8))
    for system, seconds in waits.items():
        seen.add("prefill_wait_us", 1e6 * min(seconds), seed, system=system)
    seen.add("deferred_wait_share", min(waits["deferred"]) / min(waits["eager"]), seed)


def kernels(config: Config, seen: Observations, seed: int, generator: torch.Generator) -> None:
    """Paged over contiguous attention of 256 new tokens at the end of a context: gathered first, and by the table."""
    block = config.block_tokens or config.context
    ratios = paged_over_contiguous(256, config.context, 4, 64, block, config.rounds, generator)
    seen.add("prefill_gain_cpu", ratios.gathered, seed)
    seen.add("prefill_kernel_ratio_cpu", ratios.blocked, seed)


def tables(config: Config, seen: Observations, seed: int) -> None:
    """Seconds to build block tables of 8,192 tokens a sequence, which the notebook shows."""
    for batch in BATCHES:
        python, vectorised = build_seconds(batch, 8192, 16, config.rounds)
        seen.add("table_ms", 1e3 * python, seed, batch=batch, built="Python lists")
        seen.add("table_ms", 1e3 * vectorised, seed, batch=batch, built="numpy")
