"""What the claims of DataStates-LLM read: engines timed here, files read back, a kill, and Polaris simulated."""

import contextlib
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.lab.runtime import Observations, Runtime, one_thread
from papers.datastates_llm.at_scale import simulated
from papers.datastates_llm.cluster import ENGINES, EngineName
from papers.datastates_llm.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from papers.datastates_llm.timed import Outcome

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
        if lab.wants("differing_versions"):
            read_back(config, lab, seen)
        if lab.wants("resume_loss_gap"):
            kill_and_resume(config, lab, seen)
    return seen


SIMULATED = (
    "blocking_gain_30B", "least_blocking_gain", "run_gain_sync_7B", "run_gain_snapshot_7B", "run_gain_async_13B",
    "frequency_fast", "frequency_slow", "replicas_share", "h100_gain_sync", "h100_gain_async",
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
    """Each engine on the same steps: what claims read at the last interval, the others once, for the figures."""
    from papers.datastates_llm.timed import Bench, disagreeing, exposed_share, first_write_shares, measure
    from papers.datastates_llm.training import Shape, rows_for

    text = text_of(lab)
    shape = Shape(config.hidden, config.layers, max(1, config.hidden // 64), config.context)
    size = (prefix, config.hidden, config.layers, config.context, config.compute_seconds)
    rows = lab.once(("rows", *size), lambda: rows_for(shape, text, config.compute_seconds, lab.device))
    bench = Bench(shape, rows, config.copy_rate, config.storage_rate, device=lab.device)
    seen.add(prefix + "checkpoint_bytes", bench.nbytes)
    seen.add(prefix + "timed_steps", config.steps)
    figures = lab.wants(prefix + "blocked_seconds")
    share, streams = prefix + "exposed_copy_share", prefix + "first_write_share"

    def outcome(engine: EngineName, seed: int, interval: int, read_back: bool = False) -> "Outcome":
        switches = (config.lazy, config.stream) if engine == "datastates" else (True, True)
        key = (
            *size,
            config.copy_rate,
            config.storage_rate,
            config.steps,
            engine,
            seed,
            interval,
            *switches,
            read_back,
        )
        return lab.once(
            ("timed", *key),
            lambda: measure(
                bench, engine, text, seed, config.steps, interval, lazy=switches[0], stream=switches[1],
                read_back=read_back,
            ),
        )  # fmt: skip

    quiet = config.intervals[-1]
    for number, seed in enumerate(lab.seeds):
        claimed: tuple[EngineName, ...] = ("datastates", "async") if lab.wants(share) else ("datastates",)
        found = {one: outcome(one, seed, quiet) for one in (claimed if number % 2 else claimed[::-1])}
        for engine, one in found.items():
            note(seen, prefix, seed, engine, quiet, one)
        ours = found["datastates"]
        if "async" in found:
            seen.add(share, exposed_share(ours), seed)
            seen.add(share + "_async", exposed_share(found["async"]), seed)
        if lab.wants(streams):
            shares = first_write_shares(ours)
            seen.add(streams, sum(shares) / len(shares), seed)
    if figures:
        seed = lab.seeds[0]
        last = []
        for interval in config.intervals:
            for engine in ENGINES:
                one = outcome(engine, seed, interval, interval == quiet)
                if interval != quiet or engine not in ("datastates", "async"):
                    note(seen, prefix, seed, engine, interval, one)
                if interval == quiet:
                    last.append(one.last)
        seen.add(prefix + "disagreeing_tensors", disagreeing(last))


def note(seen: Observations, prefix: str, seed: int, engine: str, interval: int, outcome: "Outcome") -> None:
    """The seconds of one run."""
    timed = outcome.timed
    at: dict[str, Any] = {"engine": engine, "interval": interval}
    seen.add(prefix + "run_seconds", timed.total, seed, **at)
    seen.add(prefix + "compute_seconds", sum(timed.compute) / len(timed.compute), seed, **at)
    seen.add(prefix + "blocked_seconds", outcome.blocked, seed, **at)


def read_back(config: Config, lab: Runtime, seen: Observations) -> None:
    """Every version of a short run compared with what the state was when it was saved."""
    from papers.datastates_llm.torn import saved_and_read_back

    text = text_of(lab)
    for seed in lab.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = saved_and_read_back(Path(folder), text, seed, config.versions, config.wait)
        seen.add("versions_read", len(found), seed)
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
        seen.add("steps_after", config.crash_steps - config.killed_at, seed)
        seen.add("resume_loss_gap", found.loss_gap, seed)
        seen.add("resume_differing", found.differing / found.tensors, seed)
        for rank, (begun, finished) in enumerate(zip(found.begun, found.finished, strict=True)):
            seen.add("resumed_version", begun, seed, rank=rank)
            seen.add("finished_version", finished, seed, rank=rank)
