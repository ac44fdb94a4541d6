"""Polaris simulated: run times, single checkpoints and replicas, observed for the claims."""

import math
from functools import partial
from typing import Any

from common.lab.runtime import Observations
from papers.datastates_llm.cluster import BASELINES, ENGINES, Switches, simulate
from papers.datastates_llm.config import Config
from papers.datastates_llm.polaris import MODELS, ranks


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
