"""As few instances as will do: cost and tail latency under auto-scaling (Section 6.5, Figures 14 and 15)."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.llumnix.auto_scaling import Scaling
from papers.llumnix.config import Config
from papers.llumnix.lengths import draw_trace
from papers.llumnix.runs import AUTHORS_RATES, Job, find_rates, run_once, setup_of

TRACE = "512-512"
AUTHORS_RATE = 2.0  # requests/s; artifact/65_auto_scaling/run.sh
FIRST_INSTANCES = 8  # instance_parallel_size of its configuration
THRESHOLD = 10.0  # blocks a request: the artifact's, except where it sweeps them
CV = 2.0  # of the sweep of thresholds
METRICS = ("instances_gain", "instances_gain_at_equal_ttft")


class Summary(NamedTuple):
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
        tuple(outcome.changes),
    )


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """Auto-scaled fleets under INFaaS++ and Llumnix: a sweep of thresholds at CV 2, and other CVs at the usual one."""
    level = min(config.levels)
    rate, reached = find_rates(config, lab, [(TRACE, level)])[TRACE, level]
    rate *= AUTHORS_RATE / AUTHORS_RATES[TRACE]
    seen.add("scaling_level_reached", float(reached))
    seen.add("scaling_rate", rate)
    same, sweep = [], []  # CVs at the authors' threshold, thresholds at one CV
    if lab.wants("instances_gain"):
        same = [(cv, THRESHOLD) for cv in dict.fromkeys([CV, *config.scaling_cvs])]
    if lab.wants("instances_gain_at_equal_ttft"):
        sweep = [(CV, threshold) for threshold in config.scaling_thresholds]
    n = config.scaling_requests
    jobs = []
    for seed in lab.seeds:
        for cv, threshold in dict.fromkeys([*sweep, *same]):
            workload = draw_trace(TRACE, lab.rng(seed, "scaling", str(cv)), n, cv, config.homogeneous)
            for policy in ("infaas++", "llumnix"):
                setup = replace(
                    setup_of(config, policy, seed),
                    instances=min(FIRST_INSTANCES, config.instances),
                    scaling=Scaling(threshold, most=config.instances),
                )
                at = (cv, threshold, n, config.homogeneous)
                jobs.append(Job(at, policy, seed, rate, setup, workload))
    results = run_once(lab, run_job, jobs, "auto-scaling")
    found: dict[tuple[int, float, float, str], Summary] = {}
    for job, one in zip(jobs, results, strict=True):
        cv, threshold, policy = float(str(job.at[0])), float(str(job.at[1])), job.policy
        found[job.seed, cv, threshold, policy] = one
        where: dict[str, str | float] = {"cv": cv, "threshold": threshold, "policy": policy}
        seen.add("scaled_instances", one.instances, job.seed, **where)
        seen.add("scaled_ttft_p99", one.ttft_p99, job.seed, **where)
        if job.seed == lab.seeds[0] and [(cv, threshold)] == sweep[:1]:
            for time, instances in one.over_time:
                seen.add("instances_at", instances, job.seed, time=round(time, 3), **where)
    for seed in lab.seeds:
        for place in same:
            theirs, ours = (found[seed, *place, policy] for policy in ("infaas++", "llumnix"))
            seen.add("instances_gain", theirs.instances / ours.instances, seed, cv=place[0])
        rival, mine = ([found[seed, *place, policy] for place in sweep] for policy in ("infaas++", "llumnix"))
        for (_, threshold), point in zip(sweep, rival, strict=True):
            gain = gain_at(rival, mine, point.ttft_p99)
            seen.add("instances_gain_at_equal_ttft", gain, seed, threshold=threshold)


def gain_at(theirs: list[Summary], ours: list[Summary], ttft_p99: float) -> float:
    """Instances that the rival's frontier needs for a P99 TTFT over those that ours needs; equal frontiers give 1.

    Where ours never reaches that latency its dearest point stands for it, and nothing is gained: 1 at most.
    """
    rival, cost = cheapest(theirs, ttft_p99), cheapest(ours, ttft_p99)
    if rival is None:
        raise ValueError(f"the rival never reaches {ttft_p99:g} s")
    return rival / cost if cost is not None else min(1.0, rival / max(one.instances for one in ours))


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
