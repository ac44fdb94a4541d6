"""Sixteen instances under load: latencies, preemption and fragmentation by policy (Section 6.3, Figures 11 and 12).

The authors' rates load their instances; this latency model is faster, so each trace is served at rates that are
searched for: those at which a stated share of the memory is held or asked for by queued requests under INFaaS++.
"""

from dataclasses import replace
from itertools import product

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.llumnix.config import Config
from papers.llumnix.lengths import draw_trace
from papers.llumnix.runs import AUTHORS_RATES, SAMPLE, Job, find_rates, ratio, requests_of, run_once, setup_of

THRESHOLDS = {"128-128": 3.0, "256-256": 10.0, "512-512": 3.0, "128-512": 10.0, "512-128": 3.0}
"""Freeness below which an instance gives requests away, in blocks a request: artifact/63_serving_performance/run.sh."""

GAINS = ("ttft_p99", "ttft_mean", "request_mean", "decode_p99")  # over INFaaS++, at each trace and level
METRICS = (*(f"{name}_gain" for name in GAINS), "preemption_gain", "fragmentation_gain", "time_migrating")


Summary = dict[str, float]  # of a run; seconds, gigabytes, shares of the KV blocks


def run_job(job: Job) -> Summary:
    """Serve and summarise."""
    outcome = job.serve()
    trace = outcome.trace
    latency = trace.finish - trace.arrival
    lost = [one for one in outcome.migrations if one.outcome != "committed"]
    span = job.setup.instances * float(trace.finish.max())
    return {
        "ttft_mean": float(trace.ttft.mean()),
        "ttft_p99": float(np.quantile(trace.ttft, 0.99)),
        "request_mean": float(latency.mean()),
        "decode_p99": float(np.quantile(trace.tpot[trace.output > 1], 0.99)),  # a token
        "preemption_loss": outcome.preemption_loss / len(trace.arrival),  # a request
        "demanded": outcome.mean_of("demanded"),
        "fragmented": outcome.mean_of("fragmented"),
        "queued": outcome.mean_of("queued"),
        "migrations": len(outcome.migrations) - len(lost),
        "aborts": len(lost),
        "no_room": sum(one.outcome == "no room" for one in lost),
        "queued_moves": outcome.queued_moves,
        "moved_gb": sum(one.bytes for one in outcome.migrations) / 1e9,
        "wasted_gb": sum(one.bytes for one in lost) / 1e9,  # of it, by migrations that aborted
        "migrating": outcome.migrating_seconds / span,  # share of the time at either end of a migration
    }


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """Each trace at each level under INFaaS++ and Llumnix, and under round-robin on the first seed's requests."""
    rates = find_rates(config, lab, [(trace, level) for trace in config.traces for level in config.levels])
    for (trace, level), (rate, _) in rates.items():
        seen.add("rate", rate, trace=trace, level=level)
        seen.add("rate_factor", rate / AUTHORS_RATES[trace], trace=trace, level=level)
    seen.add("levels_reached", float(np.mean([rate.reached for rate in rates.values()])))
    jobs = []
    for seed in lab.seeds:
        for (trace, level), (rate, _) in rates.items():
            n = requests_of(config, trace)
            workload = draw_trace(trace, lab.rng(seed, "serving", trace), n, homogeneous=config.homogeneous)
            for policy in ("infaas++", "llumnix", "round-robin"):
                if policy != "round-robin" or (seed == lab.seeds[0] and lab.wants("ttft_mean")):
                    setup = replace(setup_of(config, policy, seed, SAMPLE), lowest=THRESHOLDS[trace])
                    at = (trace, level, n, config.homogeneous)
                    jobs.append(Job(at, policy, seed, rate, setup, workload))
    found: dict[int, dict[str, dict[tuple[str, float], Summary]]] = {}
    for job, one in zip(jobs, run_once(lab, run_job, jobs, "serving"), strict=True):
        trace, level = str(job.at[0]), float(str(job.at[1]))
        found.setdefault(job.seed, {}).setdefault(job.policy, {})[trace, level] = one
        for name, value in one.items():
            seen.add(name, value, job.seed, trace=trace, level=level, policy=job.policy)
    for seed, by in found.items():
        theirs, ours = by["infaas++"], by["llumnix"]
        for (trace, level), name in product(ours, GAINS):
            gain = ratio(theirs[trace, level][name], ours[trace, level][name])
            seen.add(f"{name}_gain", gain, seed, trace=trace, level=level)
        seen.add("demand", mean("demanded", theirs), seed)
        seen.add("queue", mean("queued", theirs), seed)
        seen.add("time_migrating", mean("migrating", ours), seed)
        loss, scattered = (
            [mean(name, of) for of in (theirs, ours)] for name in ("preemption_loss", "fragmented")
        )
        seen.add("preemption_gain", ratio(loss[0], loss[1]), seed)
        seen.add("fragmentation_gain", ratio(scattered[0], scattered[1], 1e-4), seed)


def mean(name: str, runs: dict[tuple[str, float], Summary]) -> float:
    """Mean over traces and levels."""
    return float(np.mean([one[name] for one in runs.values()]))
