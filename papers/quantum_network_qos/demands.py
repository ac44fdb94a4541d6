"""Demands of users, and the periodic tasks that their protocols become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.scheduling.periodic import Task
from common.scheduling.periodic_preemption import cuts_of
from common.scheduling.task_graph import Placed, occupation
from papers.quantum_network_qos.esss import find_protocol
from papers.quantum_network_qos.mapping import Concrete, Timing
from papers.quantum_network_qos.topologies import Network

EXPONENTS = range(
    10
)  # rates 100 / 2^i ebit/s: periods of 1, 2, ..., 512 slots, so that the hyperperiod is at most 512


@dataclass(frozen=True)
class Demand:
    """Two users ask for pairs of a fidelity, `rate` of them a second; `concrete` is the protocol found for them."""

    source: str
    target: str
    fidelity: float
    rate: float
    concrete: Concrete


def draw_demands(
    network: Network,
    fidelity: float,
    load: float,
    rng: np.random.Generator,
    timing: Timing,
    exponents: Sequence[int] = EXPONENTS,
) -> list[Demand]:
    """Random pairs of users, until their rates add up to the offered load (ebit/s).

    A rate is drawn from those below what the protocol can do and not above what is left of the load (the smallest,
    where none is). A pair that can't be served is passed over; without any pair that can, the list is empty.
    """
    rates = [1 / (timing.slot * 2**i) for i in exponents]
    found: list[Demand] = []
    offered, useless = 0.0, set[frozenset[str]]()
    pairs = len(network.ends) * (len(network.ends) - 1) // 2
    while offered < load - 1e-9 and len(useless) < pairs:
        source, target = (network.ends[i] for i in rng.choice(len(network.ends), 2, replace=False))
        concrete = find_protocol(network, source, target, fidelity, timing)
        below = [r for r in rates if concrete is not None and r < 1 / (concrete.duration * timing.slot)]
        if concrete is None or not below:
            useless.add(frozenset((source, target)))
            continue
        rate = float(rng.choice([r for r in below if r <= load - offered] or [min(below)]))
        found.append(Demand(source, target, fidelity, rate, concrete))
        offered += rate
    return found


def tasks_of(
    demands: Sequence[Demand],
    network: Network,
    timing: Timing,
    budget: int = 0,
    locks: bool = True,
    private: bool = False,
    assignment: str = "most",
) -> list[Task]:
    """A periodic task for each demand, in their order.

    assignment: of the equal qubits of a node a task gets the "most" loaded ones, as in the authors' code, so that tasks
    of one node meet; or the "least" loaded ones, which spreads them. budget: slots that a run may be paused.
    locks=False: what is only stored is not reserved. private: every demand has its own qubits. The last two are for
    negative controls. ValueError for another assignment.
    """
    if assignment not in ("most", "least"):
        raise ValueError(f"qubits are given to the most or the least loaded, not to {assignment!r}")
    load: dict[str, float] = {}
    for node, own in network.nodes:
        load.update(dict.fromkeys([f"{node}-C{i}" for i in range(own.communication)], 0.0))
        load.update(dict.fromkeys([f"{node}-S{i}" for i in range(own.storage)], 0.0))
    tasks = []
    for number, demand in enumerate(demands):
        period = round(1 / (demand.rate * timing.slot))
        steps = _moved(demand.concrete.steps, _assigned(demand.concrete.steps, period, load, assignment))
        if private:
            steps = _moved(steps, {q: f"{q} of {number}" for step in steps for q in step.resources})
        reserved = steps if locks else tuple(replace(step, keeps=()) for step in steps)
        tasks.append(
            Task(
                f"{number}: {demand.source}-{demand.target}",
                period,
                demand.concrete.duration,
                occupation(reserved),
                cuts_of(steps),
                budget,
                steps,
            )
        )
    return tasks


def _assigned(
    steps: Sequence[Placed], period: int, load: dict[str, float], assignment: str
) -> dict[str, str]:
    """The most used qubits of a task become the most (or least) loaded ones of node and kind; `load` grows by them."""
    sign = -1 if assignment == "most" else 1
    share: dict[str, float] = {}
    for use in occupation(steps):
        share[use.resource] = share.get(use.resource, 0.0) + (use.end - use.begin) / period
    kinds: dict[str, list[str]] = {}
    for qubit in sorted(share):
        kinds.setdefault(_kind(qubit), []).append(qubit)
    names = {}
    for kind, own in kinds.items():
        there = sorted((q for q in load if _kind(q) == kind), key=lambda q: (sign * load[q], q))
        for qubit, name in zip(sorted(own, key=lambda q: (-share[q], q)), there, strict=False):
            names[qubit] = name
            load[name] += share[qubit]
    return names


def _kind(qubit: str) -> str:
    """Node and kind of a qubit: "3-S1" -> "3-S"."""
    return qubit.rstrip("0123456789")


def _moved(steps: Sequence[Placed], names: Mapping[str, str]) -> tuple[Placed, ...]:
    return tuple(
        replace(
            step,
            resources=tuple(names[q] for q in step.resources),
            keeps=tuple(names[q] for q in step.keeps),
        )
        for step in steps
    )
