"""As few instances as will do: cost and tail latency under auto-scaling (Section 6.5, Figures 14 and 15)."""

from dataclasses import dataclass, replace

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.llumnix.config import Config
from papers.llumnix.global_scheduler import Scaling
from papers.llumnix.lengths import draw_trace
from papers.llumnix.runs import AUTHORS_RATES, Job, find_rates, run_once, setup_of

TRACE = "512-512"
AUTHORS_RATE = 2.0  # requests/s; artifact/65_auto_scaling/run.sh
FIRST_INSTANCES = 8  # instance_parallel_size of its configuration
THRESHOLD = 10.0  # blocks a request: the artifact's, except where it sweeps them
CV = 2.0  # of the sweep of thresholds
METRICS = ("instances_gain", "instances_gain_at_equal_ttft")


@dataclass(frozen=True)
class Summary:
    """Cost and latency of a run: instances on average, seconds; instances over time for the figure."""

    instances: float
    ttft_p99: float
    over_time: tuple[tuple[float, int], ...] = ()


def run_job(job: Job) -> Summary:
    """Serve under auto-scaling."""
    outcome = job.serve()
    return Summary(
        outcome.average_instances,
        float(np.quantile(outcome.trace.ttft, 0.99)),
        tuple((one.time, one.instances) for one in outcome.samples[:: max(1, len(outcome.samples) // 60)]),
    )


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """Auto-scaled fleets under INFaaS++ and Llumnix: a sweep of thresholds at CV 2, and other CVs at the usual one."""
    level = min(config.levels)
    rate = find_rates(config, lab, [(TRACE, level)])[TRACE, level] * AUTHORS_RATE / AUTHORS_RATES[TRACE]
    seen.add("scaling_rate", rate)
    settings = [(CV, threshold) for threshold in config.scaling_thresholds]
    settings += [(cv, THRESHOLD) for cv in config.scaling_cvs if (cv, THRESHOLD) not in settings]
    jobs = []
    for seed in lab.seeds:
        for cv, threshold in settings:
            n = config.scaling_requests
            workload = draw_trace(TRACE, lab.rng(seed, "scaling", str(cv)), n, cv, config.homogeneous)
            first = min(FIRST_INSTANCES, config.instances)
            for policy in ("infaas++", "llumnix"):
                setup = replace(
                    setup_of(config, policy, seed),
                    instances=first,
                    scaling=Scaling(threshold, most=config.instances),
                )
                jobs.append(Job((cv, threshold, n, config.homogeneous), seed, rate, setup, workload))
    results = run_once(lab, run_job, jobs, "auto-scaling")
    found = {(job.seed, *job.at[:2], job.setup.policy): one for job, one in zip(jobs, results, strict=True)}
    for seed in lab.seeds:
        for cv, threshold in settings:
            theirs, ours = (found[seed, cv, threshold, policy] for policy in ("infaas++", "llumnix"))
            if threshold == THRESHOLD:
                seen.add("instances_gain", theirs.instances / ours.instances, seed, cv=cv)
            for policy, one in (("infaas++", theirs), ("llumnix", ours)):
                at: dict[str, str | float] = {"cv": cv, "threshold": threshold, "policy": policy}
                seen.add("scaled_instances", one.instances, seed, **at)
                seen.add("scaled_ttft_p99", one.ttft_p99, seed, **at)
                if seed == lab.seeds[0] and threshold == config.scaling_thresholds[0]:
                    for time, instances in one.over_time:
                        seen.add("instances_at", instances, seed, time=round(time, 3), **at)
        theirs_all, ours_all = (
            [found[seed, CV, threshold, policy] for threshold in config.scaling_thresholds]
            for policy in ("infaas++", "llumnix")
        )
        for threshold, point in zip(config.scaling_thresholds, theirs_all, strict=True):
            gain = gain_at(theirs_all, ours_all, point.ttft_p99)
            seen.add("instances_gain_at_equal_ttft", gain, seed, threshold=threshold)


def gain_at(theirs: list[Summary], ours: list[Summary], ttft_p99: float) -> float:
    """Instances that the rival's frontier needs for a P99 TTFT over those that ours needs; equal frontiers give 1.

    Where ours never reaches that latency, its dearest point stands for it.
    """
    rival, cost = cheapest(theirs, ttft_p99), cheapest(ours, ttft_p99)
    dearest = max(one.instances for one in ours)
    return (dearest if rival is None else rival) / (dearest if cost is None else cost)


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
