"""The one value a seed that each claim reads, from the rows of the schedules."""

from itertools import pairwise

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.quantum_network_qos.config import Config
from papers.quantum_network_qos.measures import Place, carried, gain, mean


def derive(config: Config, lab: Runtime, seen: Observations) -> None:
    """The one value a seed that each claim reads, from the rows of the schedules."""
    low, high = min(config.loads), max(config.loads)
    for seed in lab.seeds:
        if lab.wants("violations"):
            seen.add("violations", sum(seen.values("schedule_violations", seed=seed)), seed)
            seen.add("scheduled_demands", sum(seen.values("accepted", seed=seed)), seed)
        if lab.wants("tradeoff", "fidelity_cost_saturated"):
            at: Place = {"seed": seed, "part": "saturated", "scheduler": "non-block"}
            rates = [mean(seen, "throughput", fidelity=f, **at) for f in config.star_fidelities]
            for fidelity, rate in zip(config.star_fidelities, rates, strict=True):
                seen.add("saturated_star", rate, seed, asked=fidelity)
            if all(rates):
                seen.add("tradeoff", min(1 - b / a for a, b in pairwise(rates)), seed)
                seen.add("fidelity_cost_saturated", rates[0] / rates[-1], seed)
        if lab.wants("share_kept"):
            ends = config.fidelities[0], config.fidelities[-1]
            shares = []
            for name in config.topologies:
                at = {"seed": seed, "part": "grid", "topology": name, "load": high, "scheduler": "non-block"}
                most, least = (mean(seen, "throughput", fidelity=f, **at) for f in ends)
                shares.append(least / most if most else 1.0)
            seen.add("share_kept", float(np.mean(shares)), seed)
        if lab.wants("saturation"):
            seen.add("saturation", carried(seen, seed, low) - carried(seen, seed, high), seed)
        for name in config.compared:
            for scheduler in ("block", "non-block"):
                if lab.wants(f"gain_{name}_{scheduler}"):
                    part = f"compared {name}"
                    seen.add(f"gain_{name}_{scheduler}", gain(seen, seed, scheduler, part=part), seed)
        if lab.wants("gain_surfnet") and seen.rows("throughput", part="surfnet"):
            load = max(config.surfnet_loads)
            seen.add("gain_surfnet", gain(seen, seed, "block", part="surfnet", load=load), seed)
        if lab.wants("jitter_cut") and config.jitter_load:
            at = {"seed": seed, "part": "jitter"}
            uni, fine = (mean(seen, "jitter", scheduler=name, **at) for name in ("uni", "non-block"))
            seen.add("jitter_cut", uni - fine, seed)
        if config.budget_fidelities:
            at = {"seed": seed, "part": "budget", "scheduler": "budget, segment"}
            for metric in ("throughput", "response"):
                if lab.wants(f"budget_{metric}"):
                    least, most = (
                        mean(seen, metric, budget=k, **at) for k in (min(config.budgets), max(config.budgets))
                    )
                    seen.add(f"budget_{metric}", most / least, seed)
