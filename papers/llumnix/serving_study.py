"""Sixteen instances under load: latencies, preemption and fragmentation by policy (Section 6.3, Figures 11 and 12).

The authors' rates load their instances; this latency model is faster, so each trace is served at rates that are
searched for: those at which a stated share of the memory is held or asked for by queued requests under INFaaS++.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.llumnix.cluster import Outcome
from papers.llumnix.config import Config
from papers.llumnix.lengths import draw_trace
from papers.llumnix.runs import AUTHORS_RATES, SAMPLE, Job, find_rates, ratio, requests_of, run_once, setup_of

THRESHOLDS = {"128-128": 3.0, "256-256": 10.0, "512-512": 3.0, "128-512": 10.0, "512-128": 3.0}
"""Freeness below which an instance gives requests away, in blocks a request: artifact/63_serving_performance/run.sh."""

GAINS = ("ttft_p99", "ttft_mean", "request_mean", "decode_p99")  # over INFaaS++, at each trace and level
METRICS = (*(f"{name}_gain" for name in GAINS), "preemption_gain", "fragmentation_gain", "time_migrating")


@dataclass(frozen=True)
class Summary:
    """What is kept of a run. Seconds; the preemption loss is a mean over all requests."""

    ttft_mean: float
    ttft_p99: float
    request_mean: float
    decode_p99: float  # per-token, of requests with more than one token
    preemption_loss: float
    demanded: float  # share of the KV blocks that is held, or asked for by queued requests
    fragmented: float  # share of the KV blocks
    queued: float  # requests
    migrations: int  # committed
    aborts: int
    no_room: int  # of the aborts: the target had no memory for the next stage
    queued_moves: int
    moved_gb: float  # of KV cache, aborted migrations included
    wasted_gb: float  # of it, copied by migrations that aborted
    migrating: float  # share of the time that an instance is at either end of a migration


def summarise(outcome: Outcome, instances: int) -> Summary:
    """The numbers of a run."""
    trace = outcome.trace
    latency = trace.finish - trace.arrival
    done = [one for one in outcome.migrations if one.outcome == "committed"]
    lost = [one for one in outcome.migrations if one.outcome != "committed"]
    return Summary(
        float(trace.ttft.mean()),
        float(np.quantile(trace.ttft, 0.99)),
        float(latency.mean()),
        float(np.quantile(trace.tpot[trace.output > 1], 0.99)),
        outcome.preemption_loss / len(trace.arrival),
        outcome.mean_of("demanded"),
        outcome.mean_of("fragmented"),
        outcome.mean_of("queued"),
        len(done),
        len(lost),
        sum(one.outcome == "no room" for one in lost),
        outcome.queued_moves,
        sum(one.bytes for one in outcome.migrations) / 1e9,
        sum(one.bytes for one in lost) / 1e9,
        outcome.migrating_seconds / instances / float(trace.finish.max()),
    )


def run_job(job: Job) -> Summary:
    """Serve and summarise."""
    return summarise(job.serve(), job.setup.instances)


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
                    jobs.append(Job((trace, level, n, config.homogeneous), seed, rate, setup, workload))
    found: dict[int, dict[str, dict[tuple[str, float], Summary]]] = {}
    for job, one in zip(jobs, run_once(lab, run_job, jobs, "serving"), strict=True):
        trace, level = str(job.at[0]), float(str(job.at[1]))
        found.setdefault(job.seed, {}).setdefault(job.setup.policy, {})[trace, level] = one
        for name, value in vars(one).items():
            seen.add(name, value, job.seed, trace=trace, level=level, policy=job.setup.policy)
    for seed, by in found.items():
        pairs = {place: (by["infaas++"][place], ours) for place, ours in by["llumnix"].items()}
        for name, value, at in claims_of(pairs):
            seen.add(name, value, seed, **at)


def claims_of(
    settings: dict[tuple[str, float], tuple[Summary, Summary]],
) -> Iterator[tuple[str, float, dict[str, str | float]]]:
    """Claims' numbers of one seed from (INFaaS++, Llumnix) at each trace and level; loads and losses over them all."""
    for (trace, level), (theirs, ours) in settings.items():
        for name in GAINS:
            gain = ratio(getattr(theirs, name), getattr(ours, name))
            yield f"{name}_gain", gain, {"trace": trace, "level": level}
    everything = list(settings.values())
    yield "demand", float(np.mean([theirs.demanded for theirs, _ in everything])), {}
    yield "queue", float(np.mean([theirs.queued for theirs, _ in everything])), {}
    lost = [float(np.mean([pair[i].preemption_loss for pair in everything])) for i in (0, 1)]
    yield "preemption_gain", ratio(lost[0], lost[1]), {}
    scattered = [float(np.mean([pair[i].fragmented for pair in everything])) for i in (0, 1)]
    yield "fragmentation_gain", ratio(scattered[0], scattered[1], 1e-4), {}
    yield "time_migrating", float(np.mean([ours.migrating for _, ours in everything])), {}
