"""Every system of a scenario on the requests of one seed, and the searches that come before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.serving.engine import System, simulate
from common.serving.loop import EventLoop
from common.serving.metrics import attainment, separate_attainment, smallest_scale
from common.serving.workload import Workload
from papers.distserve.deployment import Build, Parallelism, Placement, Units, colocated, disaggregated
from papers.distserve.placement import (
    LOWEST_RATE,
    Cluster,
    Objective,
    fill,
    high_affinity,
    low_affinity,
    low_affinity_units,
)
from papers.distserve.scenarios import Scenario, profile

if TYPE_CHECKING:
    from papers.distserve.experiment import Config

SYSTEMS = ("low", "vllm", "same-engine")  # that every scenario compares
PLANNING = -1  # in place of a seed: requests that only the searches see
# Rates of the attainment curves, over DistServe's goodput.
CURVE = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0)  # of both objectives, for the SLO curves


@dataclass(frozen=True)
class Plan:
    """What the searches chose for a scenario."""

    low: Placement
    high: Placement
    vllm_plus: Parallelism | None  # searched where the paper compares with vLLM++


@dataclass(frozen=True)
class Job:
    """A scenario on one draw of requests; what a worker process is given."""

    config: Config
    name: str
    scenario: Scenario
    workload: Workload  # at one request a second
    seed: int
    plan: Plan | None = None
    systems: tuple[str, ...] = SYSTEMS  # those that somebody asks for
    curves: bool = False  # attainment over rates and scales too


def objective(job: Job) -> Objective:
    config = job.config
    return Objective(
        job.workload, job.scenario.slo, config.target, config.resolution, config.requests, config.seconds
    )


def plan(job: Job) -> Plan:
    """Run both placement algorithms, and the search for vLLM++'s parallelism."""
    config, scenario = job.config, job.scenario
    model = profile(scenario.model, config.engine, config.link)
    cluster = Cluster(
        nodes=-(-scenario.gpus // 8),
        gpus_per_node=min(scenario.gpus, 8),
        tensor=tuple(config.tensor),
        stages=tuple(config.stages),
    )
    goal = objective(job)
    low = fill(low_affinity(model, cluster, goal)[0].placement, scenario.gpus)
    if not compares_placements(job.name):
        return Plan(low, low, None)
    high = high_affinity(model, cluster, goal)[0].placement
    return Plan(low, high, best_colocated(scenario, config, goal))


def compares_placements(name: str) -> bool:
    """The paper compares its placements on OPT-13B chat (Section 6.4)."""
    return name == "chat-opt-13b"


def best_colocated(scenario: Scenario, config: Config, goal: Objective) -> Parallelism:
    """vLLM++: the tensor parallelism with the highest goodput per GPU under vLLM's coefficients."""
    model = profile(scenario.model, "vllm", config.link)
    candidates = model.parallelisms(config.tensor, [1], scenario.gpus)
    if scenario.baseline not in candidates:
        candidates.append(scenario.baseline)
    return max(candidates, key=lambda p: colocated_goodput("vllm", p, scenario, config, goal))


def replicas_of(parallelism: Parallelism, gpus: int) -> int:
    return max(1, gpus // parallelism.gpus)


def colocated_build(
    engine: str, parallelism: Parallelism, gpus: int, scenario: Scenario, config: Config
) -> Build:
    """Colocated replicas on as many of `gpus` GPUs as they fill."""
    model = profile(scenario.model, engine, config.link)
    return lambda loop: colocated(model, parallelism, replicas_of(parallelism, gpus), loop)


def colocated_goodput(
    engine: str, parallelism: Parallelism, scenario: Scenario, config: Config, goal: Objective
) -> float:
    """Requests/s and GPU of colocated replicas that fill the scenario's GPUs."""
    gpus = replicas_of(parallelism, scenario.gpus) * parallelism.gpus
    return (
        goal.goodput(colocated_build(engine, parallelism, scenario.gpus, scenario, config), start=gpus) / gpus
    )


def distserve_build(placement: Placement, job: Job) -> tuple[Build, int]:
    """DistServe on a placement, and the GPUs it uses."""
    model = profile(job.scenario.model, job.config.engine, job.config.link)
    return lambda loop: disaggregated(model, placement, loop), placement.gpus


def undivided_build(job: Job) -> tuple[Build, int]:
    """What is left of DistServe when its phases are not taken apart: its engine, colocated, on the same GPUs."""
    scenario, config = job.scenario, job.config
    gpus = replicas_of(scenario.baseline, scenario.gpus) * scenario.baseline.gpus
    return colocated_build(config.engine, scenario.baseline, gpus, scenario, config), gpus


def low_goodput(job: Job) -> float:
    """Requests/s and GPU of the placement of Algorithm 2 in the job's plan."""
    assert job.plan is not None
    build, gpus = distserve_build(job.plan.low, job)
    return objective(job).goodput(build, start=float(gpus)) / gpus


def random_plan(job: Job, chosen: Plan) -> Plan:
    """Any feasible placement on at most as many GPUs, instead of the best; the seed decides."""
    config, scenario = job.config, job.scenario
    rng = np.random.default_rng([job.seed, 1])
    model = profile(scenario.model, config.engine, config.link)
    cluster = Cluster(1, min(scenario.gpus, 8), tuple(config.tensor), tuple(config.stages))

    def any_like(placement: Placement) -> Placement:
        units = [unit for unit in low_affinity_units(model, cluster) if unit.gpus <= placement.gpus]
        return fill(units[int(rng.integers(len(units)))], placement.gpus)

    return Plan(any_like(chosen.low), any_like(chosen.high), chosen.vllm_plus)


def ratio(per_gpu: dict[str, float], one: str, other: str) -> float:
    """Goodput of one system over another's; a system that sustains nothing counts with the lowest rate tried.

    Against such a system the ratio is a lower bound.
    """
    return max(per_gpu[one], LOWEST_PER_GPU) / max(per_gpu[other], LOWEST_PER_GPU)


def gains(name: str, per_system: dict[str, float]) -> list[tuple[str, float]]:
    """DistServe over vLLM, and over the same engine colocated, where these were evaluated."""
    pairs = (("", "vllm"), ("same_engine_", "same-engine"))
    return [
        (prefix + name, ratio(per_system, "low", other)) for prefix, other in pairs if other in per_system
    ]


LOWEST_PER_GPU = LOWEST_RATE / 4  # requests/s and GPU; 4 is the fewest GPUs that a scenario's systems share

Row = tuple[str, float, dict[str, Any]]


def evaluate(job: Job) -> list[Row]:
    """All metrics of a scenario on one seed's requests, as (metric, value, coordinates) rows."""
    config, scenario, goal, plan = job.config, job.scenario, objective(job), job.plan
    if plan and config.placement == "random":
        plan = random_plan(job, plan)
    systems = {"low": distserve_build(plan.low, job) if plan else undivided_build(job)}
    gpus = replicas_of(scenario.baseline, scenario.gpus) * scenario.baseline.gpus
    for name, engine in (("vllm", "vllm"), ("same-engine", "distserve")):
        if name in job.systems:
            build = colocated_build(engine, scenario.baseline, scenario.gpus, scenario, config)
            systems[name] = (build, gpus)
    if plan and plan.vllm_plus:
        gpus = replicas_of(plan.vllm_plus, scenario.gpus) * plan.vllm_plus.gpus
        systems["vllm++"] = (colocated_build("vllm", plan.vllm_plus, scenario.gpus, scenario, config), gpus)
        systems["high"] = distserve_build(plan.high, job)

    per_gpu = {name: goal.goodput(build, start=float(gpus)) / gpus for name, (build, gpus) in systems.items()}
    name, _, lengths = job.name.partition("/")
    if lengths:
        at: dict[str, Any] = {"scenario": name, "lengths": lengths}
        rows = [("goodput_by_lengths", value, at | {"system": system}) for system, value in per_gpu.items()]
        return rows + [(f"{gain}_by_lengths", value, at) for gain, value in gains("rate_gain", per_gpu)]
    slug = name.replace("-", "_")
    rows = [("goodput", value, {"scenario": name, "system": system}) for system, value in per_gpu.items()]
    rows += [(f"{gain}_{slug}", value, {}) for gain, value in gains("rate_gain", per_gpu)]
    rows += slo_rows(job, systems, name, slug)
    if "high" in per_gpu:
        rows += [
            ("high_over_low", ratio(per_gpu, "high", "low"), {}),
            ("low_over_vllm_plus", ratio(per_gpu, "low", "vllm++"), {}),
        ]
    if name == "chat-opt-66b" and plan:
        rows += transfer_rows(job, plan.low)
    if job.curves:
        rows += curve_rows(job, systems, per_gpu["low"], name)
    return rows


def slo_rows(job: Job, systems: dict[str, tuple[Build, int]], name: str, slug: str) -> list[Row]:
    """How tight the objectives may become at the scenario's rate: smallest scale of each system, and the ratios."""
    scale = {}
    rows: list[Row] = []
    for system, (build, gpus) in systems.items():
        trace = simulate(objective(job).at(job.scenario.rate_per_gpu * gpus), build)
        scale[system] = smallest_scale(trace, job.scenario.slo, job.config.target)
        at = {"scenario": name, "system": system}
        rows.append(("slo_scale", scale[system], at))
        if job.curves:
            rows += [
                (
                    "attainment_at_scale",
                    attainment(trace, job.scenario.slo.scaled(tight)),
                    at | {"scale": tight},
                )
                for tight in SCALES
            ]
    tightness = {system: 1 / value for system, value in scale.items()}
    return rows + [(f"{gain}_{slug}", value, {}) for gain, value in gains("slo_gain", tightness)]


def transfer_rows(job: Job, placement: Placement) -> list[Row]:
    """KV transfers at the scenario's rate: their share of all requests' latency, and the share that ends within 30 ms.

    Seconds from the pull to the end of the copy, waiting for the link included.
    """
    model = profile(job.scenario.model, job.config.engine, job.config.link)
    kept: list[Units] = []

    def build(loop: EventLoop) -> System:
        kept.append(disaggregated(model, placement, loop))
        return kept[0]

    trace = simulate(objective(job).at(job.scenario.rate_per_gpu * placement.gpus), build)
    seconds = np.array([t.arrived - t.pulled for unit in kept[0].units for t in unit.transfers])
    share = seconds.sum() / (trace.finish - trace.arrival).sum()
    rows: list[Row] = [
        ("transfer_share", float(share), {}),
        ("transfers_under_30ms", float(np.mean(seconds < 0.030)), {}),
    ]
    return rows + [
        ("transfer_seconds", float(np.quantile(seconds, q)), {"quantile": q})
        for q in (0.5, 0.9, 0.95, 0.99, 1.0)
    ]


def curve_rows(job: Job, systems: dict[str, tuple[Build, int]], around: float, name: str) -> list[Row]:
    """Attainment against rate per GPU, joint and separate, around DistServe's goodput."""
    rows: list[Row] = []
    for system, (build, gpus) in systems.items():
        for factor in CURVE:
            rate = round(factor * around, 4)
            trace = simulate(objective(job).at(rate * gpus), build)
            at = {"scenario": name, "system": system, "rate_per_gpu": rate, "factor": factor}
            rows.append(("attainment", attainment(trace, job.scenario.slo), at))
            for phase, share in zip(
                ("ttft", "tpot"), separate_attainment(trace, job.scenario.slo), strict=True
            ):
                rows.append((f"attainment_{phase}", share, at))
    return rows
