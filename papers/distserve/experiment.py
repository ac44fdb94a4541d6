"""What the claims of DistServe read: goodput, SLO scales, transfers and placements, simulated on A100 coefficients.

Every scenario is planned once, on requests that no seed evaluates, and then evaluated seed by seed on fresh
requests. All systems see the same requests, may use the same number of GPUs, and are divided by the GPUs they do use:

    vllm          colocated, vLLM's coefficients, the paper's parallelism
    vllm++        colocated, vLLM's coefficients, the best parallelism found by search
    same-engine   colocated, DistServe's coefficients: what is left of the gain when the engine is the same
    low, high     DistServe placed by Algorithm 2 (stages of both phases share a node) and by Algorithm 1
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.engine import EventLoop, System, Trace, simulate
from common.serving.metrics import attainment, separate_attainment, smallest_scale
from common.serving.workload import SYNTHETIC, Workload, draw_lengths, poisson
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
from papers.distserve.scenarios import OTHER_LENGTHS, SCENARIOS, Scenario, profile, with_lengths

# The registry's data sets behind the traces.
TRACES = {
    "sharegpt": "nanoflow-sharegpt-lengths",
    "azure-conversation": "azure-2023-conversation",
    "arxiv-summarisation": "arxiv-summarisation-lengths",
}
CURVE = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # rates of the attainment curves, over DistServe's goodput


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; `profile` files change the sizes."""

    scenarios: list[str] = field(default_factory=lambda: list(SCENARIOS)[:4])  # names in scenarios.py
    requests: int = 600  # fewest of each run
    seconds: float = 120.0  # of arrivals in each run, where that takes more requests
    most_requests: int = 20_000  # of each run, whatever the rate
    target: float = 0.9  # share of requests that must meet both objectives
    resolution: float = 0.02  # relative, of every goodput
    tensor: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 8])  # degrees of tensor parallelism to search
    stages: list[int] = field(default_factory=lambda: [1, 2, 4])  # pipeline stages to search
    other_lengths: bool = True  # repeat the goodputs on other length distributions
    disaggregate: bool = True  # False: the GPUs of the placement serve both phases together
    engine: str = "distserve"  # whose coefficients DistServe's instances run on
    link: str = "nvlink"  # between the phases: nvlink or cross_node_25gbps
    placement: str = "search"  # or random: any feasible placement with as many GPUs


@dataclass(frozen=True)
class Plan:
    """The placements that the search chose for a scenario."""

    low: Placement
    high: Placement
    vllm_plus: Parallelism


@dataclass(frozen=True)
class Job:
    """A scenario on one draw of requests; what a worker process is given."""

    config: Config
    name: str
    scenario: Scenario
    workload: Workload  # at one request a second
    seed: int
    plan: Plan | None = None
    curves: bool = False


def run(config: Config, lab: Runtime) -> Observations:
    """Plan every scenario, evaluate every seed, and collect what the claims and figures read."""
    observations = Observations()
    scenarios = chosen_scenarios(config, lab)
    planning = [
        Job(config, name, scenario, draw(scenario, lab.rng(0, "planning", name), config, lab), -1)
        for name, scenario in scenarios
    ]
    plans = dict(zip((job.name for job in planning), lab.map(plan, planning, "placements"), strict=True))
    for name, chosen in plans.items():
        observations.add("gpus", chosen.low.gpus, scenario=name, system="low", placement=str(chosen.low))
        observations.add("gpus", chosen.high.gpus, scenario=name, system="high", placement=str(chosen.high))
        observations.add("gpus", chosen.vllm_plus.gpus, scenario=name, system="vllm++", placement=str(chosen.vllm_plus))
    jobs = [
        Job(config, name, scenario, draw(scenario, lab.rng(seed, name), config, lab), seed, plans[name], "/" not in name)
        for name, scenario in scenarios
        for seed in lab.seeds
    ]
    for job, rows in zip(jobs, lab.map(evaluate, jobs, "goodputs"), strict=True):
        for metric, value, at in rows:
            observations.add(metric, value, seed=job.seed, **at)
    return observations


def chosen_scenarios(config: Config, lab: Runtime) -> list[tuple[str, Scenario]]:
    """The configured scenarios, and their variants on other lengths, named "scenario/lengths"."""
    unknown = set(config.scenarios) - set(SCENARIOS)
    if unknown:
        raise ValueError(f"unknown scenario {sorted(unknown)[0]!r}; one of {', '.join(SCENARIOS)}")
    chosen = [(name, SCENARIOS[name]) for name in config.scenarios if lab.wants(*metrics_of(name))]
    if config.other_lengths and lab.wants("goodput_by_lengths"):
        chosen += [
            (f"{name}/{lengths}", with_lengths(SCENARIOS[name], lengths))
            for name in config.scenarios
            for lengths in OTHER_LENGTHS.get(name, ())
        ]
    return chosen


