"""Closed loops over numbers of clients, ours against vLLM's schedule on the same operators: Figures 2, 4 and 5.

A loop is simulated once for all that reads it: throughput over latency, requests served as agreed for every rate and
smoothing factor, the tail of the time between tokens.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from common.lab.runtime import Coordinate, Observations, Runtime
from common.serving.metrics import token_gaps
from common.serving.workload import Workload
from papers.fastgen.agreement import (
    ALPHAS,
    RATES,
    Agreement,
    effective_throughput,
    slowest_rates,
    successful,
    throughput,
)
from papers.fastgen.closed_loop import Load, default_policy, draw, pass_seconds, serve
from papers.fastgen.config import Config
from papers.fastgen.deployments import LLAMA_70B
from papers.fastgen.latency_curve import LatencyCurve, slowdown_for
from papers.fastgen.splitfuse import WHOLE

AGREED_OUTPUT, TAIL_OUTPUT = 60, 128  # generated tokens in Sections 4.B and 4.C, and in 4.D
JUDGED = (2.0, 4.0)  # tokens/s, the agreements that claims read
STRICT = 4.0  # tokens/s, the agreement of the headline (Section 4.C)
LONG = 2.0  # times the shortest: a gap that another request's prompt has lengthened
AT_SECONDS, AT_RATE = 9.0, 1.2  # where Section 4.B compares the curves: mean latency, and requests/s

AS_AGREED = ("effective_throughput_gain_2", "effective_throughput_gain_4", "failed_share")
AT_EQUAL = ("throughput_gain_at_latency", "latency_gain_at_rate")
GAPS = ("tail_ratio", "tail_ratio_90", "tail_over_median")


class Job(NamedTuple):
    """A closed loop to simulate: all that decides it, so that arms which agree in that share it."""

    seed: int
    load: Load
    system: str
    clients: int
    requests: int
    budget: int
    fill: str
    host_seconds: float
    start: str
    alphas: tuple[float, ...]


class Row(NamedTuple):
    """What a closed loop gave: requests/s, mean latency in seconds, by (rate, alpha) what was served as agreed."""

    throughput: float
    latency: float
    effective: dict[tuple[float, float], float]  # requests/s
    failed: dict[tuple[float, float], float]  # share of the requests
    median_gap: float  # seconds between tokens
    gap_90: float  # their 90th percentile
    tail_gap: float  # their 95th percentile
    long_gaps: float  # share of gaps of more than twice the shortest


def compare_closed_loops(config: Config, lab: Runtime, seen: Observations) -> None:
    """Simulate the closed loops that are asked for, and compare our system with vLLM's schedule."""
    jobs = list(dict.fromkeys(asked(config, lab)))
    known: dict[Job, Row] = lab.once("fastgen: closed loops", dict)
    missing = [job for job in jobs if job not in known]
    work = [(job, requests(lab, job), lab.rng(job.seed, "fill", str(job.clients))) for job in missing]
    known |= zip(missing, lab.map(closed_loop, work, "closed loops"), strict=True)
    for job in jobs:
        observe(config, job, known[job], seen)
    for seed in lab.seeds:
        compare(config, {job: known[job] for job in jobs if job.seed == seed}, seed, seen)
        for load in sorted({job.load for job in jobs}):
            drawn = draw(lab.rng(seed, "lengths", str(load)), config.requests, load)
            for name, tokens in (("prompt", drawn.prompt), ("output", drawn.output)):
                seen.add(f"mean_{name}_tokens", float(tokens.mean()), seed, load=str(load))


def requests(lab: Runtime, job: Job) -> Workload:
    """The requests of a seed, the same for every system."""
    return draw(lab.rng(job.seed, "lengths", str(job.load)), job.requests, job.load)


def loads(config: Config) -> tuple[Load, Load]:
    """The loads of Sections 4.B and 4.C, and of 4.D."""
    return Load(config.prompt_tokens, AGREED_OUTPUT), Load(config.prompt_tokens, TAIL_OUTPUT)


def asked(config: Config, lab: Runtime) -> Iterator[Job]:
    """The closed loops behind the metrics that are asked for."""

    def job(seed: int, load: Load, system: str, clients: int, budget: int = 0) -> Job:
        ours, rival = system == "fastgen", system == "vllm" and config.system != "vllm"
        return Job(
            seed,
            load,
            system,
            clients,
            config.requests,
            budget or (config.budget if config.split else WHOLE),
            config.fill if ours and not budget else "budget",
            config.rival_host_seconds if rival else LLAMA_70B.host_seconds,
            config.start,
            tuple(sorted({*ALPHAS, config.alpha})),
        )

    agreed, tail = loads(config)
    pair = dict.fromkeys((config.system, "vllm"))
    everything = lab.wants("effective_throughput")  # no claim reads it: a run for the notebook and the record
    for seed in lab.seeds:
        for clients in config.clients:
            if everything or lab.wants(*AS_AGREED, *AT_EQUAL):
                yield from (job(seed, agreed, system, clients) for system in pair)
            if everything:
                yield from (job(seed, agreed, system, clients) for system in config.ablations)
                yield from (job(seed, agreed, "fastgen", clients, other) for other in config.budgets)
        if everything or lab.wants(*GAPS):
            systems = [*pair, *(config.ablations if everything else ())]
            yield from (job(seed, tail, system, config.tail_clients) for system in systems)


