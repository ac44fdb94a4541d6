"""Polaris simulated: single checkpoints, whole runs and replicas; and the steps that were timed on an H100's host."""

import math

from common.lab.runtime import Observations
from papers.datastates_llm.cluster import ENGINES, EngineName, Run, Switches, simulate
from papers.datastates_llm.config import Config
from papers.datastates_llm.polaris import GPUS, MODELS, measured_seconds, ranks

OURS: EngineName = "datastates"
FIGURE_7 = 6  # iterations, with five checkpoints


def simulated(config: Config, seen: Observations) -> None:
    """All that claims read of the paper's machine."""
    for name in [name for name in config.models if name in ("7B", "13B")]:  # the operating points
        seen.add(f"gpus_{name}", GPUS * MODELS[name].nodes)
        seen.add(f"checkpoint_bytes_{name}", MODELS[name].checkpoint_bytes)
    seen.add("updates_between", config.gaps[0])
    blocking(config, seen)
    run_times(config, seen)
    more_replicas(config, seen)
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
    one_writer = config.through_rank_zero and engine == OURS
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
        found = {engine: seconds(engine, name) for engine in ENGINES}
        for engine, blocked in found.items():
            seen.add("blocked_every_iteration", blocked, model=name, engine=engine)
        least.append(min(blocked for engine, blocked in found.items() if engine != OURS) / found[OURS])
    seen.add("least_blocking_gain", min(least))
    if "30B" in config.models:
        most = config.replicas[-1]  # as in Figure 10
        gain = seconds("sync", "30B", most) / seconds(OURS, "30B", most)
        seen.add("blocking_gpus_30B", GPUS * MODELS["30B"].nodes * most)
        seen.add("blocking_gain_30B", gain)


def run_times(config: Config, seen: Observations) -> None:
    """Run time of each rival over DataStates-LLM's, at every update; and what is gained then over rare checkpoints."""

    def gain(engine: EngineName, name: str, share: float, gap: int) -> float:
        rival, ours = (run_of(config, kind, name, share, gap).total for kind in (engine, OURS))
        return rival / ours

    often, seldom = config.gaps[0], config.gaps[-1]
    compared: tuple[tuple[EngineName, str], ...] = (("sync", "7B"), ("snapshot", "7B"), ("async", "13B"))
    for engine, name in compared:
        if name in config.models:
            seen.add(f"run_gain_{engine}_{name}", gain(engine, name, config.share, often))
    for metric, share in (("frequency_fast", config.fast), ("frequency_slow", config.slow)):
        trends = [
            gain("sync", name, share, often) / gain("sync", name, share, seldom) for name in config.models
        ]
        seen.add(metric, math.exp(sum(map(math.log, trends)) / len(trends)))


def lost(config: Config, name: str, share: float, replicas: int) -> float:
    """Part of a run of DataStates-LLM that checkpoints at every iteration take."""
    total = run_of(config, OURS, name, share, 1, replicas=replicas).total
    return 1 - config.iterations * MODELS[name].phases.total / total


def more_replicas(config: Config, seen: Observations) -> None:
    """What checkpoints take with most replicas over what they take with fewest, 13B and 30B."""
    names = [name for name in ("13B", "30B") if name in config.models] or config.models
    parts = [
        [lost(config, name, config.share, n) for n in (config.replicas[-1], config.replicas[0])]
        for name in names
    ]
    seen.add("replicas_share", sum(most / least if least else 1.0 for most, least in parts) / len(parts))


def on_an_h100(config: Config, seen: Observations) -> None:
    """4 GiB of device state: what blocks with the ring alone, its copy not hidden, beside torch.save.

    From h100_checkpoint.csv; how much of the copy forward and backward hide is not in it.
    """
    _, seconds = measured_seconds()
    ours = seconds["d2h_pinned"] + (0.0 if config.pool else seconds["pin_alloc"])
    seen.add("h100_gain_sync", seconds["torch.save_sync"] / ours)
