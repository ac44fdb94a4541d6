"""The two placement algorithms: parallelism of each phase, number of instances, and who shares a node.

`high_affinity` (Algorithm 1) may put any instance anywhere, because the network between nodes is fast: each phase is
optimised on its own and replicated to match the other. `low_affinity` (Algorithm 2) keeps corresponding pipeline stages
of both phases inside one node, so that KV caches cross NVLink only: both phases are optimised together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from common.serving.engine import simulate
from common.serving.metrics import SLO, attainment, goodput
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.distserve.deployment import (
    Build,
    Parallelism,
    Placement,
    PrefillOnly,
    Profile,
    decode_only,
    disaggregated,
)

LOWEST_RATE = 0.01  # requests/s; a system that cannot sustain one request in 100 s is given up on
HIGHEST_RATE = 128.0  # requests/s and GPU; a system that sustains it is limited by nothing
UNLIMITED = float("inf")  # seconds; the objective of the phase that is not looked at


@dataclass(frozen=True)
class Objective:
    """What a system is judged by: a workload at unit rate, objectives, and the share of requests to meet them.

    A rate is tried for `seconds` of arrivals, and on at least `requests` requests: a fixed number would end before the
    batches of a large system have filled, and would let every system look better than it is.
    """

    workload: Workload
    slo: SLO
    target: float = 0.9
    resolution: float = 0.02
    requests: int = 600
    seconds: float = 300.0

    def at(self, rate: float) -> Workload:
        """The requests that a rate (requests/s) is tried on."""
        return self.workload.first(max(self.requests, round(rate * self.seconds))).scaled(rate)

    def sustains(self, build: Build, rate: float, slo: SLO | None = None) -> bool:
        """Whether the system meets the objectives for the target share of requests at `rate` requests/s."""
        trace = simulate(self.at(rate), build)
        return attainment(trace, slo or self.slo) >= self.target

    def goodput(self, build: Build, gpus: int, slo: SLO | None = None, start: float = 1.0) -> float:
        """The highest rate that the system on `gpus` GPUs sustains, requests/s and GPU; searched from `start`."""
        return (
            goodput(
                lambda rate: self.sustains(build, rate, slo),
                min(start, HIGHEST_RATE) * gpus,
                self.resolution,
                lowest=LOWEST_RATE,
                highest=HIGHEST_RATE * gpus,
            )
            / gpus
        )


@dataclass(frozen=True)
class Scored:
    """A candidate and its goodput, requests/s and GPU; `pruned` if it was only shown to lose to a better one."""

    placement: Placement
    per_gpu: float
    pruned: bool = False


@dataclass(frozen=True)
class Cluster:
    """The GPUs at hand, and the degrees of parallelism to try."""

    nodes: int
    gpus_per_node: int
    tensor: tuple[int, ...]
    stages: tuple[int, ...]


def high_affinity(profile: Profile, cluster: Cluster, objective: Objective) -> list[Scored]:
    """Algorithm 1: the best parallelism of each phase alone, then as many instances as balance the phases.

    Returns the placements that fill at most all GPUs, best first; their goodput is the estimate
    min(n * goodput_prefill, m * goodput_decode) of the algorithm, not yet a simulation of both phases together.
    """
    gpus = cluster.nodes * cluster.gpus_per_node
    feasible = profile.parallelisms(list(cluster.tensor), list(cluster.stages), gpus - 1)
    prefill = phase_goodputs(profile, feasible, objective, "prefill")
    decode = phase_goodputs(profile, feasible, objective, "decode")
    scored = [
        Scored(one, min(one.prefills * prefill[one.prefill], one.decodes * decode[one.decode]) / one.gpus)
        for one in high_affinity_placements(profile, cluster)
    ]
    return sorted(scored, key=lambda one: (-one.per_gpu, one.placement.gpus, str(one.placement)))


def high_affinity_placements(profile: Profile, cluster: Cluster) -> Iterator[Placement]:
    """What Algorithm 1 chooses from: any parallelisms and numbers of instances that the GPUs hold."""
    gpus = cluster.nodes * cluster.gpus_per_node
    feasible = profile.parallelisms(list(cluster.tensor), list(cluster.stages), gpus - 1)
    for prefill in feasible:
        for decode in feasible:
            for n in range(1, gpus // prefill.gpus + 1):
                for m in range(1, (gpus - n * prefill.gpus) // decode.gpus + 1):
                    yield Placement(prefill, decode, prefills=n, decodes=m)


def phase_goodputs(
    profile: Profile, parallelisms: list[Parallelism], objective: Objective, phase: str
) -> dict[Parallelism, float]:
    """Requests/s that one instance of a phase sustains on its own, by parallelism, under that phase's objective."""

    def build(parallelism: Parallelism) -> Build:
        if phase == "prefill":
            return lambda loop: PrefillOnly(profile, parallelism, loop)
        return lambda loop: decode_only(profile, parallelism, loop)

    slo = SLO(objective.slo.ttft, UNLIMITED) if phase == "prefill" else SLO(UNLIMITED, objective.slo.tpot)
    return {p: objective.goodput(build(p), p.gpus, slo) * p.gpus for p in parallelisms}


