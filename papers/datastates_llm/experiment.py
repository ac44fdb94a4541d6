"""What the claims of DataStates-LLM read: engines timed here, files read back, a kill, and Polaris simulated."""

import contextlib
import math
import tempfile
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.lab.runtime import Observations, Runtime, one_thread
from papers.datastates_llm.cluster import ENGINES, EngineName, Switches, simulate
from papers.datastates_llm.polaris import MODELS, SHARES, ranks

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "tiny-shakespeare"
BASELINES: tuple[EngineName, ...] = ("sync", "async", "snapshot")


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    lazy: bool = True  # False: wait for the copies right after they are enqueued
    stream: bool = True  # False: write nothing before the last tensor is copied
    wait: bool = True  # False: update beside unfinished copies
    commit: bool = True  # False: each rank restarts from its own newest file
    pool: bool = True  # False: allocate and pin host memory for each checkpoint
    never: bool = False  # True: no checkpoint is ever taken
    through_rank_zero: bool = False  # True: one rank writes the file of all
    # timed engines
    hidden: int = 384  # of the decoder whose state is saved
    layers: int = 4
    context: int = 64
    rows: int = 0  # of a batch; 0: as many as make forward and backward take compute_seconds
    compute_seconds: float = 0.25
    copy_rate: float = 0.8e9  # bytes/s of the copy engine; 0: as fast as it goes
    storage_rate: float = 0.16e9  # bytes/s of the storage; 0: as fast as it goes
    steps: int = 7
    intervals: list[int] = field(default_factory=lambda: [1, 3, 6])  # the blocking claims read the second
    # read back, kill and restart
    versions: int = 6
    crash_steps: int = 8  # 0 leaves out the ranks
    killed_at: int = 4  # version
    data: int = 2  # ranks, and how the state is split over them
    tensor: int = 1
    # simulated cluster
    iterations: int = 50  # of a run; 0 leaves the cluster out
    models: list[str] = field(default_factory=lambda: list(MODELS))
    gaps: list[int] = field(
        default_factory=lambda: [1, 2, 5, 10, 20]
    )  # updates from one checkpoint to the next
    shares: list[float] = field(default_factory=lambda: list(SHARES))  # bytes/s of storage a node
    more_shares: list[float] = field(default_factory=lambda: [8e9, 16e9])  # shown, judged by no claim
    replicas: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read."""
    seen = Observations()
    if lab.device.startswith("cuda"):
        timed_engines(config, lab, seen, "gpu_")
        return seen
    if config.iterations:
        end_to_end(config, seen)
        single_checkpoints(config, seen)
        more_replicas(config, seen)
    with one_thread():
        if lab.wants(*TIMED):
            timed_engines(config, lab, seen)
        if lab.wants("differing_versions"):
            read_back(config, lab, seen)
        if config.crash_steps and lab.wants("resume_loss_gap", "resume_differing"):
            kill_and_resume(config, lab, seen)
    return seen


BLOCKING = ("gain_sync", "gain_async", "gain_snapshot")
TIMED = (*BLOCKING, "first_write_share", "run_time_gain")


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
    """Blocking time and run time of each engine at each interval; the ratios that claims read.

    In a control's run only what its claims read.
    """
    from papers.datastates_llm.timed import (
        Bench,
        Outcome,
        disagreeing,
        first_write_shares,
        measure,
        predicted,
    )
    from papers.datastates_llm.training import Shape, rows_for

    text = text_of(lab)
    shape = Shape(config.hidden, config.layers, max(1, config.hidden // 64), config.context)
    rows = config.rows or rows_for(shape, text, config.compute_seconds, lab.device)
    bench = Bench(shape, rows, config.copy_rate, config.storage_rate, device=lab.device)
    seen.add(prefix + "checkpoint_bytes", bench.nbytes)
    quiet = config.intervals[min(1, len(config.intervals) - 1)]
    ratios, streams, totals = (
        lab.wants(*(prefix + name for name in names))
        for names in (BLOCKING, ("first_write_share",), ("run_time_gain",))
    )
    for seed in lab.seeds:
        plain = measure(bench, None, text, seed, config.steps, 0) if totals else None
        if plain is not None:
            seen.add(prefix + "run_seconds", plain.timed.total, seed, engine="none", interval=0)
            per_step = sum(plain.timed.compute) / config.steps
            seen.add(prefix + "compute_seconds", per_step, seed, engine="none", interval=0)
        for interval in config.intervals:
            if interval not in (1, quiet) and seed != lab.seeds[0]:
                continue  # no claim reads it
            found: dict[EngineName, Outcome] = {}
            every = 0 if config.never else interval
            for engine in ENGINES:
                asked = (
                    (ratios and interval == quiet)
                    or (streams and interval == quiet and engine == "datastates")
                    or (totals and interval == 1 and engine in ("sync", "datastates"))
                    or (totals and ratios)
                )
                if not asked:
                    continue
                check = seed == lab.seeds[0] and interval == quiet and ratios and not config.never
                out = measure(
                    bench, engine, text, seed, config.steps, every,
                    lazy=config.lazy, stream=config.stream, read_back=check,
                )  # fmt: skip
                found[engine] = out
                at = {"engine": engine, "interval": interval}
                seen.add(prefix + "run_seconds", out.timed.total, seed, **at)
                seen.add(prefix + "blocked_seconds", out.blocked, seed, **at)
                seen.add(prefix + "compute_seconds", sum(out.timed.compute) / config.steps, seed, **at)
            if config.copy_rate and config.storage_rate and every and len(found) == len(ENGINES):
                kept = found["sync"].blocked - bench.nbytes / config.storage_rate
                for engine, out in found.items():
                    model = predicted(bench, out, engine, config.steps, every, bench.nbytes / kept)
                    at = {"engine": engine, "interval": interval}
                    seen.add(prefix + "modelled_run_seconds", model.total, seed, **at)
            if interval == quiet and ratios:
                ours = found["datastates"]
                for engine in BASELINES:
                    gain = found[engine].blocked / ours.blocked if ours.blocked else 1.0
                    seen.add(f"{prefix}gain_{engine}", gain, seed)
                if seed == lab.seeds[0] and not config.never:
                    seen.add(prefix + "disagreeing_tensors", disagreeing([o.last for o in found.values()]))
            if interval == quiet and "datastates" in found and found["datastates"].copies and streams:
                shares = first_write_shares(found["datastates"])
                seen.add(prefix + "first_write_share", sum(shares) / len(shares), seed)
            if interval == 1 and totals:
                gain = found["sync"].timed.total / found["datastates"].timed.total
                seen.add(prefix + "run_time_gain", gain, seed)


def read_back(config: Config, lab: Runtime, seen: Observations) -> None:
    """Every version of a short run compared with what the state was when it was saved."""
    from papers.datastates_llm.torn import saved_and_read_back

    text = text_of(lab)
    for seed in lab.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = saved_and_read_back(Path(folder), text, seed, config.versions, config.wait)
        seen.add("differing_versions", sum(one.differs for one in found) / len(found), seed)
        seen.add("torn_versions", sum(one.torn for one in found) / len(found), seed)


def kill_and_resume(config: Config, lab: Runtime, seen: Observations) -> None:
    """Ranks train, one is killed between two ranks' writes, all go on from what counts."""
    from common.training.sharded.layout import Layout
    from common.training.sharded.parameters import Shape
    from papers.datastates_llm.crash import Job, killed_and_resumed

    layout = Layout(data=config.data, tensor=config.tensor, zero=1)
    shape = Shape(vocab=256, hidden=64, layers=2, heads=4, kv_heads=2, mlp=128, context=32)
    text = text_of(lab)[: 1 << 17].clone()
    jobs = [Job(layout, shape, text, seed, config.crash_steps, commit=config.commit) for seed in lab.seeds]
    with tempfile.TemporaryDirectory() as folder:
        resumed = killed_and_resumed(jobs, Path(folder), config.killed_at)
    for seed, found in zip(lab.seeds, resumed, strict=True):
        seen.add("resume_loss_gap", found.loss_gap, seed)
        seen.add("resume_differing", found.differing / found.tensors, seed)
        for rank, (begun, finished) in enumerate(zip(found.begun, found.finished, strict=True)):
            seen.add("resumed_version", begun, seed, rank=rank)
            seen.add("finished_version", finished, seed, rank=rank)


