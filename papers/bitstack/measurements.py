"""What is counted or timed on this machine: files and their steps, real loads under a memory trace, kernels."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from common.lab.runtime import Observations, Runtime, one_thread
from papers.bitstack import kernels as restoring
from papers.bitstack.block_files import BlockFiles
from papers.bitstack.config import Config
from papers.bitstack.memory_trace import follow, free_memory, swap
from papers.bitstack.resident import Resident

if TYPE_CHECKING:
    from papers.bitstack.study import Study

MB = 1e6
TRACE_STEP = 2e6  # bytes a tick that free memory changes by, one standard deviation (chosen)
PAPER_RANK = 2  # of the blocks whose bits a parameter are as many as the paper's


def files(study: "Study", seen: Observations) -> None:
    """Bits a parameter of a block, counted on disk, and the largest step of memory."""
    if study.lab.wants("block_bits"):
        stored = BlockFiles(study.store(study.recipe(k=PAPER_RANK, blocks=1)).path)
        on_disk = sum(path.stat().st_size for path in stored.folder.glob("*.blocks"))
        parameters = sum(shape.parameters for shape in stored.shapes.values())
        seen.add("block_bits", 8 * on_disk / (parameters * stored.blocks))
    if study.lab.wants("step_share"):
        steps = np.diff(study.stack().memory())
        seen.add("step_share", steps.max() / study.full_bytes)
        seen.add("largest_step_mb", steps.max() / MB)
        seen.add("sizes_to_choose", len(steps) + 1)


def trace(study: "Study", seen: Observations) -> None:
    """Follow a random walk of free memory with real blocks; the rival is the largest quantised model that fits."""
    if not study.config.ticks or not study.lab.wants("unused_share"):
        return
    store, stack = study.store(study.intact()), study.stack()
    sizes = [study.rival_bytes(f"rtn-{bits}-64") for bits in (2, 3, 4)]
    low, high = sizes[0], min(stack.memory()[-1], 1.05 * sizes[-1])
    for seed in study.lab.seeds:
        free = free_memory(study.lab.rng(seed, "trace"), study.config.ticks, low, high, TRACE_STEP)
        resident = Resident(BlockFiles(store.path))
        followed = follow(resident, stack, free)
        swapped, swap_bytes = swap(sizes, study.fixed_bytes, free)
        seen.add("unused_share", (free - followed.used).mean() / (free - swapped).mean(), seed)
        seen.add("unused_mb", (free - followed.used).mean() / MB, seed, system="BitStack")
        seen.add("unused_mb", (free - swapped).mean() / MB, seed, system="three quantised models")
        seen.add("moved_mb", followed.bytes_read() / MB, seed, system="BitStack")
        seen.add("moved_mb", swap_bytes / MB, seed, system="three quantised models")
        loaded = sum(move.loaded for move in followed.moves)
        spent = sum(move.seconds for move in followed.moves if move.loaded)
        seen.add("load_ms", 1e3 * spent / max(loaded, 1), seed)
        if seed == study.lab.seeds[0]:
            for tick, (budget, used, other) in enumerate(zip(free, followed.used, swapped, strict=True)):
                for name, value in (("free", budget), ("BitStack", used), ("quantised", other)):
                    seen.add("trace_mb", value / MB, seed, tick=tick, line=name)


def kernels(config: Config, lab: Runtime, seen: Observations) -> None:
    """Seconds of the plain version over the fused one, the same blocks."""
    rows, columns, k, blocks = config.kernel
    on_gpu = lab.device.startswith("cuda")
    for seed in lab.seeds:
        if not on_gpu and lab.wants("fused_gain_cpu"):
            made = restoring.random_blocks(lab.rng(seed, "kernels"), rows, columns, k, blocks)
            fused = restoring.fused_numba if config.fused else restoring.plain_numpy
            with one_thread():
                runs = (restoring.plain_numpy, fused)
                spent = restoring.paired_seconds(runs, made, config.kernel_rounds)
            seen.add("fused_gain_cpu", spent[0] / spent[1], seed)
            for name, value in zip(("plain", "fused"), spent, strict=True):
                seen.add("restore_ms", 1e3 * value, seed, kernel=name, blocks=blocks)
        if on_gpu and lab.wants("batched_gain_gpu"):
            batched_on(config, lab, seen, seed)


def batched_on(config: Config, lab: Runtime, seen: Observations, seed: int) -> None:
    """The same with torch on the runtime's device, in fp16 (float32 on a CPU)."""
    rows, columns, k, blocks = config.kernel
    made = restoring.random_blocks(lab.rng(seed, "kernels"), rows, columns, k, blocks)
    kind = torch.float16 if lab.device.startswith("cuda") else torch.float32
    signs, left, right = (torch.from_numpy(part).to(lab.device) for part in made)
    left, right = left.to(kind), right.to(kind)
    batched = restoring.batched_torch if config.fused else restoring.plain_torch
    runs = (restoring.plain_torch, batched)
    spent = restoring.paired_seconds(runs, (signs, left, right), config.kernel_rounds, lab.device)
    seen.add("batched_gain_gpu", spent[0] / spent[1], seed)
    for name, value in zip(("plain", "batched"), spent, strict=True):
        seen.add("restore_ms", 1e3 * value, seed, kernel=name, blocks=blocks, rows=rows, columns=columns)
