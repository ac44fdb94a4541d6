"""Sixteen instances under load: latencies, preemption and fragmentation by policy (Section 6.3, Figures 11 and 12).

The authors' rates load their instances; this latency model is faster, so each trace is served at rates that are
searched for: those at which a stated share of the memory is held or asked for by queued requests under INFaaS++. Memory
held alone does not find the knee: scattered free blocks keep it below 0.9 however long the queues get.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.serving.workload import Workload
from papers.llumnix.cluster import Outcome, Setup, serve

THRESHOLDS = {"128-128": 3.0, "256-256": 10.0, "512-512": 3.0, "128-512": 10.0, "512-128": 3.0}
"""Freeness below which an instance gives requests away, in blocks a request: artifact/63_serving_performance/run.sh."""

# Middle of the seven rates that the artifact serves each trace at, requests/s (63_serving_performance/run.sh).
AUTHORS_RATES = {"128-128": 35.0, "256-256": 7.7, "512-512": 2.9, "128-512": 4.25, "512-128": 16.0}


@dataclass(frozen=True)
class Job:
    """One run: a trace at a rate under a policy, on the requests of a seed."""

    trace: str
    level: float  # share of memory held or asked for under INFaaS++ at this rate
    rate: float  # requests/s
    setup: Setup
    workload: Workload  # at one request a second
    seed: int


@dataclass(frozen=True)
class Summary:
    """What is kept of a run. Seconds; the preemption loss is a mean over all requests."""

    ttft_mean: float
    ttft_p99: float
    request_mean: float
    request_p99: float
    decode_p99: float  # per-token, of requests with more than one token
    preemption_loss: float
    preemptions: int
    used: float  # share of the KV blocks
    fragmented: float  # share of the KV blocks
    queued: float  # requests
    migrations: int
    aborts: int
    queued_moves: int
    migrating: float  # share of the time that an instance is at either end of a migration
    downtime: float  # mean of the migrations


def summarise(outcome: Outcome, instances: int) -> Summary:
    """The numbers of a run."""
    trace = outcome.trace
    latency = trace.finish - trace.arrival
    committed = [one for one in outcome.migrations if one.outcome == "committed"]
    return Summary(
        float(trace.ttft.mean()),
        float(np.quantile(trace.ttft, 0.99)),
        float(latency.mean()),
        float(np.quantile(latency, 0.99)),
        float(np.quantile(trace.tpot[trace.output > 1], 0.99)),
        outcome.preemption_loss / len(trace.arrival),
        outcome.preemptions,
        outcome.mean_of("used"),
        outcome.mean_of("fragmented"),
        outcome.mean_of("queued"),
        len(committed),
        len(outcome.migrations) - len(committed),
        outcome.queued_moves,
        outcome.migrating_seconds / instances / float(trace.finish.max()),
        float(np.mean([one.downtime for one in committed])) if committed else 0.0,
    )


def run_job(job: Job) -> Summary:
    """Serve and summarise."""
    return summarise(serve(job.workload.scaled(job.rate), job.setup), job.setup.instances)


@dataclass(frozen=True)
class Search:
    """Find the rate at which `level` of the memory is held or asked for on this workload under `setup`."""

    trace: str
    level: float
    workload: Workload
    setup: Setup
    start: float  # requests/s
    steps: int = 4


def rate_at(search: Search) -> float:
    """Requests/s at which the mean memory demand is `level`: a bracket from `start` by halving or doubling, bisected.

    A workload too short to fill the cluster ends the search at eight times `start`.
    """

    def demanded(rate: float) -> float:
        return serve(search.workload.scaled(rate), search.setup).mean_of("demanded")

    low = high = search.start
    if demanded(low) < search.level:
        while high < 8 * search.start and demanded(high := 2 * low) < search.level:
            low = high
    else:
        while high > search.start / 8 and demanded(low := high / 2) >= search.level:
            high = low
    for _ in range(search.steps):
        middle = (low * high) ** 0.5
        if demanded(middle) < search.level:
            low = middle
        else:
            high = middle
    return low


Row = tuple[str, float, dict[str, str | float]]


def rows_of(job: Job, summary: Summary) -> Iterator[Row]:
    """Observations of one run, for figures."""
    at: dict[str, str | float] = {"trace": job.trace, "level": job.level, "policy": job.setup.policy}
    for name, value in vars(summary).items():
        yield name, float(value), at


def gain(theirs: float, ours: float, floor: float = 1e-3) -> float:
    """How many times smaller ours is; values below `floor` count as it."""
    return max(theirs, floor) / max(ours, floor)


def claims_of(
    settings: dict[tuple[str, float], tuple[Summary, Summary]],
) -> Iterator[Row]:
    """Claims' numbers of one seed from (INFaaS++, Llumnix) at each trace and level."""
    for (trace, level), (theirs, ours) in settings.items():
        at: dict[str, str | float] = {"trace": trace, "level": level}
        yield "ttft_p99_gain", gain(theirs.ttft_p99, ours.ttft_p99), at
        yield "ttft_mean_gain", gain(theirs.ttft_mean, ours.ttft_mean), at
        yield "request_mean_gain", gain(theirs.request_mean, ours.request_mean), at
        yield "request_p99_gain", gain(theirs.request_p99, ours.request_p99), at
        yield "decode_p99_gain", gain(theirs.decode_p99, ours.decode_p99), at
    logs = [np.log(gain(theirs.ttft_p99, ours.ttft_p99)) for theirs, ours in settings.values()]
    yield "ttft_p99_gain_typical", float(np.exp(np.mean(logs))), {}
    pairs = [(theirs, ours) for theirs, ours in settings.values() if theirs.preemption_loss > 0]
    if pairs:
        cuts = [1 - ours.preemption_loss / theirs.preemption_loss for theirs, ours in pairs]
        seconds = [theirs.preemption_loss - ours.preemption_loss for theirs, ours in pairs]
        # without any preemption there is nothing to lose or to save, and no row
        yield "preemption_loss_cut", float(np.mean(cuts)), {}
        yield "preemption_seconds_saved", float(np.mean(seconds)), {}
    fragmented = [float(np.mean([pair[i].fragmented for pair in settings.values()])) for i in (0, 1)]
    yield "fragmentation_gain", gain(fragmented[0], fragmented[1], 1e-4), {}
    yield "time_migrating", time_migrating([ours for _, ours in settings.values()]), {}


def time_migrating(ours: list[Summary]) -> float:
    """Share of their time that requests are being migrated, mean over settings."""
    return float(np.mean([one.migrating for one in ours]))