def end_to_end(config: Config, seen: Observations) -> None:
    """Run time of each engine over DataStates', for models, storage a node, and updates between checkpoints."""
    trends, peaks = [], []
    for name in config.models:
        model = MODELS[name]
        for share in [*config.shares, *config.more_shares]:
            judged = share in config.shares
            gains = []
            for gap in config.gaps:
                of = partial(
                    simulate, ranks=ranks(model, share), phases=model.phases, steps=config.iterations,
                    interval=0 if config.never else gap,
                )  # fmt: skip
                ours = of("datastates", switches=Switches(config.lazy, config.pool)).total
                for engine in BASELINES:
                    gain = of(engine).total / ours
                    seen.add("run_gain", gain, model=name, engine=engine, share=share, interval=gap)
                    if judged and name in ("7B", "13B"):
                        seen.add(f"end_to_end_{engine}_{name}", gain, share=share, interval=gap)
                    if engine == "sync":
                        gains.append(gain)
            if judged:
                trends.append(gains[0] / gains[-1])
                peaks.append(gains[0] / max(gains[1:]))
                seen.add("best_interval", config.gaps[gains.index(max(gains))], model=name, share=share)
    seen.add("frequency_trend", geometric_mean(trends))
    seen.add("frequency_peak", geometric_mean(peaks))


