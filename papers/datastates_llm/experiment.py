"""What the claims of DataStates-LLM read: engines timed here, files read back, a kill, and Polaris simulated."""

import contextlib
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING

from common.lab.runtime import Observations, Runtime, one_thread
from papers.datastates_llm.at_scale import simulated
from papers.datastates_llm.cluster import ENGINES
from papers.datastates_llm.config import Config, side_of

if TYPE_CHECKING:
    from torch import Tensor

    from papers.datastates_llm.timed import Bench, Turn

SMALL = 256  # hidden size of the sweep over intervals
TEXT = "tiny-shakespeare"
SIMULATED = (
    "blocking_gain_30B", "least_blocking_gain", "run_gain_sync_7B", "run_gain_snapshot_7B", "run_gain_async_13B",
    "frequency_fast", "frequency_slow", "replicas_share", "h100_gain_sync",
)  # fmt: skip


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read; on a GPU the timed ones alone, under names of their own."""
    seen = Observations()
    gpu = "gpu_" if lab.device.startswith("cuda") else ""
    if not gpu and lab.wants(*SIMULATED):
        simulated(config, seen)
    with one_thread():
        if gpu or lab.wants("exposed_copy_share", "first_write_share"):
            timed_engines(config, lab, seen, gpu)
        if lab.wants(gpu + "run_seconds"):
            every_interval(config, lab, seen, gpu)
        if not gpu and lab.wants("differing_tensors"):
            read_back(config, lab, seen)
        if not gpu and lab.wants("resume_loss_gap"):
            kill_and_resume(config, lab, seen)
    return seen


def text_of(lab: Runtime) -> "Tensor":
    """Bytes of Tiny Shakespeare; where it can't be had, random bytes: no claim reads a loss against the world."""
    import numpy as np
    import torch

    registry = import_module("common.data")
    with contextlib.suppress(registry.DataError):
        registry.fetch(TEXT)
    path = lab.data(TEXT)
    if path is None:
        return torch.from_numpy(np.random.default_rng(0).integers(0, 256, 1 << 18))
    return torch.from_numpy(np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64))


def bench_of(config: Config, lab: Runtime, text: "Tensor", hidden: int) -> "Bench":
    """A decoder so wide on the config's devices, with computing in proportion to its state."""
    from papers.datastates_llm.timed import Bench
    from papers.datastates_llm.training import Shape, rows_for

    own, whole = (Shape(n, config.layers, n // 64, config.context) for n in (hidden, config.hidden))
    seconds = config.compute_seconds * own.nbytes / whole.nbytes
    rows = rows_for(own, text, seconds, lab.device)
    return Bench(own, rows, config.copy_rate, config.storage_rate, device=lab.device)


def timed_engines(config: Config, lab: Runtime, seen: Observations, gpu: str) -> None:
    """Engines in turn on the same training, for the claims."""
    from papers.datastates_llm.timed import in_turn

    text, interval = text_of(lab), config.intervals[-1]

    def compared() -> "tuple[int, dict[int, list[Turn]]]":
        bench = bench_of(config, lab, text, config.hidden)
        turns = {seed: in_turn(bench, text, seed, config.steps, interval) for seed in lab.seeds}
        return bench.nbytes, turns

    switched = replace(config, lazy=True, stream=True)  # each side of a training has its own switches
    nbytes, by_seed = lab.once(("in turn", repr(switched), tuple(lab.seeds)), compared)
    seen.add(gpu + "checkpoint_bytes", nbytes)
    for seed, turns in by_seed.items():
        for side, engine, rival in ((side_of(config), "datastates", ""), ("async", "async", "_async")):
            own = [turn for turn in turns if turn.side == side]
            compute = [seconds for turn in own for seconds in turn.compute]
            seen.add(gpu + "timed_steps", len(compute), seed, engine=engine)
            seen.add(gpu + "compute_seconds", mean(compute), seed, engine=engine)
            seen.add(gpu + "exposed_copy_share" + rival, mean([turn.exposed for turn in own]), seed)
            if engine == "datastates":
                seen.add(gpu + "first_write_share", mean([turn.first_write for turn in own]), seed)


def every_interval(config: Config, lab: Runtime, seen: Observations, gpu: str) -> None:
    """For the figures: whole runs of the four engines on a smaller state, with computing in proportion; one seed."""
    from papers.datastates_llm.timed import disagreeing, measure

    text, seed, quiet = text_of(lab), lab.seeds[0], config.intervals[-1]
    bench = bench_of(config, lab, text, min(SMALL, config.hidden))
    seen.add(gpu + "swept_bytes", bench.nbytes)
    last = []
    for interval in config.intervals:
        for engine in ENGINES:
            one = measure(bench, [engine], text, seed, config.steps, interval, read_back=interval == quiet)
            seen.add(gpu + "run_seconds", one.timed.total, seed, engine=engine, interval=interval)
            if interval == quiet:
                seen.add(gpu + "blocked_seconds", one.blocked, seed, engine=engine)
                last.append(one.last)
    seen.add(gpu + "disagreeing_tensors", disagreeing(last))


def read_back(config: Config, lab: Runtime, seen: Observations) -> None:
    """Every version of a short run compared with what the state was when it was saved."""
    from papers.datastates_llm.torn import saved_and_read_back

    text = text_of(lab)
    for seed in lab.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = saved_and_read_back(Path(folder), text, seed, config.versions, config.wait)
        differing = mean([version != one.version for one in found for version in one.found])
        seen.add("versions_read", len(found), seed)
        seen.add("differing_tensors", differing, seed)


def kill_and_resume(config: Config, lab: Runtime, seen: Observations) -> None:
    """Ranks train, one is killed between two ranks' writes, all go on from what counts."""
    from common.training.sharded.layout import Layout
    from common.training.sharded.parameters import Shape
    from papers.datastates_llm.crash import Job, Resumed, killed_and_resumed

    layout = Layout(data=config.data, tensor=config.tensor, zero=1)
    shape = Shape(vocab=256, hidden=64, layers=2, heads=4, kv_heads=2, mlp=128, context=32)
    text = text_of(lab)[: 1 << 17].clone()
    jobs = [Job(layout, shape, text, seed, config.crash_steps) for seed in lab.seeds]

    def both() -> dict[bool, list[Resumed]]:
        with tempfile.TemporaryDirectory() as folder:
            return killed_and_resumed(jobs, Path(folder), config.killed_at)

    size = (layout, config.crash_steps, config.killed_at, tuple(lab.seeds))
    resumed = lab.once(("killed", *size), both)[config.commit]
    for seed, found in zip(lab.seeds, resumed, strict=True):
        seen.add("steps_after", config.crash_steps - config.killed_at, seed)
        seen.add("resume_loss_gap", found.loss_gap, seed)
        for rank, (begun, finished) in enumerate(zip(found.begun, found.finished, strict=True)):
            seen.add("resumed_version", begun, seed, rank=rank)
            seen.add("finished_version", finished, seed, rank=rank)
