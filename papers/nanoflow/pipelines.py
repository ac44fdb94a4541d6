"""Pipelines of several models and workloads: non-overlap, nano-batch-only, and what the search finds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from papers.nanoflow.cost_model import (
    COMPUTE,
    Deployment,
    Operator,
    Workload,
    operators,
    sequential_us,
)
from papers.nanoflow.interference import Interference, fluid_bound, interference
from papers.nanoflow.list_schedule import Choice
from papers.nanoflow.search import Cuts, Effort, Map, Pipeline, Walk, Walked, halved, search
from papers.nanoflow.stage_two import one_after_another

CONSTANT = (Workload(512, 512), Workload(1024, 512), Workload(512, 1024))  # Section 6.2
PREFILL_ONLY = Workload(512, 0)


class Switches(NamedTuple):
    """What a control switches off; see experiment.Config."""

    overlap: bool = True
    duplication: bool = True
    dependencies: bool = True
    one_resource: bool = False
    gemms_only: bool = False
    attention_exponent: float = 0.75
    network_exponent: float = 0.5
    chain: str = "reduce"

    @property
    def curves(self) -> Interference:
        return interference(self.attention_exponent, self.network_exponent)


class Case(NamedTuple):
    """One model and workload to find a pipeline for; start: a pipeline of the same structure to start from."""

    deployment: Deployment
    workload: Workload
    batch: int
    switches: Switches
    effort: Effort
    start: tuple[Cuts, Choice] | None = None


class Result(NamedTuple):
    """Periods of one layer (us) of a case: in one batch, in nano-batches, the bound, and the search's pipeline."""

    case: Case
    sequential: float
    nano_batch_only: float
    fluid: float
    pipeline: Pipeline

    @property
    def gain(self) -> float:
        """Throughput over non-overlap."""
        return self.sequential / self.pipeline.period


def case_operators(case: Case) -> dict[str, Operator]:
    """The case's operators, with what a control takes away."""
    switches = case.switches
    found = operators(case.deployment, case.workload, chain=switches.chain, duplication=switches.duplication)
    if switches.one_resource:
        found = {name: op.on(COMPUTE) for name, op in found.items()}
    if switches.gemms_only:
        found = {name: op.scaled(float(op.stream == COMPUTE)) for name, op in found.items()}
    return found


def solve(case: Case, run: Map | None = None) -> Result:
    """All periods of a case. run: a parallel map for the search's walks; serial by default."""
    found = case_operators(case)
    curves = case.switches.curves
    sequential = sequential_us(found, case.batch)
    split = halved(found, case.batch)
    if not case.switches.overlap:  # what is left: the batch in two, one after the other
        alone = one_after_another(split)
        pipeline = Pipeline({}, alone.schedule, alone)
    else:
        pipeline = search(
            found,
            case.batch,
            curves,
            np.random.Generator(np.random.PCG64(0)),
            case.effort,
            run or serially,
            dependent=case.switches.dependencies,
            start=case.start,
        )
    return Result(case, sequential, split.sequential, fluid_bound(split.work, curves), pipeline)


def serially(function: Callable[[Walk], Walked], jobs: Sequence[Walk], label: str) -> list[Walked]:
    """`lab.map` without processes."""
    return [function(job) for job in jobs]