def geometric_mean(values: list[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def single_checkpoints(config: Config, seen: Observations) -> None:
    """Blocking a checkpoint: five iterations with one each, as in Figure 7, and one that storage has time for."""
    ours = Switches(config.lazy, config.pool)
    ratios, kept = [], []
    for name in config.models:
        model = MODELS[name]
        for share in config.shares:
            at: dict[str, Any] = {"model": name, "share": share}
            found = {}
            for engine in ENGINES:
                each = simulate(engine, ranks(model, share), model.phases, 6, 1, ours).blocked
                found[engine] = sum(each) / len(each)
                seen.add("blocked_every_iteration", found[engine], engine=engine, **at)
            if share == max(config.shares):
                ratios.append(min(found[engine] for engine in BASELINES) / found["datastates"])
        alone = {
            pool: simulate(
                "datastates", ranks(model, max(config.shares)), model.phases, 2, 1, Switches(True, pool)
            ).blocked[0]
            for pool in (True, False)
        }
        kept.append(alone[config.pool] / alone[False])
    seen.add("least_gain", min(ratios))
    seen.add("pool_share", sum(kept) / len(kept))


def more_replicas(config: Config, seen: Observations) -> None:
    """Share of the run that checkpoints take, as data parallelism grows: at its largest over that of one replica."""
    parts = []
    for name in [name for name in ("13B", "30B") if name in config.models] or config.models:
        model = MODELS[name]
        for share in config.shares:
            lost = []
            for replicas in config.replicas:
                kinds = ranks(model, share, replicas, config.through_rank_zero)
                steps = config.iterations
                total = simulate("datastates", kinds, model.phases, steps, 1).total
                lost.append(1 - steps * model.phases.total / total)
                seen.add("lost_share", lost[-1], model=name, share=share, replicas=replicas)
            parts.append(lost[-1] / lost[0])
    seen.add("replicas_share", sum(parts) / len(parts))
