"""What the claims of DataStates-LLM read: engines timed here, files read back, a kill, and Polaris simulated."""

import contextlib
import tempfile
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

    from papers.datastates_llm.timed import Bench

SMALL = 256  # hidden size of the sweep over intervals
TEXT = "tiny-shakespeare"


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read."""
    seen = Observations()
    if lab.device.startswith("cuda"):
        timed_engines(config, lab, seen, "gpu_")
        return seen
    if lab.wants(*SIMULATED):
        simulated(config, lab, seen)
    with one_thread():
        if lab.wants("exposed_copy_share", "first_write_share"):
            timed_engines(config, lab, seen)
        if lab.wants("differing_tensors"):
            read_back(config, lab, seen)
        if lab.wants("resume_loss_gap"):
            kill_and_resume(config, lab, seen)
    return seen


SIMULATED = (
    "blocking_gain_30B", "least_blocking_gain", "run_gain_sync_7B", "run_gain_snapshot_7B", "run_gain_async_13B",
    "frequency_fast", "frequency_slow", "replicas_share", "h100_gain_sync",
)  # fmt: skip


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


def timed_engines(config: Config, lab: Runtime, seen: Observations, prefix: str = "") -> None:
    """Engines in turn on the same training, for the claims; all four one after another, for the figures."""
    from papers.datastates_llm.timed import Bench, in_turn, measure
    from papers.datastates_llm.training import Shape, rows_for

    text = text_of(lab)
    shape = Shape(config.hidden, config.layers, config.hidden // 64, config.context)
    devices = (config.copy_rate, config.storage_rate, lab.device)

    def bench_of(shape: Shape, seconds: float) -> Bench:
        rows = lab.once(("rows", shape, seconds), lambda: rows_for(shape, text, seconds, lab.device))
        return Bench(shape, rows, config.copy_rate, config.storage_rate, device=lab.device)

    bench = bench_of(shape, config.compute_seconds)
    mine, interval = side_of(config), config.intervals[-1]
    seen.add(prefix + "checkpoint_bytes", bench.nbytes)
    for seed in lab.seeds:
        key = ("in turn", shape, config.compute_seconds, devices, config.steps, interval, seed)
        turns = lab.once(
            key,
            lambda seed=seed: in_turn(bench, text, seed, config.steps, interval),  # type: ignore[misc]
        )
        for side, engine in ((mine, "datastates"), ("async", "async")):
            own = [turn for turn in turns if turn.side == side]
            compute = [seconds for turn in own for seconds in turn.compute]
            seen.add(prefix + "timed_steps", len(compute), seed, engine=engine)
            seen.add(prefix + "compute_seconds", mean(compute), seed, engine=engine)
            seen.add(prefix + "blocked_seconds", mean([turn.blocked for turn in own]), seed, engine=engine)
            rival = "_async" if engine == "async" else ""
            seen.add(prefix + "exposed_copy_share" + rival, mean([turn.exposed for turn in own]), seed)
            if engine == "datastates":
                seen.add(prefix + "first_write_share", mean([turn.first_write for turn in own]), seed)
    if lab.wants(prefix + "run_seconds"):
        for engine in ("sync", "snapshot"):
            one = measure(bench, engine, text, lab.seeds[0], config.steps, interval)  # type: ignore[arg-type]
            seen.add(prefix + "blocked_seconds", one.blocked, lab.seeds[0], engine=engine)
        small = Shape(
            min(SMALL, config.hidden), config.layers, min(SMALL, config.hidden) // 64, config.context
        )
        with_less = Bench(small, 1, 0, 0).nbytes / bench.nbytes
        every_interval(config, lab, seen, bench_of(small, config.compute_seconds * with_less), text, prefix)


def every_interval(
    config: Config, lab: Runtime, seen: Observations, bench: "Bench", text: "Tensor", prefix: str
) -> None:
    """Whole runs of the four engines on a smaller state, with computing in proportion; one seed."""
    from papers.datastates_llm.timed import disagreeing, measure

    seed, quiet = lab.seeds[0], config.intervals[-1]
    seen.add(prefix + "swept_bytes", bench.nbytes)
    last = []
    for interval in config.intervals:
        for engine in ENGINES:
            one = measure(bench, engine, text, seed, config.steps, interval, read_back=interval == quiet)
            seen.add(prefix + "run_seconds", one.timed.total, seed, engine=engine, interval=interval)
            if interval == quiet:
                last.append(one.last)
    seen.add(prefix + "disagreeing_tensors", disagreeing(last))


def read_back(config: Config, lab: Runtime, seen: Observations) -> None:
    """Every version of a short run compared with what the state was when it was saved."""
    from papers.datastates_llm.torn import saved_and_read_back

    text = text_of(lab)
    for seed in lab.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = saved_and_read_back(Path(folder), text, seed, config.versions, config.wait)
        seen.add("versions_read", len(found), seed)
        seen.add(
            "differing_tensors",
            mean([version != one.version for one in found for version in one.found]),
            seed,
        )


def kill_and_resume(config: Config, lab: Runtime, seen: Observations) -> None:
    """Ranks train, one is killed between two ranks' writes, all go on from what counts."""
    from common.training.sharded.layout import Layout
    from common.training.sharded.parameters import Shape
    from papers.datastates_llm.crash import Job, Resumed, killed_and_resumed

    layout = Layout(data=config.data, tensor=config.tensor, zero=1)
    shape = Shape(vocab=256, hidden=64, layers=2, heads=4, kv_heads=2, mlp=128, context=32)
    text = text_of(lab)[: 1 << 17].clone()
    size = (layout, config.crash_steps, config.killed_at, tuple(lab.seeds))
    jobs = [Job(layout, shape, text, seed, config.crash_steps) for seed in lab.seeds]

    def both() -> dict[bool, list[Resumed]]:
        with tempfile.TemporaryDirectory() as folder:
            return killed_and_resumed(jobs, Path(folder), config.killed_at)

    resumed = lab.once(("killed", *size), both)[config.commit]
    for seed, found in zip(lab.seeds, resumed, strict=True):
        seen.add("steps_after", config.crash_steps - config.killed_at, seed)
        seen.add("resume_loss_gap", found.loss_gap, seed)
        for rank, (begun, finished) in enumerate(zip(found.begun, found.finished, strict=True)):
            seen.add("resumed_version", begun, seed, rank=rank)
            seen.add("finished_version", finished, seed, rank=rank)
