"""What the claims of DistServe read: goodput, SLO scales, transfers and placements, simulated on A100 coefficients.

Every scenario is planned once, on requests that no seed evaluates, and then evaluated seed by seed on fresh
requests. All systems see the same requests, may use the same number of GPUs, and are divided by the GPUs they do use:

    vllm          colocated, vLLM's coefficients, the paper's parallelism
    vllm++        colocated, vLLM's coefficients, the best parallelism found by search
    same-engine   colocated, DistServe's coefficients: what is left of the gain when the engine is the same
    low, high     DistServe placed by Algorithm 2 (stages of both phases share a node) and by Algorithm 1
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.engine import EventLoop, System, simulate
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
PLANNING = -1  # in place of a seed: requests that only the searches see
CURVE = (
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    1.25,
    1.5,
    2.0,
)  # rates of the attainment curves, over DistServe's goodput
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0)  # of both objectives, for the SLO curves


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; `profile` files change the sizes."""

    scenarios: list[str] = field(default_factory=lambda: list(SCENARIOS)[:4])  # names in scenarios.py
    requests: int = 600  # fewest of each run
    seconds: float = 120.0  # of arrivals in each run, where that takes more requests
    most_requests: int = 20_000  # of each run, whatever the rate
    target: float = 0.9  # share of requests that must meet both objectives
    resolution: float = 0.02  # relative, of every goodput
    tensor: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 8]
    )  # degrees of tensor parallelism to search
    stages: list[int] = field(default_factory=lambda: [1, 2, 4])  # pipeline stages to search
    other_lengths: int = 3  # seeds on which the goodputs are repeated with other lengths
    disaggregate: bool = True  # False: the same GPUs serve both phases together, nothing is placed
    engine: str = "distserve"  # whose coefficients DistServe's instances run on
    link: str = "nvlink"  # between the phases: nvlink or cross_node_25gbps
    placement: str = "search"  # or random: any feasible placement with as many GPUs
    real_requests: int = 32  # of each run of the two real processes; 0 leaves them out
    real_levels: list[float] = field(
        default_factory=lambda: [0.6, 0.9]
    )  # their rates, over each system's capacity
    perturb: float = 1.0  # factor on the fitted prefill slope with which the simulator predicts the real runs


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
    curves: bool = False


def run(config: Config, lab: Runtime) -> Observations:
    """Plan every scenario, evaluate every seed, and collect what the claims and figures read."""
    observations = Observations()
    if config.real_requests and lab.wants("attainment_error"):
        check_simulator(config, lab, observations)
    scenarios = chosen_scenarios(config, lab)
    planning = [
        Job(config, name, scenario, draw(scenario, lab.rng(0, "planning", name), config, lab), PLANNING)
        for name, scenario in scenarios
    ]
    plans: dict[str, Plan] = {}
    if config.disaggregate:
        plans = dict(zip((job.name for job in planning), lab.map(plan, planning, "placements"), strict=True))
    for name, chosen in plans.items():
        observations.add("gpus", chosen.low.gpus, scenario=name, system="low", placement=str(chosen.low))
        if chosen.vllm_plus:
            at = {"scenario": name, "system": "vllm++", "placement": str(chosen.vllm_plus)}
            observations.add("gpus", chosen.vllm_plus.gpus, None, **at)
            observations.add(
                "gpus", chosen.high.gpus, scenario=name, system="high", placement=str(chosen.high)
            )
    jobs = [
        Job(
            config,
            name,
            scenario,
            draw(scenario, lab.rng(seed, name), config, lab),
            seed,
            plans.get(name),
            lab.wants("attainment"),
        )
        for name, scenario in scenarios
        for seed in (lab.seeds[: config.other_lengths] if "/" in name else lab.seeds)
    ]
    for job, rows in zip(jobs, lab.map(evaluate, jobs, "goodputs"), strict=True):
        for metric, value, at in rows:
            observations.add(metric, value, seed=job.seed, **at)
    return observations


def check_simulator(config: Config, lab: Runtime, observations: Observations) -> None:
    """Serve for real in two processes, predict the same by simulation, and compare attainments, percentage points."""
    from papers.distserve import simulator_check as check  # brings torch, which the simulations do without

    loads = {seed: check.draw_load(lab.rng(seed, "real"), config.real_requests) for seed in lab.seeds}
    fits, runs = check.measure(loads, tuple(config.real_levels))
    for seed in lab.seeds:
        errors = []
        for one in (one for one in runs if one.seed == seed):
            really, simulated = check.compare(one, fits[one.system], config.perturb)
            observations.add("real_attainment", really, seed, system=one.system, level=one.level)
            observations.add("predicted_attainment", simulated, seed, system=one.system, level=one.level)
            observations.add("disturbed", one.disturbed, seed, system=one.system, level=one.level)
            errors.append(abs(really - simulated))
        observations.add("attainment_error", float(np.mean(errors)), seed)


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
    metrics = tuple(
        f"{kind}_{slug}"
        for kind in ("rate_gain", "same_engine_rate_gain", "slo_gain", "same_engine_slo_gain")
    )
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


LOWEST_PER_GPU = LOWEST_RATE / 4  # requests/s and GPU; 4 is the fewest GPUs that a scenario's systems share

Row = tuple[str, float, dict[str, Any]]


def evaluate(job: Job) -> list[Row]:
    """All metrics of a scenario on one seed's requests, as (metric, value, coordinates) rows."""
    config, scenario, goal, plan = job.config, job.scenario, objective(job), job.plan
    if plan and config.placement == "random":
        plan = random_plan(job, plan)
    systems = {"low": distserve_build(plan.low, job) if plan else undivided_build(job)}
    systems |= {
        name: (colocated_build(engine, scenario.baseline, scenario.gpus, scenario, config), gpus)
        for name, engine in (("vllm", "vllm"), ("same-engine", "distserve"))
        for gpus in [replicas_of(scenario.baseline, scenario.gpus) * scenario.baseline.gpus]
    }
    if plan and plan.vllm_plus:
        gpus = replicas_of(plan.vllm_plus, scenario.gpus) * plan.vllm_plus.gpus
        systems["vllm++"] = (colocated_build("vllm", plan.vllm_plus, scenario.gpus, scenario, config), gpus)
        systems["high"] = distserve_build(plan.high, job)

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
    rows: list[Row] = [
        ("goodput", value, {"scenario": name, "system": system}) for system, value in per_gpu.items()
    ]
    rows += [
        (f"rate_gain_{slug}", ratio(per_gpu, "low", "vllm"), {}),
        (f"same_engine_rate_gain_{slug}", ratio(per_gpu, "low", "same-engine"), {}),
        ("engine_rate_gain", ratio(per_gpu, "same-engine", "vllm"), {"scenario": name}),
    ]
    rows += slo_rows(job, systems, name, slug)
    if "high" in per_gpu:
        rows += [
            ("high_over_low", ratio(per_gpu, "high", "low"), {}),
            ("low_over_vllm_plus", ratio(per_gpu, "low", "vllm++"), {}),
            ("vllm_plus_over_vllm", ratio(per_gpu, "vllm++", "vllm"), {}),
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
    rows += [
        (f"slo_gain_{slug}", scale["vllm"] / scale["low"], {}),
        (f"same_engine_slo_gain_{slug}", scale["same-engine"] / scale["low"], {}),
    ]
    return rows


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