def metrics_of(name: str) -> tuple[str, ...]:
    """The metrics with a claim that a scenario gives."""
    slug = name.replace("-", "_")
    metrics = tuple(f"{kind}_{slug}" for kind in ("rate_gain", "same_engine_rate_gain", "slo_gain", "same_engine_slo_gain"))
    if name == "chat-opt-13b":
        metrics += ("high_over_low", "low_over_vllm_plus", "vllm_plus_over_vllm")
    if name == "chat-opt-66b":
        metrics += ("transfer_share", "transfers_under_30ms")
    return metrics


def draw(scenario: Scenario, rng: np.random.Generator, config: Config, lab: Runtime) -> Workload:
    """Poisson arrivals at one request a second, with lengths from the real trace where it can be had."""
    path: Path | None = None
    if scenario.lengths not in SYNTHETIC:
        path = lab.data(TRACES[scenario.lengths.removesuffix("-joined")])
    n = max(config.requests, config.most_requests)
    lengths = draw_lengths(scenario.lengths, rng, n, path)
    return Workload(poisson(rng, n), lengths.prompt, lengths.output)


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
    high = high_affinity(model, cluster, goal)[0].placement if wants_high(job.name) else low
    return Plan(low, high, best_colocated(scenario, config, goal))


def wants_high(name: str) -> bool:
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


def colocated_build(engine: str, parallelism: Parallelism, gpus: int, scenario: Scenario, config: Config) -> Build:
    """Colocated replicas on as many of `gpus` GPUs as they fill."""
    model = profile(scenario.model, engine, config.link)
    return lambda loop: colocated(model, parallelism, replicas_of(parallelism, gpus), loop)


def colocated_goodput(
    engine: str, parallelism: Parallelism, scenario: Scenario, config: Config, goal: Objective
) -> float:
    """Requests/s and GPU of colocated replicas that fill the scenario's GPUs."""
    gpus = replicas_of(parallelism, scenario.gpus) * parallelism.gpus
    return goal.goodput(colocated_build(engine, parallelism, scenario.gpus, scenario, config), start=gpus) / gpus


def distserve_build(placement: Placement, job: Job) -> tuple[Build, int]:
    """DistServe on a placement, and the GPUs it uses. With `disaggregate` off, its engine serves both phases together."""
    config, scenario = job.config, job.scenario
    if not config.disaggregate:
        replicas = replicas_of(scenario.baseline, placement.gpus)
        build = colocated_build(config.engine, scenario.baseline, placement.gpus, scenario, config)
        return build, replicas * scenario.baseline.gpus
    model = profile(scenario.model, config.engine, config.link)
    return lambda loop: disaggregated(model, placement, loop), placement.gpus


def random_placement(job: Job, chosen: Placement, rng: np.random.Generator) -> Placement:
    """Any feasible placement whose unit has as many GPUs as the chosen one's, instead of the best."""
    config, scenario = job.config, job.scenario
    model = profile(scenario.model, config.engine, config.link)
    cluster = Cluster(1, min(scenario.gpus, 8), tuple(config.tensor), tuple(config.stages))
    alike = [fill(unit, chosen.gpus) for unit in low_affinity_units(model, cluster) if unit.gpus <= chosen.gpus]
    return alike[int(rng.integers(len(alike)))]


def ratio(per_gpu: dict[str, float], one: str, other: str) -> float:
    """Goodput of one system over another's; a system that sustains nothing counts with the lowest rate tried.

    Against such a system the ratio is a lower bound.
    """
    return max(per_gpu[one], LOWEST_PER_GPU) / max(per_gpu[other], LOWEST_PER_GPU)


LOWEST_PER_GPU = LOWEST_RATE / 4  # requests/s and GPU; 4 is the fewest GPUs that a scenario's systems share

Row = tuple[str, float, dict[str, Any]]


