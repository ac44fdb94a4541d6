"""As few instances as will do: cost and tail latency under auto-scaling (Section 6.5, Figures 14 and 15)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.serving.workload import Workload
from papers.llumnix.cluster import Setup, serve

TRACE = "512-512"
AUTHORS_RATE = 2.0  # requests/s; artifact/65_auto_scaling/run.sh
FIRST_INSTANCES = 8  # instance_parallel_size of its configuration
THRESHOLD = 10.0  # blocks a request: the artifact's, except where it sweeps them


@dataclass(frozen=True)
class Job:
    """One run: a policy with a scaling threshold, on requests that arrive with that coefficient of variation."""

    cv: float
    rate: float  # requests/s
    threshold: float
    setup: Setup
    workload: Workload  # at one request a second
    seed: int


@dataclass(frozen=True)
class Summary:
    """Cost and latency of a run: instances on average, seconds; instances over time for the figure."""

    instances: float
    ttft_p99: float
    ttft_mean: float
    request_mean: float
    over_time: tuple[tuple[float, int], ...]


def run_job(job: Job) -> Summary:
    """Serve under auto-scaling."""
    outcome = serve(job.workload.scaled(job.rate), job.setup)
    trace = outcome.trace
    return Summary(
        outcome.average_instances,
        float(np.quantile(trace.ttft, 0.99)),
        float(trace.ttft.mean()),
        float((trace.finish - trace.arrival).mean()),
        tuple((one.time, one.instances) for one in outcome.samples[:: max(1, len(outcome.samples) // 60)]),
    )


def saving_at_equal_latency(theirs: list[Summary], ours: list[Summary]) -> float | None:
    """The largest saving of instances at a P99 TTFT that both frontiers reach, 0.1 for a tenth; None where none is.

    At every latency that the rival was seen at, the cheapest that either frontier reaches it with is taken, so that
    equal frontiers save nothing: a point that its own frontier beats is no rival.
    """
    best = None
    for point in theirs:
        cost, rival = cheapest(ours, point.ttft_p99), cheapest(theirs, point.ttft_p99)
        if cost is not None and rival is not None:
            saving = 1 - cost / rival
            best = saving if best is None else max(best, saving)
    return best


def cheapest(points: list[Summary], ttft_p99: float) -> float | None:
    """Instances that a frontier needs for that P99 TTFT, between its points by interpolation; None if out of reach."""
    frontier = sorted((one.ttft_p99, one.instances) for one in points)
    costs = [cost for latency, cost in frontier if latency <= ttft_p99]
    if not costs:
        return None
    best = min(costs)
    for (low, dear), (high, cheap) in zip(frontier, frontier[1:], strict=False):
        if low <= ttft_p99 < high and cheap < dear:
            share = (np.log(ttft_p99) - np.log(low)) / (np.log(high) - np.log(low))
            best = min(best, dear + float(share) * (cheap - dear))
    return best


Row = tuple[str, float, dict[str, str | float]]


def claims_of(
    sweep: list[tuple[Job, Summary, Summary]], rest: list[tuple[Job, Summary, Summary]]
) -> Iterator[Row]:
    """Claims' numbers of one seed from (job, INFaaS++, Llumnix): the sweep of thresholds, and the other workloads."""
    for job, theirs, ours in [*sweep, *rest]:
        if job.threshold == THRESHOLD:
            at: dict[str, str | float] = {"cv": job.cv}
            yield "instances_saved", 1 - ours.instances / theirs.instances, at
            yield "scaling_ttft_p99_gain", theirs.ttft_p99 / ours.ttft_p99, at
    saving = saving_at_equal_latency([theirs for _, theirs, _ in sweep], [ours for _, _, ours in sweep])
    if saving is not None:
        yield "instances_saved_at_equal_ttft", saving, {}
