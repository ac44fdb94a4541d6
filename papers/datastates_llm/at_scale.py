"""Polaris simulated: single checkpoints, whole runs and replicas; and the steps that were timed on an H100's host."""

import math
from typing import Any

from common.lab.runtime import Observations, Runtime
from papers.datastates_llm.cluster import BASELINES, EngineName, Run, Switches, simulate
from papers.datastates_llm.config import Config
from papers.datastates_llm.polaris import GPUS, MODELS, measured_seconds, ranks

FIGURE_7 = 6  # iterations, with five checkpoints


def simulated(config: Config, lab: Runtime, seen: Observations) -> None:
    """All that claims read of the paper's machine; the sweeps of the figures in our own run alone."""
    known = [name for name in config.models if name in ("7B", "13B")]
    for name in known:  # the operating points
        seen.add(f"gpus_{name}", GPUS * MODELS[name].nodes)
        seen.add(f"checkpoint_bytes_{name}", MODELS[name].checkpoint_bytes)
    seen.add("updates_between", config.gaps[0])
    blocking(config, seen)
    run_times(config, lab, seen)
    more_replicas(config, lab, seen)
    on_an_h100(config, seen)


def run_of(
    config: Config,
    engine: EngineName,
    name: str,
    share: float,
    gap: int,
    *,
    steps: int = 0,
    replicas: int = 1,
) -> Run:
    """One engine's run; steps: `iterations` unless given. Switches reach DataStates-LLM alone."""
    if engine in ("async", "snapshot"):
        share = share * config.rival_share
    one_writer = config.through_rank_zero and engine == "datastates"
    kinds = ranks(MODELS[name], share, replicas, one_writer, config.enqueue_seconds)
    every = 0 if config.never else gap
    switches = Switches(config.lazy, config.pool, config.background)
    return simulate(engine, kinds, MODELS[name].phases, steps or config.iterations, every, switches)


def blocking(config: Config, seen: Observations) -> None:
    """Seconds that a checkpoint blocks, five of them at every iteration, as in Figures 7 and 10."""

    def seconds(engine: EngineName, name: str, replicas: int = 1) -> float:
        each = run_of(config, engine, name, config.share, 1, steps=FIGURE_7, replicas=replicas).blocked
        return sum(each) / len(each) if each else 1.0  # without a checkpoint all are alike

    least = []
    for name in config.models:
        ours = seconds("datastates", name)
        seen.add("blocked_every_iteration", ours, model=name, engine="datastates")
        for engine in BASELINES:
            rival = seconds(engine, name)
            seen.add("blocked_every_iteration", rival, model=name, engine=engine)
            least.append(rival / ours)
    seen.add("least_blocking_gain", min(least))
    if "30B" in config.models:
        most = 16  # replicas of Figure 10
        gain = seconds("sync", "30B", most) / seconds("datastates", "30B", most)
        seen.add("blocking_gpus_30B", GPUS * MODELS["30B"].nodes * most)
        seen.add("blocking_gain_30B", gain)


def run_times(config: Config, lab: Runtime, seen: Observations) -> None:
    """Run time of each rival over DataStates-LLM's: at every update for the claims, and over the sweep."""

    def gain(engine: EngineName, name: str, share: float, gap: int) -> float:
        return (
            run_of(config, engine, name, share, gap).total
            / run_of(config, "datastates", name, share, gap).total
        )

    often, seldom = config.gaps[0], config.gaps[-1]
    for engine, name in (("sync", "7B"), ("snapshot", "7B"), ("async", "13B")):
        if name in config.models:
            seen.add(f"run_gain_{engine}_{name}", gain(engine, name, config.share, often))  # type: ignore[arg-type]
    for metric, share in (("frequency_fast", config.fast), ("frequency_slow", config.slow)):
        trends = [
            gain("sync", name, share, often) / gain("sync", name, share, seldom) for name in config.models
        ]
        seen.add(metric, math.exp(sum(map(math.log, trends)) / len(trends)))
    if lab.wants("run_gain"):
        for name in config.models:
            for share in config.shares:
                for gap in config.gaps:
                    for engine in BASELINES:
                        at: dict[str, Any] = {
                            "model": name,
                            "engine": engine,
                            "share": share,
                            "interval": gap,
                        }
                        seen.add("run_gain", gain(engine, name, share, gap), **at)


def more_replicas(config: Config, lab: Runtime, seen: Observations) -> None:
    """Part of the run that checkpoints at every iteration take: at most replicas over fewest, 13B and 30B."""

    def lost(name: str, share: float, replicas: int) -> float:
        total = run_of(config, "datastates", name, share, 1, replicas=replicas).total
        return 1 - config.iterations * MODELS[name].phases.total / total

    names = [name for name in ("13B", "30B") if name in config.models] or config.models
    first, last = config.replicas[0], config.replicas[-1]
    parts = [(lost(name, config.share, last), lost(name, config.share, first)) for name in names]
    seen.add("replicas_share", sum(late / early if early else 1.0 for late, early in parts) / len(parts))
    if lab.wants("lost_share"):
        for name in names:
            for share in config.shares:
                for replicas in config.replicas:
                    seen.add(
                        "lost_share", lost(name, share, replicas), model=name, share=share, replicas=replicas
                    )


def on_an_h100(config: Config, seen: Observations) -> None:
    """4 GiB of device state: what blocks with the ring alone, its copy not hidden, beside torch.save.

    From h100_checkpoint.csv; how much of the copy forward and backward hide is not in it.
    """
    _, seconds = measured_seconds()
    ours = seconds["d2h_pinned"] + (0.0 if config.pool else seconds["pin_alloc"])
    seen.add("h100_gain_sync", seconds["torch.save_sync"] / ours)