def replicate(rate: float, prefill: float, decode: float) -> tuple[int, int]:
    """Instances of each phase for a traffic of `rate` requests/s, given the goodput of one instance of each."""
    return -int(-rate // prefill), -int(-rate // decode)


def low_affinity_units(profile: Profile, cluster: Cluster) -> Iterator[Placement]:
    """The units of Algorithm 2: a prefill and a decode instance whose corresponding stages share a node.

    A unit spreads its stages over `inter_op` nodes, and in each of them both phases together must fit.
    """
    for inter_op in range(1, cluster.nodes + 1):
        feasible = profile.parallelisms(
            list(cluster.tensor),
            [inter_op * stages for stages in cluster.stages],
            inter_op * cluster.gpus_per_node,
        )
        for prefill in feasible:
            for decode in feasible:
                if (prefill.gpus + decode.gpus) // inter_op <= cluster.gpus_per_node:
                    yield Placement(prefill, decode)


def low_affinity(profile: Profile, cluster: Cluster, objective: Objective) -> list[Scored]:
    """Algorithm 2: simulate both phases of every unit together; best goodput per GPU first.

    A unit that cannot sustain the rate per GPU of the best one so far is only shown to lose, in one simulation.
    """
    best = 0.0
    scored = []
    for unit in sorted(low_affinity_units(profile, cluster), key=lambda one: (one.gpus, str(one))):
        build = partial(disaggregated, profile, unit)
        threshold = best * (1 + objective.resolution)
        if best and not objective.sustains(build, threshold * unit.gpus):
            scored.append(Scored(unit, best, pruned=True))
            continue
        per_gpu = objective.goodput(build, unit.gpus, start=threshold or 1.0)
        best = max(best, per_gpu)
        scored.append(Scored(unit, per_gpu))
    return sorted(scored, key=lambda one: (one.pruned, -one.per_gpu, one.placement.gpus))


Sweep = dict[Placement, dict[float, Trace]]


def sweep(profile: Profile, units: list[Placement], workload: Workload, rates: list[float]) -> Sweep:
    """What every unit does with a workload (at unit rate) at each rate, requests/s and GPU.

    Objectives play no part in a simulation, so that any of them can be tried on the answer (`best_under`) at once.
    """
    return {
        unit: {
            rate: simulate(workload.scaled(rate * unit.gpus), partial(disaggregated, profile, unit))
            for rate in rates
        }
        for unit in units
    }


def best_under(swept: Sweep, slo: SLO, target: float = 0.9) -> list[tuple[Placement, float]]:
    """The units with the highest rate per GPU, among those swept, at which `target` of the requests meet `slo`."""
    best = {
        unit: max((rate for rate, trace in by_rate.items() if attainment(trace, slo) >= target), default=0.0)
        for unit, by_rate in swept.items()
    }
    return sorted(best.items(), key=lambda one: (-one[1], one[0].gpus))


def fill(unit: Placement, gpus: int) -> Placement:
    """As many copies of a unit as `gpus` GPUs hold, at least one."""
    return Placement(unit.prefill, unit.decode, unit.prefills, unit.decodes, max(1, gpus // unit.gpus))
