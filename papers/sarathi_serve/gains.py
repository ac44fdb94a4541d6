"""How many more requests a second Sarathi-Serve sustains than a rival, in each setting (Section 5.1, Figure 10)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.latency import LatencyModel
from common.serving.workload import Workload
from papers.sarathi_serve import ablation, pipeline
from papers.sarathi_serve.budget import TILE
from papers.sarathi_serve.capacity import LOWEST, Cell, Search, capacity
from papers.sarathi_serve.config import Config
from papers.sarathi_serve.deployments import CHUNKED, DEPLOYMENTS
from papers.sarathi_serve.hybrid import Apart
from papers.sarathi_serve.lengths import KINDS, REAL, draw

LARGEST = 8192  # tokens, of the budgets that a placebo draws from


@dataclass(frozen=True)
class Gain:
    """A metric: our capacity over a rival's in one setting."""

    metric: str
    deployment: str
    kind: str
    slo: str
    rival: str


def gains(config: Config) -> Iterator[Gain]:
    """The gains that a configuration can show: all settings of Yi-34B, and those of the others that a claim reads."""
    for name in config.models:
        every = name == "yi" or config.every_setting
        for kind in config.kinds:
            for slo in ("strict", "relaxed") if every else ("strict",):
                for rival in ("vllm", "orca") if every else ("vllm",):
                    yield Gain(f"gain_{name}_{slo}_over_{rival}_{kind}", name, kind, slo, rival)
        if name == "yi" and "chat" in config.kinds:  # the best plain alternative: chunks and decodes by turns
            yield Gain("gain_yi_strict_over_turns_chat", name, "chat", "strict", "chunked-only")
    if config.pipeline_requests:
        for kind, slo in (("chat", "strict"), ("arxiv", "strict"), ("chat", "relaxed")):
            yield Gain(f"gain_falcon_{slo}_over_vllm_{kind}", "falcon", kind, slo, "vllm")


# Metrics that are maxima over settings: each gain is observed under these names too.
BEST = {"mistral": "best_gain_mistral_strict", "falcon": "best_gain_falcon_strict"}


def names(gain: Gain) -> list[str]:
    """Every metric that a gain is part of."""
    found = [gain.metric]
    if gain.slo == "strict" and gain.rival == "vllm" and gain.deployment in BEST:
        found.append(BEST[gain.deployment])
    return found


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """The capacity of every system in every wanted setting, the ratios of them, and where they were found."""
    at_hand = {kind for kind in config.kinds if kind not in REAL or lab.data(REAL[kind])} | {*KINDS}
    wanted = [gain for gain in gains(config) if lab.wants(*names(gain)) and gain.kind in at_hand]
    cells = {
        (Cell(gain.deployment, gain.kind, gain.slo, system), seed)
        for seed in lab.seeds
        for gain in wanted
        for system in (config.system, gain.rival)
    }
    found = capacities(config, lab, sorted(cells, key=repr))
    for (cell, seed), rate in found.items():
        at = {"model": cell.deployment, "lengths": cell.kind, "slo": cell.slo, "system": cell.system}
        seen.add("capacity", rate, seed, **at)
    for seed in lab.seeds:
        for gain in wanted:
            ours, theirs = (
                found[Cell(gain.deployment, gain.kind, gain.slo, system), seed]
                for system in (config.system, gain.rival)
            )
            floor = {"capped": True} if min(ours, theirs) < LOWEST else {}
            ratio = max(ours, LOWEST) / max(theirs, LOWEST)
            seen.add(gain.metric, ratio, seed, **floor)
            if gain.slo == "strict" and gain.rival == "vllm" and gain.deployment in BEST:
                seen.add(BEST[gain.deployment], ratio, seed, lengths=gain.kind, **floor)
    operating_point(config, lab, seen)


def operating_point(config: Config, lab: Runtime, seen: Observations) -> None:
    """What the capacities rest on: objectives, budgets, lengths, and how many requests each trial has."""
    used = [*config.models, *(["falcon"] if config.pipeline_requests else [])]
    for name in used:
        one = DEPLOYMENTS[name]
        seen.add(f"trial_requests_{name}", trial_requests(config, name))
        for slo in ("strict", "relaxed"):
            seen.add("tbt_objective", config.objective or one.objective(slo), model=name, slo=slo)
            for seed in lab.seeds:
                seen.add("budget", budget_of(config, lab, name, slo, seed), seed, model=name, slo=slo)
    for kind in KINDS:
        for seed in lab.seeds:
            requests = load(lab, kind, seed, config.requests)
            seen.add("median_prompt", float(np.median(requests.prompt)), seed, lengths=kind)
            seen.add("median_output", float(np.median(requests.output)), seed, lengths=kind)


