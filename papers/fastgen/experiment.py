"""What the claims of FastGen read: closed loops and replicas in simulation, a real forward pass and a real engine."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from common.lab.runtime import Coordinate, Observations, Runtime
from common.serving.latency import LatencyModel
from common.serving.metrics import token_gaps
from common.serving.workload import Workload
from papers.fastgen.agreement import (
    ALPHA,
    ALPHAS,
    RATES,
    Agreement,
    effective_throughput,
    slowest_rates,
    successful,
    throughput,
)
from papers.fastgen.closed_loop import (
    Load,
    Slower,
    WithoutKnee,
    default_policy,
    draw,
    pass_seconds,
    serve,
)
from papers.fastgen.config import Config
from papers.fastgen.deployments import DEPLOYMENTS, LLAMA_70B, Deployment
from papers.fastgen.latency_curve import LatencyCurve, slowdown_for
from papers.fastgen.splitfuse import WHOLE

AGREED, TAIL, LATENCY = Load(2600, 60), Load(2600, 128), Load(1200, 128)  # Sections 4.C, 4.D and 4.B
STRICT = 4.0  # tokens/s, the agreement of the headline (Section 4.C)
TAIL_CLIENTS = 16  # Section 4.D
AT_SECONDS, AT_RATE = 9.0, 1.2  # where Section 4.B compares the curves: mean latency, and requests/s
SLOW = 3.0  # the slow replica of the control takes three times as long: any factor that is plainly slow
IRREGULAR = 0.5  # share of a pass's tokens that the unequal split moves to its neighbour
SPLIT_TOKENS, SPLIT_PASSES = 2048, 4
CURVE = (
    1,
    16,
    32,
    64,
    128,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
)  # tokens of a pass, on the A100s
MEASURED_CURVE = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256)  # tokens of a pass, on this CPU


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    compare_closed_loops(config, lab, seen)
    if lab.wants("throughput_gain_everywhere", "tail_ratio_everywhere"):
        everywhere = partial(compare_deployments, config)
        for rows in lab.map(everywhere, seeded(lab, "deployments"), "models and GPUs"):
            seen.extend(rows)
    if lab.wants("scaling"):
        for rows in lab.map(partial(scale, config), seeded(lab, "replicas"), "replicas"):
            seen.extend(rows)
    analyse_profile(config, lab, seen)
    if config.pass_tokens and lab.wants(*REAL):
        from papers.fastgen import real_runs  # brings torch, which the simulations do without

        sizes = real_runs.Sizes(
            config.system,
            config.split,
            config.live_requests,
            config.pass_tokens,
            config.turns,
            config.wrong,
            config.measured,
            IRREGULAR,
            MEASURED_CURVE,
        )
        real_runs.run(sizes, lab, seen)
    return seen


REAL = ("composition_variation", "concavity_cpu", "equal_split_gain_cpu", "live_tail_ratio")


def seeded(lab: Runtime, stream: str) -> list[tuple[int, np.random.Generator]]:
    """Each seed with its generator."""
    return [(seed, lab.rng(seed, stream)) for seed in lab.seeds]


def budget_of(config: Config) -> int:
    """Tokens of a pass."""
    return config.budget if config.split else WHOLE


# Closed loops -------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A closed loop to simulate."""

    seed: int
    load: Load
    system: str
    clients: int
    budget: int


LOOPS = (
    "effective_throughput_gain_2", "effective_throughput_gain_4", "effective_throughput_gain_6", "failed_share",
    "tail_ratio", "tail_over_median", "throughput_gain_at_latency", "throughput_gain_at_latency_1200_128",
    "latency_gain_at_rate",
)  # fmt: skip


def compare_closed_loops(config: Config, lab: Runtime, seen: Observations) -> None:
    """Simulate the closed loops that are asked for, and compare our system with vLLM's schedule."""
    if not lab.wants(*LOOPS):
        return
    jobs = list(dict.fromkeys(asked(config, lab)))
    workloads = {
        (seed, load): draw(lab.rng(seed, "lengths", str(load)), config.requests, load)
        for seed in lab.seeds
        for load in (AGREED, TAIL, LATENCY)
    }
    work = [(job, workloads[job.seed, job.load]) for job in jobs]
    found = dict(zip(jobs, lab.map(closed_loop, work, "closed loops"), strict=True))
    for job, row in found.items():
        at: dict[str, Coordinate] = {"load": str(job.load), "system": job.system}
        at |= {"clients": job.clients, "budget": job.budget}
        for metric, value, more in row.rows():
            seen.add(metric, value, job.seed, **(at | more))
    for seed in lab.seeds:
        compare(config, lab, {job: row for job, row in found.items() if job.seed == seed}, seed, seen)