def closed_loop(work: tuple[Job, Workload, np.random.Generator]) -> Row:
    """Simulate one closed loop of Llama-2-70B on four A100s."""
    job, workload, rng = work
    latency = replace(LLAMA_70B, host_seconds=job.host_seconds).latency()
    policy = default_policy(job.system, job.budget, job.fill, rng)
    # one by one, a client begins when a pass over a mean prompt of the client before it has passed
    apart = pass_seconds(latency, round(job.load.prompt)) if job.start == "one by one" else 0.0
    trace = serve(workload, job.clients, policy, [latency], LLAMA_70B.kv_tokens, apart=apart)
    gaps = token_gaps(trace)
    effective, failed = {}, {}
    for alpha in job.alphas:
        slowest = slowest_rates(trace, alpha)
        for rate in RATES:
            agreement = Agreement(rate, alpha=alpha)
            effective[rate, alpha] = effective_throughput(trace, agreement, slowest)
            failed[rate, alpha] = 1.0 - float(np.mean(successful(trace, agreement, slowest)))
    latency_seconds = float(np.mean(trace.finish - trace.arrival))
    median, ninety, tail = np.quantile(gaps, (0.5, 0.9, 0.95)).tolist()
    long = float(np.mean(gaps > LONG * gaps.min()))
    return Row(throughput(trace), latency_seconds, effective, failed, median, ninety, tail, long)


def observe(config: Config, job: Job, row: Row, seen: Observations) -> None:
    """A closed loop's own rows."""
    at: dict[str, Coordinate] = {"load": str(job.load), "system": job.system, "clients": job.clients}
    at["budget"] = job.budget
    for metric in ("throughput", "latency", "median_gap", "gap_90", "tail_gap", "long_gaps"):
        seen.add(metric, getattr(row, metric), job.seed, **at)
    for rate in RATES:
        seen.add("effective_throughput", row.effective[rate, config.alpha], job.seed, **at, rate=rate)
        seen.add("failed", row.failed[rate, config.alpha], job.seed, **at, rate=rate)


def compare(config: Config, rows: dict[Job, Row], seed: int, seen: Observations) -> None:
    """The ratios of a seed's closed loops, ours over vLLM's schedule; each side at its own best number of clients.

    Where the clients that were tried don't reach a latency or a rate on both sides, nothing is observed there.
    """
    agreed, tail_load = loads(config)

    def series(load: Load, system: str) -> list[Row]:
        budget = config.budget if config.split else WHOLE
        return [
            row for job, row in rows.items() if (job.load, job.system, job.budget) == (load, system, budget)
        ]

    ours, theirs = (series(agreed, system) for system in (config.system, "vllm"))
    if ours:
        for rate in RATES:
            for alpha in sorted({*ALPHAS, config.alpha}):
                best = [max(row.effective[rate, alpha] for row in side) for side in (ours, theirs)]
                if best[1] > 0:
                    seen.add("effective_gain_by_alpha", best[0] / best[1], seed, rate=rate, alpha=alpha)
                    if alpha == config.alpha:
                        seen.add(f"effective_throughput_gain_{rate:g}", best[0] / best[1], seed)
        inside = [peaks_inside(config, side, rate) for side in (ours, theirs) for rate in JUDGED]
        seen.add("peaks_inside", min(inside), seed)
        for name, side in (("failed_share", ours), ("failed_share_vllm", theirs)):
            at_peak = max(side, key=lambda row: row.effective[STRICT, config.alpha])
            seen.add(name, at_peak.failed[STRICT, config.alpha], seed)
        mine, other = curve_of(ours), curve_of(theirs)
        for name, value in (
            ("throughput_gain_at_latency", mine.throughput_at(AT_SECONDS) / other.throughput_at(AT_SECONDS)),
            ("latency_gain_at_rate", other.latency_at(AT_RATE) / mine.latency_at(AT_RATE)),
            ("slowdown_for_gain", slowdown_for(config.gain, mine, other, AT_SECONDS)),
        ):
            if np.isfinite(value):
                seen.add(name, value, seed)
    tails = [series(tail_load, system) for system in (config.system, "vllm")]
    if all(tails):
        (ours_row,), (theirs_row,) = tails
        tail = theirs_row.tail_gap / ours_row.tail_gap
        median = theirs_row.median_gap / ours_row.median_gap
        seen.add("tail_ratio", tail, seed)
        seen.add("tail_ratio_90", theirs_row.gap_90 / ours_row.gap_90, seed)
        seen.add("median_ratio", median, seed)
        seen.add("tail_over_median", tail / median, seed)


def peaks_inside(config: Config, rows: list[Row], rate: float) -> bool:
    """Whether more and fewer clients than where most is served as agreed were tried, or it is a single one."""
    peak = int(np.argmax([row.effective[rate, config.alpha] for row in rows]))
    return (peak > 0 or config.clients[0] == 1) and peak < len(rows) - 1


def curve_of(rows: list[Row]) -> LatencyCurve:
    """Latency and throughput of rows with a rising number of clients."""
    return LatencyCurve(np.array([row.latency for row in rows]), np.array([row.throughput for row in rows]))
