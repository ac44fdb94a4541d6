"""Every system of a scenario on one seed's requests, and the searches that come before.

vllm          colocated, vLLM's coefficients, the paper's parallelism
vllm++        colocated, vLLM's coefficients, the best parallelism found by search
same-engine   colocated, DistServe's coefficients: what is left of the gain when the engine is the same
low, high     DistServe placed by Algorithm 2 (stages of both phases share a node) and by Algorithm 1
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from common.serving.cluster import Replicas
from common.serving.engine import Instance, System, simulate
from common.serving.loop import EventLoop
from common.serving.metrics import SLO, attainment, separate_attainment, smallest_scale
from common.serving.schedulers import PrefillFirst
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.distserve.config import Config
from papers.distserve.deployment import (
    Build,
    Parallelism,
    Placement,
    Profile,
    Units,
    colocated,
    disaggregated,
    shared_gpus,
)
from papers.distserve.disaggregation import PrefillBatches
from papers.distserve.placement import (
    Cluster,
    Objective,
    fill,
    high_affinity,
    high_affinity_placements,
    low_affinity,
    low_affinity_units,
)
from papers.distserve.scenarios import Scenario, Serving, profile

SCALES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)  # of both objectives
NEXT_TO_NOTHING = 1e-3  # requests/s and GPU: what a system that sustains no rate counts as, above the line
QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)  # of the transfers' seconds

Row = tuple[str, float, dict[str, Any]]
Plan = Placement | Parallelism


@dataclass(frozen=True)
class Job:
    """A scenario on one draw of requests, and the system that is asked for; what a worker process is given."""

    config: Config
    scenario: Scenario
    workload: Workload  # at one request a second
    seed: int
    system: str
    plan: Plan | None = None  # what the search chose for low, high and vllm++
    curves: bool = False  # attainment over rates and scales too

    @property
    def slo(self) -> SLO:
        slo = self.scenario.slo
        return slo.scaled(self.config.objectives) if self.config.objectives != 1 else slo

    def objective(self, gpus: int) -> Objective:
        """What the system is judged by on so many GPUs."""
        config, requests, seconds = self.config, self.config.requests, self.config.seconds
        if config.load == "artifact":
            requests, seconds = self.scenario.requests * gpus, 0.0
        return Objective(self.workload, self.slo, config.target, config.resolution, requests, seconds)


@dataclass(frozen=True)
class Answer:
    """What a system does: goodput in requests/s and GPU, tightest scale of the objectives, and rows for figures."""

    goodput: float
    scale: float
    rows: tuple[Row, ...]


def search(job: Job) -> Plan:
    """The plan of the job's system: Algorithm 2 (low), Algorithm 1 (high), vLLM's best parallelism (vllm++)."""
    config, scenario = job.config, job.scenario
    goal = job.objective(scenario.gpus)
    if job.system == "vllm++":
        candidates = serving(job, "vllm").parallelisms(config.tensor, [1], scenario.gpus)
        return max({scenario.baseline, *candidates}, key=lambda p: (_colocated_goodput(job, p), -p.gpus))
    if job.system == "high":
        return high_affinity(serving(job), cluster(job), goal)[0].placement
    return fill(low_affinity(serving(job), cluster(job), goal)[0].placement, scenario.gpus)


def _colocated_goodput(job: Job, parallelism: Parallelism) -> float:
    build, gpus = _rival(job, "vllm", parallelism)
    return job.objective(gpus).goodput(build, gpus)


def cluster(job: Job) -> Cluster:
    return Cluster(1, job.scenario.gpus, tuple(job.config.tensor), tuple(job.config.stages))


def serving(job: Job, engine: str = "") -> Profile:
    """The job's model under its config, or under another engine's coefficients."""
    config = job.config
    how = Serving(
        engine or config.engine, config.link, config.prefill_tokens, config.overlap, config.swap_gbytes_per_s
    )
    return profile(job.scenario.model, how)


def system_of(job: Job) -> tuple[Build, int]:
    """The system that the job asks for, and the GPUs it uses."""
    if job.system in ("low", "high"):
        return _distserve(job)
    engine = "distserve" if job.system == "same-engine" else "vllm"
    return _rival(job, engine, job.plan if isinstance(job.plan, Parallelism) else job.scenario.baseline)


def _distserve(job: Job) -> tuple[Build, int]:
    model, scenario = serving(job), job.scenario
    if not job.config.disaggregate:
        replicas = scenario.gpus // scenario.baseline.gpus
        return partial(shared_gpus, model, scenario.baseline, replicas), replicas * scenario.baseline.gpus
    assert isinstance(job.plan, Placement)
    chosen = random_placement(job, job.plan) if job.config.placement == "random" else job.plan
    return partial(disaggregated, model, chosen), chosen.gpus


def _rival(job: Job, engine: str, parallelism: Parallelism) -> tuple[Build, int]:
    """vLLM's policy on an engine's coefficients."""
    config = job.config
    replicas = 1 if config.vllm_instances == "one" else max(1, job.scenario.gpus // parallelism.gpus)
    model = serving(job, engine)
    scheduler = partial(PrefillFirst, config.vllm_prefill_tokens, model.max_sequences)
    return lambda loop: colocated(model, parallelism, replicas, loop, scheduler), replicas * parallelism.gpus


def random_placement(job: Job, chosen: Placement) -> Placement:
    """Any placement on as many GPUs that the algorithm could have chosen, instead of the best; the seed decides."""
    model, gpus = serving(job), job.scenario.gpus
    if job.system == "high":
        placements = high_affinity_placements(model, cluster(job))
    else:
        placements = (fill(unit, gpus) for unit in low_affinity_units(model, cluster(job)))
    same = [placement for placement in placements if placement.gpus == chosen.gpus]
    return same[int(np.random.default_rng([job.seed, 1]).integers(len(same)))]


def answer(job: Job) -> Answer:
    """Goodput, tightest objectives and counters of the job's system."""
    build, gpus = system_of(job)
    goal = job.objective(gpus)
    rate = goal.goodput(build, gpus) * gpus
    tightened = simulate(goal.at(job.scenario.slo_rate * job.config.slo_load * gpus), build)
    rows = [*_counters(build, goal, rate or job.scenario.slo_rate * gpus)]
    if job.system == "low" and job.config.disaggregate:
        rows += _transfers(build, goal.at(job.scenario.slo_rate * gpus))
    if job.curves:
        rows += _curves(job, build, gpus, tightened)
    return Answer(rate / gpus, smallest_scale(tightened, job.slo, job.config.target), tuple(rows))