def evaluate(job: Job) -> list[Row]:
    """All metrics of a scenario on one seed's requests, as (metric, value, coordinates) rows."""
    assert job.plan is not None
    config, scenario, goal = job.config, job.scenario, objective(job)
    low, high, vllm_plus = job.plan.low, job.plan.high, job.plan.vllm_plus
    if config.placement == "random":
        rng = np.random.default_rng([job.seed, 1])
        low, high = random_placement(job, low, rng), random_placement(job, high, rng)
        degrees = profile(scenario.model, "vllm", config.link).parallelisms(config.tensor, [1], scenario.gpus)
        vllm_plus = degrees[int(rng.integers(len(degrees)))]

    systems: dict[str, tuple[Build, int]] = {"low": distserve_build(low, job)}
    for name, engine in (("vllm", "vllm"), ("same-engine", "distserve")):
        gpus = replicas_of(scenario.baseline, scenario.gpus) * scenario.baseline.gpus
        systems[name] = (colocated_build(engine, scenario.baseline, scenario.gpus, scenario, config), gpus)
    if wants_high(job.name):
        systems["high"] = distserve_build(high, job)
        gpus = replicas_of(vllm_plus, scenario.gpus) * vllm_plus.gpus
        systems["vllm++"] = (colocated_build("vllm", vllm_plus, scenario.gpus, scenario, config), gpus)

    per_gpu = {name: goal.goodput(build, start=float(gpus)) / gpus for name, (build, gpus) in systems.items()}
    name, _, lengths = job.name.partition("/")
    if lengths:
        at = {"scenario": name, "lengths": lengths}
        return [
            *(("goodput_by_lengths", value, at | {"system": system}) for system, value in per_gpu.items()),
            ("rate_gain_by_lengths", ratio(per_gpu, "low", "vllm"), at),
            ("same_engine_rate_gain_by_lengths", ratio(per_gpu, "low", "same-engine"), at),
        ]
    slug = name.replace("-", "_")
    rows: list[Row] = [("goodput", value, {"scenario": name, "system": system}) for system, value in per_gpu.items()]
    rows += [
        (f"rate_gain_{slug}", ratio(per_gpu, "low", "vllm"), {}),
        (f"same_engine_rate_gain_{slug}", ratio(per_gpu, "low", "same-engine"), {}),
        ("engine_rate_gain", ratio(per_gpu, "same-engine", "vllm"), {"scenario": name}),
    ]
    rows += slo_rows(job, systems, name, slug)
    if wants_high(name):
        rows += [
            ("high_over_low", ratio(per_gpu, "high", "low"), {}),
            ("low_over_vllm_plus", ratio(per_gpu, "low", "vllm++"), {}),
            ("vllm_plus_over_vllm", ratio(per_gpu, "vllm++", "vllm"), {}),
        ]
    if name == "chat-opt-66b":
        rows += transfer_rows(job, low)
    if job.curves:
        rows += curve_rows(job, systems, per_gpu["low"], name)
    return rows


def slo_rows(job: Job, systems: dict[str, tuple[Build, int]], name: str, slug: str) -> list[Row]:
    """How tight the objectives may become at the scenario's rate: smallest scale of each system, and the ratios."""
    scale = {}
    for system, (build, gpus) in systems.items():
        trace = simulate(objective(job).at(job.scenario.rate_per_gpu * gpus), build)
        scale[system] = smallest_scale(trace, job.scenario.slo, job.config.target)
    rows: list[Row] = [("slo_scale", value, {"scenario": name, "system": system}) for system, value in scale.items()]
    rows += [
        (f"slo_gain_{slug}", scale["vllm"] / scale["low"], {}),
        (f"same_engine_slo_gain_{slug}", scale["same-engine"] / scale["low"], {}),
    ]
    return rows


def transfer_rows(job: Job, placement: Placement) -> list[Row]:
    """KV transfers at the scenario's rate: their share of all requests' latency, and the share that ends within 30 ms.

    Transfers exist only where the phases are apart; a colocated system has none, and its share is 0.
    """
    if not job.config.disaggregate:
        return [("transfer_share", 0.0, {}), ("transfers_under_30ms", 1.0, {})]
    model = profile(job.scenario.model, job.config.engine, job.config.link)
    kept: list[Units] = []

    def build(loop: EventLoop) -> System:
        kept.append(disaggregated(model, placement, loop))
        return kept[0]

    trace = simulate(objective(job).at(job.scenario.rate_per_gpu * placement.gpus), build)
    seconds = np.array([t.arrived - t.pulled for unit in kept[0].units for t in unit.transfers])
    share = seconds.sum() / (trace.finish - trace.arrival).sum()
    rows: list[Row] = [("transfer_share", float(share), {}), ("transfers_under_30ms", float(np.mean(seconds < 0.030)), {})]
    return rows + [
        ("transfer_seconds", float(np.quantile(seconds, q)), {"quantile": q}) for q in (0.5, 0.9, 0.95, 0.99, 1.0)
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
            for phase, share in zip(("ttft", "tpot"), separate_attainment(trace, job.scenario.slo), strict=True):
                rows.append((f"attainment_{phase}", share, at))
    return rows
