"""What the claims of DistServe read: goodput, SLO scales, transfers and placements, simulated on A100 coefficients.

Every scenario is planned once, on requests that no seed evaluates, and then evaluated seed by seed on fresh
requests. All systems see the same requests, may use the same number of GPUs, and are divided by the GPUs they do use:

    vllm          colocated, vLLM's coefficients, the paper's parallelism
    vllm++        colocated, vLLM's coefficients, the best parallelism found by search
    same-engine   colocated, DistServe's coefficients: what is left of the gain when the engine is the same
    low, high     DistServe placed by Algorithm 2 (stages of both phases share a node) and by Algorithm 1
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.models import model
from common.serving.workload import QUANTILES, SYNTHETIC, Workload, draw_lengths, poisson
from papers.distserve.evaluation import LOWEST_PER_GPU, PLANNING, Job, Plan, evaluate, low_goodput, plan
from papers.distserve.placement import shifted
from papers.distserve.scenarios import OTHER_LENGTHS, SCENARIOS, Scenario, with_lengths

# The registry's data sets behind the traces.
TRACES = {
    "sharegpt": "nanoflow-sharegpt-lengths",
    "azure-conversation": "azure-2023-conversation",
    "arxiv-summarisation": "arxiv-summarisation-lengths",
}


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; `profile` files change the sizes."""

    scenarios: list[str] = field(default_factory=lambda: list(SCENARIOS)[:4])  # names in scenarios.py
    requests: int = 600  # fewest of each run
    seconds: float = 120.0  # of arrivals in each run, where that takes more requests
    most_requests: int = 20_000  # of each run, whatever the rate
    target: float = 0.9  # share of requests that must meet both objectives
    resolution: float = 0.02  # relative, of every goodput
    # degrees of tensor parallelism to search
    tensor: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 8])
    stages: list[int] = field(default_factory=lambda: [1, 2, 4])  # pipeline stages to search
    other_lengths: int = 3  # seeds on which the goodputs are repeated with other lengths
    disaggregate: bool = True  # False: the same GPUs serve both phases together, nothing is placed
    engine: str = "distserve"  # whose coefficients DistServe's instances run on
    link: str = "nvlink"  # between the phases: nvlink or cross_node_25gbps
    placement: str = "search"  # or random: any feasible placement with as many GPUs
    real_requests: int = 40  # of each run of the two real processes; 0 leaves them out
    # rates of the real runs, over each system's capacity
    real_levels: list[float] = field(default_factory=lambda: [0.8])
    replan: bool = False  # shift OPT-13B chat to long prompts, and compare the stale placement with a new one
    interference: list[int] = field(
        default_factory=list
    )  # prompt tokens to time beside a decode batch, on a GPU
    perturb: float = 1.0  # factor on the fitted prefill slope with which the simulator predicts the real runs


def run(config: Config, lab: Runtime) -> Observations:
    """Plan every scenario, evaluate every seed, and collect what the claims and figures read."""
    observations = Observations()
    if config.real_requests and lab.wants("attainment_error"):
        check_simulator(config, lab, observations)
    if config.interference and lab.wants("decode_slowdown"):
        time_interference(config, lab, observations)
    if config.replan and lab.wants("replanning_gain"):
        try_replanning(config, lab, observations)
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
            systems_asked(name, lab),
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

    loads = {check.CALIBRATION: check.draw_load(lab.rng(0, "calibration"), config.real_requests)}
    loads |= {seed: check.draw_load(lab.rng(seed, "real"), config.real_requests) for seed in lab.seeds}
    runs = check.measure(loads, tuple(config.real_levels))
    for seed in lab.seeds:
        errors = []
        for one in (one for one in runs if one.seed == seed):
            at: dict[str, str | float] = {"system": one.system, "level": one.level}
            observations.add("disturbed", one.disturbed, seed, **at)
            compared = check.compare(one, check.fit_without(runs, one), config.perturb)
            for share, (really, simulated) in zip(check.PREDICTED, compared, strict=True):
                observations.add("real_attainment", really, seed, target=share, **at)
                observations.add("predicted_attainment", simulated, seed, target=share, **at)
                errors.append(abs(really - simulated))
        observations.add("attainment_error", float(np.mean(errors)), seed)


def time_interference(config: Config, lab: Runtime, observations: Observations) -> None:
    """Time 32 decodes at 1,024 tokens on this device, alone and with each prompt; the first prompt is the claim's."""
    from papers.distserve.interference import Layers, slowdown  # brings torch

    for seed in lab.seeds:
        layers = Layers(model("llama-2-7b"), 4, lab.torch_generator(seed, "interference"))
        for place, prompt in enumerate(config.interference):
            slower = slowdown(layers, 32, 1024, prompt)
            observations.add("decode_slowdown_by_prompt", slower, seed, prompt=prompt)
            if place == 0:
                observations.add("decode_slowdown", slower, seed)


def try_replanning(config: Config, lab: Runtime, observations: Observations) -> None:
    """Goodput under a shifted workload of a placement planned on its history, over one planned before the shift."""
    before = SCENARIOS["chat-opt-13b"]
    after = with_lengths(before, "sharegpt-joined")
    history = [
        Job(
            config, "replanning", one, draw(one, lab.rng(0, "replanning", one.lengths), config, lab), PLANNING
        )
        for one in (before, after)
    ]
    observations.add("shift_noticed", float(shifted(history[0].workload, history[1].workload)))
    stale, fresh = lab.map(plan, history, "replanning")
    jobs = [
        Job(config, "replanning", after, draw(after, lab.rng(seed, "replanning"), config, lab), seed, one)
        for seed in lab.seeds
        for one in (stale, fresh)
    ]
    goodputs = lab.map(low_goodput, jobs, "replanning")
    for index, seed in enumerate(lab.seeds):
        old, new = goodputs[2 * index : 2 * index + 2]
        observations.add("replanning_goodput", old, seed, placement="stale")
        observations.add("replanning_goodput", new, seed, placement="fresh")
        observations.add("replanning_gain", max(new, LOWEST_PER_GPU) / max(old, LOWEST_PER_GPU), seed)


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


def systems_asked(name: str, lab: Runtime) -> tuple[str, ...]:
    """The systems behind the metrics that are asked for: a control's run needs one rival only."""
    slug = name.partition("/")[0].replace("-", "_")
    asked = {
        "vllm": lab.wants(f"rate_gain_{slug}", f"slo_gain_{slug}"),
        "same-engine": lab.wants(f"same_engine_rate_gain_{slug}", f"same_engine_slo_gain_{slug}"),
    }
    return ("low", *(system for system, wanted in asked.items() if wanted))


def draw(scenario: Scenario, rng: np.random.Generator, config: Config, lab: Runtime) -> Workload:
    """Poisson arrivals at one request a second, with lengths from the real trace where it can be had."""
    path: Path | None = None
    if scenario.lengths not in SYNTHETIC:
        path = lab.data(TRACES[scenario.lengths.removesuffix("-joined")])
        if path is None:
            lab.used("embedded length quantiles", hashlib.sha256(QUANTILES.read_bytes()).hexdigest())
    n = max(config.requests, config.most_requests)
    lengths = draw_lengths(scenario.lengths, rng, n, path)
    return Workload(poisson(rng, n), lengths.prompt, lengths.output)
