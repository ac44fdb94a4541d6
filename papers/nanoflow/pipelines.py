"""Pipelines of several models and workloads: non-overlap, nano-batch-only, and what the search finds."""

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
from papers.nanoflow.naive_streams import fair_period
from papers.nanoflow.search import Cuts, Effort, Pipeline, Structure, drawn, halved, search
from papers.nanoflow.stage_two import Found, one_after_another

CONSTANT = (Workload(512, 512), Workload(1024, 512), Workload(512, 1024))  # Section 6.2
PREFILL_ONLY = Workload(512, 0)


class Switches(NamedTuple):
    """What a control switches off; see config.Config."""

    overlap: bool = True
    duplication: bool = True
    dependencies: bool = True
    one_resource: bool = False
    gemms_only: bool = False
    attention_exponent: float = 0.75
    network_exponent: float = 0.5
    search: str = "two-stage"

    @property
    def curves(self) -> Interference:
        return interference(self.attention_exponent, self.network_exponent)


class Case(NamedTuple):
    """One model and workload to find a pipeline for.

    start: a pipeline of the same structure to start from. seed: of the walks, or of the draw. tried: what Stage I gave
    for these operators before, if anything.
    """

    deployment: Deployment
    workload: Workload
    batch: int
    switches: Switches
    effort: Effort
    start: tuple[Cuts, Choice] | None = None
    seed: int = 0
    tried: tuple[Structure, ...] = ()

    @property
    def searched(self) -> bool:
        """Whether the two-stage search runs, and nothing takes its place."""
        return self.switches.overlap and self.switches.search == "two-stage"


class Result(NamedTuple):
    """Periods of one layer (us) of a case: in one batch, in nano-batches, on streams without control, the bound, and
    the search's pipeline."""

    case: Case
    sequential: float
    nano_batch_only: float
    naive: float
    fluid: float
    pipeline: Pipeline

    @property
    def gain(self) -> float:
        """Throughput over non-overlap."""
        return self.sequential / self.pipeline.period

    @property
    def systems(self) -> tuple[tuple[str, float], ...]:
        """What the pipeline is compared with, itself, and the bound that it cannot pass: microseconds of a layer."""
        return (
            ("non-overlap", self.sequential),
            ("nano-batch-only", self.nano_batch_only),
            ("naive streams", self.naive),
            ("NanoFlow", self.pipeline.period),
            ("fluid bound", self.fluid),
        )


def case_operators(case: Case) -> dict[str, Operator]:
    """The case's operators, with what a control takes away."""
    switches = case.switches
    found = operators(case.deployment, case.workload, duplication=switches.duplication)
    if switches.one_resource:
        found = {name: op.on(COMPUTE) for name, op in found.items()}
    if switches.gemms_only:
        found = {name: op.scaled(float(op.stream == COMPUTE)) for name, op in found.items()}
    return found


def solve(case: Case) -> Result:
    """All periods of a case."""
    found = case_operators(case)
    curves = case.switches.curves
    split = halved(found, case.batch)
    naive = fair_period(split, curves)
    rng = np.random.Generator(np.random.PCG64(case.seed))
    if not case.switches.overlap:  # what is left: the batch in two, one after the other
        alone = one_after_another(split)
        pipeline = Pipeline({}, alone.schedule, alone)
    elif case.switches.search == "naive":
        alone = one_after_another(split)
        free = Found(split, alone.choice, alone.schedule._replace(period=naive))
        pipeline = Pipeline({}, alone.schedule, free)
    elif case.switches.search == "random":
        pipeline = drawn(found, case.batch, curves, rng, case.effort)
    else:
        pipeline = search(
            found,
            case.batch,
            curves,
            rng,
            case.effort,
            dependent=case.switches.dependencies,
            start=case.start,
            tried=case.tried,
        )
    sequential = sequential_us(found, case.batch)
    return Result(
        case._replace(tried=()),
        sequential,
        split.sequential,
        naive,
        fluid_bound(split.work, curves),
        pipeline,
    )