def asked(config: Config, lab: Runtime) -> Iterator[Job]:
    """The closed loops behind the metrics that are asked for."""
    budget = budget_of(config)
    pair = dict.fromkeys((config.system, "vllm"))
    everything = lab.wants(
        "effective_throughput"
    )  # which no claim reads: a run for the notebook and the record
    agreed = everything or lab.wants(*LOOPS[:4], "throughput_gain_at_latency", "latency_gain_at_rate")
    for seed in lab.seeds:
        for clients in config.clients:
            if agreed:
                yield from (Job(seed, AGREED, system, clients, budget) for system in pair)
            if lab.wants("throughput_gain_at_latency_1200_128"):
                yield from (Job(seed, LATENCY, system, clients, budget) for system in pair)
            if everything:
                yield from (Job(seed, AGREED, system, clients, budget) for system in config.ablations)
                yield from (Job(seed, AGREED, "fastgen", clients, other) for other in config.budgets)
        if lab.wants("tail_ratio", "tail_over_median"):
            systems = [*pair, *(config.ablations if everything else ())]
            yield from (Job(seed, TAIL, system, TAIL_CLIENTS, budget) for system in systems)


class Row(NamedTuple):
    """What a closed loop gave: requests/s, mean latency in seconds, served as agreed by (rate, alpha), token gaps."""

    throughput: float
    latency: float
    effective: dict[tuple[float, float], float]
    failed: dict[float, float]
    median_gap: float
    tail_gap: float

    def rows(self) -> Iterator[tuple[str, float, dict[str, float]]]:
        """Metric, value and further coordinates."""
        yield "throughput", self.throughput, {}
        yield "latency", self.latency, {}
        yield "median_gap", self.median_gap, {}
        yield "tail_gap", self.tail_gap, {}
        for (rate, alpha), value in self.effective.items():
            yield "effective_throughput", value, {"rate": rate, "alpha": alpha}
        for rate, value in self.failed.items():
            yield "failed", value, {"rate": rate}


def closed_loop(work: tuple[Job, Workload]) -> Row:
    """Simulate one closed loop of Llama-2-70B on four A100s."""
    job, workload = work
    trace = serve(
        workload,
        job.clients,
        default_policy(job.system, job.budget),
        [LLAMA_70B.latency()],
        LLAMA_70B.kv_tokens,
    )
    gaps = token_gaps(trace)
    slowest = {alpha: slowest_rates(trace, alpha) for alpha in ALPHAS}
    pairs = [(rate, ALPHA) for rate in RATES] + [(STRICT, alpha) for alpha in ALPHAS if alpha != ALPHA]
    return Row(
        throughput(trace),
        float(np.mean(trace.finish - trace.arrival)),
        {(r, a): effective_throughput(trace, Agreement(r, alpha=a), slowest[a]) for r, a in pairs},
        {rate: 1.0 - float(np.mean(successful(trace, Agreement(rate), slowest[ALPHA]))) for rate in RATES},
        float(np.quantile(gaps, 0.5)),
        float(np.quantile(gaps, 0.95)),
    )


def compare(config: Config, lab: Runtime, rows: dict[Job, Row], seed: int, seen: Observations) -> None:
    """The ratios of a seed's closed loops, ours over vLLM's schedule."""
    budget = budget_of(config)

    def series(load: Load, system: str) -> list[Row]:
        jobs = (Job(seed, load, system, clients, budget) for clients in config.clients)
        return [rows[job] for job in jobs if job in rows]

    ours, theirs = (series(AGREED, system) for system in (config.system, "vllm"))
    if ours:
        for rate, alpha in ours[0].effective:
            best = [max(row.effective[rate, alpha] for row in side) for side in (ours, theirs)]
            if best[1]:
                seen.add(
                    "effective_throughput_gain_by_alpha", best[0] / best[1], seed, rate=rate, alpha=alpha
                )
                if alpha == ALPHA:
                    seen.add(f"effective_throughput_gain_{rate:g}", best[0] / best[1], seed)
        for name, side in (("failed_share", ours), ("failed_share_vllm", theirs)):
            at_peak = max(side, key=lambda row: row.effective[STRICT, ALPHA])
            seen.add(name, at_peak.failed[STRICT], seed)
        mine, other = curve_of(ours), curve_of(theirs)
        seen.add(
            "throughput_gain_at_latency",
            mine.throughput_at(AT_SECONDS) / other.throughput_at(AT_SECONDS),
            seed,
        )
        seen.add("latency_gain_at_rate", other.latency_at(AT_RATE) / mine.latency_at(AT_RATE), seed)
        seen.add("slowdown_for_gain", slowdown_for(config.gain, mine, other, AT_SECONDS), seed)
    ours, theirs = (series(LATENCY, system) for system in (config.system, "vllm"))
    if ours:
        mine, other = curve_of(ours), curve_of(theirs)
        gain = mine.throughput_at(AT_SECONDS) / other.throughput_at(AT_SECONDS)
        seen.add("throughput_gain_at_latency_1200_128", gain, seed)
    pair = [rows.get(Job(seed, TAIL, system, TAIL_CLIENTS, budget)) for system in (config.system, "vllm")]
    if pair[0] and pair[1]:
        tail = pair[1].tail_gap / pair[0].tail_gap
        median = pair[1].median_gap / pair[0].median_gap
        seen.add("tail_ratio", tail, seed)
        seen.add("median_ratio", median, seed)
        seen.add("tail_over_median", tail / median, seed)