def _served(build: Build, workload: Workload) -> tuple[Trace, System]:
    built: list[System] = []

    def keep(loop: EventLoop) -> System:
        built.append(build(loop))
        return built[0]

    return simulate(workload, keep), built[0]


def _counters(build: Build, goal: Objective, rate: float) -> Iterator[Row]:
    """What speaks against a system at its goodput: idle GPUs of each phase, caches that wait, prompts held back."""
    trace, system = _served(build, goal.at(rate))
    elapsed = float(trace.finish.max())
    if isinstance(system, Replicas):
        yield "idle_share", _idle(list(system.instances), elapsed), {"phase": "both"}
        return
    assert isinstance(system, Units)
    prefills = [instance for unit in system.units for instance in unit.prefills]
    yield "idle_share", _idle(prefills, elapsed), {"phase": "prefill"}
    decodes = [side.instance for unit in system.units for side in unit.decodes]
    yield "idle_share", _idle(decodes, elapsed), {"phase": "decode"}
    waits = [transfer.pulled - transfer.prefilled for unit in system.units for transfer in unit.transfers]
    yield "pull_wait_seconds", float(np.mean(waits)), {}
    blocked = sum(i.scheduler.blocked for i in prefills if isinstance(i.scheduler, PrefillBatches))
    yield "prompts_held_back", blocked / len(trace.arrival), {}


def _idle(instances: list[Instance], elapsed: float) -> float:
    """Share of the time in which these instances (of a pipeline: its first stage) computed nothing."""
    return 1 - sum(instance.busy_seconds for instance in instances) / (len(instances) * elapsed)


def _transfers(build: Build, workload: Workload) -> Iterator[Row]:
    """KV transfers: their share of all requests' latency, and quantiles of their seconds.

    Seconds from the pull to the end of the copy, waiting for the link included.
    """
    trace, system = _served(build, workload)
    assert isinstance(system, Units)
    seconds = np.array([t.arrived - t.pulled for unit in system.units for t in unit.transfers])
    yield "transfers", float(seconds.sum() / (trace.finish - trace.arrival).sum()), {}
    for quantile in QUANTILES:
        yield "transfer_seconds", float(np.quantile(seconds, quantile)), {"quantile": quantile}


def _curves(job: Job, build: Build, gpus: int, tightened: Trace) -> Iterator[Row]:
    """Attainment at the rates and under the scales of the paper's figures, jointly and of each objective alone."""
    for rate in job.scenario.rates:
        trace = simulate(job.objective(gpus).at(rate * gpus), build)
        yield "attainment", attainment(trace, job.slo), {"rate_per_gpu": rate}
        for phase, share in zip(("ttft", "tpot"), separate_attainment(trace, job.slo), strict=True):
            yield f"attainment_{phase}", share, {"rate_per_gpu": rate}
    for scale in SCALES:
        yield "attainment_at_scale", attainment(tightened, job.slo.scaled(scale)), {"scale": scale}


def ratio(ours: float, rival: float, floor: float) -> tuple[float, bool]:
    """Goodput over goodput, and whether the rival stands on the floor, so that the ratio is only a lower bound."""
    return max(ours, NEXT_TO_NOTHING) / max(rival, floor), rival < floor
