"""The rate that a system sustains: P99 of all token gaps within the objective, median scheduling delay within 2 s."""

from collections.abc import Callable
from dataclasses import dataclass

from common.serving.engine import Instance, simulate
from common.serving.latency import LatencyModel
from common.serving.loop import EventLoop
from common.serving.metrics import goodput, keeps_pace
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.sarathi_serve.deployments import DEPLOYMENTS, memory, scheduler

DELAY = 2.0  # seconds, median (Section 5.1)
LOWEST = 0.01  # requests/s, below which a capacity counts as none
PIPELINE_START = 0.25  # requests/s, where the search begins with Falcon-180B; with the others at 1
RESOLUTION = 0.025  # of the search, as in the authors' capacity_search


@dataclass(frozen=True)
class Cell:
    """One system on one deployment under one load: what a capacity is searched for."""

    deployment: str
    kind: str  # of lengths
    slo: str  # strict or relaxed
    system: str


@dataclass(frozen=True)
class Search:
    """A cell with the requests of a seed, at one a second. latency: instead of the deployment's own."""

    cell: Cell
    seed: int
    workload: Workload
    objective: float  # P99 TBT, seconds
    budget: int  # tokens
    latency: LatencyModel | None = None


def serve(
    workload: Workload,
    name: str,
    kind: str,
    system: str,
    budget: int,
    latency: LatencyModel | None = None,
    watch: Callable[[LatencyModel, EventLoop], LatencyModel] | None = None,
) -> tuple[Trace, Instance]:
    """Simulate a workload on a deployment; its trace with every token's time, and the instance as it was left.

    latency: instead of the deployment's own. watch: puts a latency model in between that sees every iteration.
    """
    deployment = DEPLOYMENTS[name]
    times = latency or deployment.latency()
    built: list[Instance] = []

    def build(loop: EventLoop) -> Instance:
        used = watch(times, loop) if watch else times
        policy = scheduler(system, deployment, kind, budget)
        blocks = memory(system, deployment, kind)
        built.append(Instance(loop, used, blocks, policy, records_tokens=True))
        return built[0]

    return simulate(workload, build), built[0]


def capacity(search: Search) -> float:
    """Requests/s at which the cell's system still keeps pace; 0 where it does not even at LOWEST."""
    cell = search.cell

    def sustains(rate: float) -> bool:
        load = search.workload.scaled(rate)
        trace, _ = serve(load, cell.deployment, cell.kind, cell.system, search.budget, search.latency)
        return keeps_pace(trace, search.objective, DELAY)

    start = 1.0 if DEPLOYMENTS[cell.deployment].stages == 1 else PIPELINE_START
    return goodput(sustains, start=start, resolution=RESOLUTION, lowest=LOWEST)