def trial_requests(config: Config, name: str) -> int:
    """Requests of each trial of a rate."""
    return config.pipeline_requests if DEPLOYMENTS[name].stages > 1 else config.requests


def budget_of(config: Config, lab: Runtime, name: str, slo: str, seed: int) -> int:
    """Tokens: the paper's choice for the objective (or the strict one), or one of the same grid drawn for the seed."""
    if config.budget == "paper":
        return DEPLOYMENTS[name].budget(slo)
    if config.budget == "strict":
        return DEPLOYMENTS[name].budget("strict")
    return TILE * int(lab.rng(seed, "budget", name, slo).integers(1, LARGEST // TILE + 1))


def capacities(config: Config, lab: Runtime, cells: list[tuple[Cell, int]]) -> dict[tuple[Cell, int], float]:
    """Requests/s of each cell and seed; each search once for all arms that share what decides it."""
    known: dict[tuple[object, ...], float] = lab.once("sarathi_serve: capacities", dict)
    searches, keys = {}, {}
    for cell, seed in cells:
        one = prepared(config, lab, cell, seed)
        switches = (config.host_seconds, config.equal_work, config.fused)
        budget = one.budget if cell.system in CHUNKED else 0
        keys[cell, seed] = (cell, seed, len(one.workload), one.objective, budget, *switches)
        if keys[cell, seed] not in known:
            searches[keys[cell, seed]] = one
    found = lab.map(capacity, list(searches.values()), "capacities")
    known.update(zip(searches, found, strict=True))
    return {at: known[key] for at, key in keys.items()}


def prepared(config: Config, lab: Runtime, cell: Cell, seed: int) -> Search:
    """The search of a cell on the requests of a seed, which all its rivals see too."""
    deployment = DEPLOYMENTS[cell.deployment]
    requests = load(lab, cell.kind, seed, trial_requests(config, cell.deployment))
    objective = config.objective or deployment.objective(cell.slo)
    # a budget drawn at random is the method's; a rival in chunks keeps the paper's
    chosen = config if cell.system == config.system else replace(config, budget="paper")
    budget = budget_of(chosen, lab, cell.deployment, cell.slo, seed)
    return Search(cell, seed, requests, objective, budget, times(config, cell.deployment))


def times(config: Config, name: str) -> LatencyModel:
    """A deployment's latencies as the configuration has them."""
    latency: LatencyModel = DEPLOYMENTS[name].latency(config.host_seconds)
    if not config.fused:
        latency = Apart(latency)
    return pipeline.EqualWork(latency) if config.equal_work else latency


def load(lab: Runtime, kind: str, seed: int, n: int) -> Workload:
    """The requests of a kind for a seed, one a second; real lengths for "arxiv-real", where they can be had."""
    path = lab.data(REAL[kind]) if kind in REAL else None
    return draw(kind, lab.rng(seed, kind), n, path)


def observe_loads(config: Config, lab: Runtime, seen: Observations) -> None:
    """P99 TBT of Yi-34B against the rate of chat requests, by policy and token budget."""
    systems = (("sarathi", 512), ("sarathi", 2048), ("vllm", 512), ("orca", 512))
    jobs = [(system, budget, rate) for system, budget in systems for rate in config.load_rates]
    for seed in lab.seeds:
        curve = partial(p99_tbt, load(lab, "chat", seed, config.requests), times(config, "yi"))
        for (system, budget, rate), (tbt, delay) in zip(jobs, lab.map(curve, jobs, "loads"), strict=True):
            seen.add("p99_tbt", tbt, seed, system=system, budget=budget, rate=rate)
            seen.add("median_delay", delay, seed, system=system, budget=budget, rate=rate)


def p99_tbt(at_one: Workload, latency: LatencyModel, job: tuple[str, int, float]) -> tuple[float, float]:
    """P99 TBT and median scheduling delay, seconds, of a (system, budget, rate)."""
    system, budget, rate = job
    found = ablation.latencies(at_one.scaled(rate), "chat", system, budget, latency)
    return found.tbt, found.delay