def curve_of(rows: list[Row]) -> LatencyCurve:
    """Latency and throughput of rows with a rising number of clients."""
    return LatencyCurve(np.array([row.latency for row in rows]), np.array([row.throughput for row in rows]))


# Other models, other GPUs, more replicas ----------------------------------------------------------------------------


def compare_deployments(config: Config, job: tuple[int, np.random.Generator]) -> Observations:
    """Throughput and token tail under 16 clients for each model and GPU, ours over vLLM's schedule."""
    seed, rng = job
    seen = Observations()
    workload = draw(rng, config.requests // 2, AGREED)
    gains, tails = [], []
    for deployment in DEPLOYMENTS[: config.models]:
        latency = device(config, deployment)
        found = []
        for system in (config.system, "vllm"):
            policy = default_policy(system, budget_of(config))
            trace = serve(workload, TAIL_CLIENTS, policy, [latency], deployment.kv_tokens)
            found.append((throughput(trace), float(np.quantile(token_gaps(trace), 0.95))))
        gains.append(
            round(found[0][0] / found[1][0], 9)
        )  # equal work must give exactly 1, rounding errors or not
        tails.append(found[1][1] / found[0][1])
        seen.add("throughput_gain_by_model", gains[-1], seed, deployment=str(deployment))
        seen.add("tail_ratio_by_model", tails[-1], seed, deployment=str(deployment))
    seen.add("throughput_gain_everywhere", min(gains), seed)
    seen.add("tail_ratio_everywhere", min(tails), seed)
    return seen


def device(config: Config, deployment: Deployment) -> LatencyModel:
    """A deployment's passes, or those of a device without a knee that is as fast at the highest throughput."""
    latency = deployment.latency()
    return latency if config.knee else WithoutKnee(pass_seconds(latency, CURVE[-1]) / CURVE[-1])


def scale(config: Config, job: tuple[int, np.random.Generator]) -> Observations:
    """Throughput of a growing number of replicas, 16 clients each, round robin; also sent where the fewest are."""
    seed, rng = job
    seen = Observations()
    latency = LLAMA_70B.latency()
    policy = default_policy(config.system, budget_of(config))
    whole = draw(rng, max(config.replicas) * config.replica_requests, AGREED)
    single: dict[bool, float] = {}
    for replicas in config.replicas:
        fleet: list[LatencyModel] = [latency] * replicas
        if config.slow_replica and replicas > 1:
            fleet[-1] = Slower(latency, SLOW)
        first = whole.first(replicas * config.replica_requests)
        for least_loaded in (False, True):
            trace = serve(first, replicas * TAIL_CLIENTS, policy, fleet, LLAMA_70B.kv_tokens, least_loaded)
            rate = throughput(trace)
            single.setdefault(least_loaded, rate)
            name = "least loaded" if least_loaded else "round robin"
            seen.add("replica_throughput", rate, seed, replicas=replicas, balancer=name)
            if replicas == max(config.replicas):
                seen.add(
                    "scaling_least_loaded" if least_loaded else "scaling", rate / single[least_loaded], seed
                )
    return seen


# The token curve of the measured profile ----------------------------------------------------------------------------


def analyse_profile(config: Config, lab: Runtime, seen: Observations) -> None:
    """Throughput over the tokens of a pass on the profiled A100s: deterministic, without a seed."""
    if not lab.wants("concavity_a100", "equal_split_gain_a100"):
        return
    from papers.fastgen.token_curve import concavity, knee, makespan, split  # brings torch

    latency = LLAMA_70B.latency()
    seconds = np.array([pass_seconds(latency, tokens) for tokens in CURVE])
    for tokens, taken in zip(CURVE, seconds, strict=True):
        seen.add("pass_seconds", taken, tokens=tokens)
    if not config.measured:
        seconds = 1.0 / np.array(CURVE)
    seen.add("knee_a100", knee(CURVE, seconds))
    seen.add("concavity_a100", concavity(CURVE, seconds))
    ours = makespan(partial(pass_seconds, latency), split(SPLIT_TOKENS, SPLIT_PASSES, config.wrong))
    unequal = makespan(partial(pass_seconds, latency), split(SPLIT_TOKENS, SPLIT_PASSES, IRREGULAR))
    seen.add("equal_split_gain_a100", unequal / ours)
    for tokens in CURVE[2:-1]:
        larger, smaller = (pass_seconds(latency, size) for size in split(2 * tokens, 2, IRREGULAR))
        gain = (larger + smaller) / (2 * pass_seconds(latency, tokens))
        seen.add("equal_split_gain_by_pass", gain, tokens=tokens)
