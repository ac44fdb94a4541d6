"""What the claims of DataStates-LLM read: engines timed here, files read back, a kill, and Polaris simulated."""

import contextlib
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.lab.runtime import Observations, Runtime, one_thread
from papers.datastates_llm.at_scale import end_to_end, more_replicas, single_checkpoints
from papers.datastates_llm.cluster import BASELINES, ENGINES, EngineName
from papers.datastates_llm.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from papers.datastates_llm.timed import Bench, Outcome

TEXT = "tiny-shakespeare"


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
    """Each engine at each interval, with the ratios that claims read; in a control's run only what its claims read.

    Blocking is compared at the second interval, at which storage keeps up, run times at the first.
    """
    from papers.datastates_llm.timed import Bench, measure
    from papers.datastates_llm.training import Shape, rows_for

    text = text_of(lab)
    shape = Shape(config.hidden, config.layers, max(1, config.hidden // 64), config.context)
    rows = config.rows or rows_for(shape, text, config.compute_seconds, lab.device)
    bench = Bench(shape, rows, config.copy_rate, config.storage_rate, device=lab.device)
    seen.add(prefix + "checkpoint_bytes", bench.nbytes)
    busy, quiet = config.intervals[0], config.intervals[min(1, len(config.intervals) - 1)]
    blocking, streams, totals = (
        lab.wants(*(prefix + name for name in names))
        for names in (BLOCKING, ("first_write_share",), ("run_time_gain",))
    )
    asked: dict[int, set[EngineName]] = {interval: set() for interval in config.intervals}
    asked[quiet] |= set(ENGINES) if blocking else {"datastates"} if streams else set()
    asked[busy] |= {"sync", "datastates"} if totals else set()
    everything = blocking and totals  # no control's run: the figures want the rest
    for seed in lab.seeds:
        first = seed == lab.seeds[0]
        if totals:
            plain = measure(bench, None, text, seed, config.steps, 0)
            note(seen, prefix, seed, "none", 0, plain)
        for interval in config.intervals:
            every = 0 if config.never else interval
            engines = asked[interval]
            if everything and (first or interval in (busy, quiet)):
                engines = set(ENGINES)
            found: dict[EngineName, Outcome] = {}
            for engine in ENGINES:
                if engine in engines:
                    check = first and interval == quiet and blocking and not config.never
                    found[engine] = measure(
                        bench, engine, text, seed, config.steps, every,
                        lazy=config.lazy, stream=config.stream, read_back=check,
                    )  # fmt: skip
                    note(seen, prefix, seed, engine, interval, found[engine])
            if everything and len(found) == len(ENGINES):
                beside_model(config, seen, prefix, bench, seed, interval, found)
            if interval == quiet and blocking:
                compare_blocking(seen, prefix, seed, found)
            if interval == quiet and streams and not config.never:
                note_streaming(seen, prefix, seed, found["datastates"])
            if interval == busy and totals:
                gain = found["sync"].timed.total / found["datastates"].timed.total
                seen.add(prefix + "run_time_gain", gain, seed)


def note(seen: Observations, prefix: str, seed: int, engine: str, interval: int, outcome: "Outcome") -> None:
    """The seconds of one run."""
    timed = outcome.timed
    at: dict[str, Any] = {"engine": engine, "interval": interval}
    seen.add(prefix + "run_seconds", timed.total, seed, **at)
    seen.add(prefix + "compute_seconds", sum(timed.compute) / len(timed.compute), seed, **at)
    if timed.blocked:
        seen.add(prefix + "blocked_seconds", outcome.blocked, seed, **at)


def compare_blocking(
    seen: Observations, prefix: str, seed: int, found: "Mapping[EngineName, Outcome]"
) -> None:
    """Blocking of the baselines over DataStates', and whether all files hold the same, where they were read."""
    from papers.datastates_llm.timed import disagreeing

    ours = found["datastates"]
    for engine in BASELINES:
        gain = found[engine].blocked / ours.blocked if ours.blocked else 1.0  # no checkpoint: nobody blocks
        seen.add(f"{prefix}gain_{engine}", gain, seed)
    if ours.last:
        seen.add(prefix + "disagreeing_tensors", disagreeing([one.last for one in found.values()]))


def note_streaming(seen: Observations, prefix: str, seed: int, ours: "Outcome") -> None:
    """When writing begins, in parts of the copying."""
    from papers.datastates_llm.timed import first_write_shares

    shares = first_write_shares(ours)
    seen.add(prefix + "first_write_share", sum(shares) / len(shares), seed)


def beside_model(
    config: Config,
    seen: Observations,
    prefix: str,
    bench: "Bench",
    seed: int,
    interval: int,
    found: "Mapping[EngineName, Outcome]",
) -> None:
    """What the fluid model says of the same runs."""
    from papers.datastates_llm.timed import predicted

    for engine, outcome in found.items():
        if outcome.timed.blocked:
            said = predicted(bench, outcome, engine, config.steps, interval).total
            seen.add(prefix + "modelled_run_seconds", said, seed, engine=engine, interval=interval)


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
