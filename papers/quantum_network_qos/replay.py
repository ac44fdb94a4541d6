"""Beyond the paper: what a schedule delivers when link generation is a matter of chance.

The architecture reserves the mean time of a link generation and assumes that the pair is there when it ends. Attempts
succeed at random, so that within its mean time a link is made with probability 1 - 1/e. A run delivers a pair where all
of its links were made in the slots reserved for them (and, if asked for, all of its distillations succeeded).
"""

from collections.abc import Mapping
from math import exp

import numpy as np

from common.scheduling.periodic import Schedule, hyperperiod
from papers.quantum_network_qos.demands import Demand
from papers.quantum_network_qos.mapping import Timing
from papers.quantum_network_qos.protocols import Protocol, distillations, links
from papers.quantum_network_qos.werner import succeeds


def slot_success(rate: float, timing: Timing) -> float:
    """The probability that a link of this rate is made in one slot of many short attempts: 1 - e^(-rate x slot)."""
    return 1 - exp(-rate * timing.slot)


def run_success(protocol: Protocol, timing: Timing, distilling: bool = False) -> float:
    """The probability that one run delivers its pair, in closed form."""
    chance = 1.0
    for link in links(protocol):
        chance *= 1 - (1 - slot_success(link.rate, timing)) ** timing.link(link.rate)
    if distilling:
        for distil in distillations(protocol):
            chance *= succeeds(distil.kept.fidelity, distil.spent.fidelity)
    return chance


def delivered_rate(
    schedule: Schedule,
    demands: Mapping[str, Demand],
    timing: Timing,
    turns: int,
    rng: np.random.Generator,
    distilling: bool = False,
) -> float:
    """Pairs per second that come out of `turns` hyperperiods of a schedule; demands by the name of their task."""
    if not schedule:
        return 0.0
    pairs = 0
    for run in schedule:
        protocol = demands[run.task.name].concrete.protocol
        alive = np.ones(turns, dtype=bool)
        for link in links(protocol):
            alive &= rng.geometric(slot_success(link.rate, timing), turns) <= timing.link(link.rate)
        if distilling:
            for distil in distillations(protocol):
                alive &= rng.random(turns) < succeeds(distil.kept.fidelity, distil.spent.fidelity)
        pairs += int(alive.sum())
    whole = hyperperiod({run.task.name: run.task for run in schedule}.values())
    return pairs / (turns * whole * timing.slot)
