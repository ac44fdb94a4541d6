"""What the claims of Llumnix read: sixteen simulated instances under load, and requests moved between two processes.

Simulated, from the same latency model and the same requests for all policies: latencies and preemption at the
knee of each trace (Sections 6.3), priorities (6.4) and auto-scaling (6.5). Measured, in two processes on this machine:
what a client feels of a migration, by method and length (6.2).
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.llumnix import priority_study, scaling_study, serving_study
from papers.llumnix.cluster import Setup, what_matters
from papers.llumnix.config import Config
from papers.llumnix.global_scheduler import Scaling
from papers.llumnix.lengths import draw_trace, means
from papers.llumnix.serving_study import AUTHORS_RATES, THRESHOLDS, Job, Search, Summary, rate_at, run_job

SomeJob = TypeVar("SomeJob", Job, priority_study.Job, scaling_study.Job)
Result = TypeVar("Result")


SERVING = (
    "ttft_p99_gain",
    "ttft_mean_gain",
    "ttft_p99_gain_typical",
    "request_mean_gain",
    "request_p99_gain",
    "decode_p99_gain",
    "preemption_loss_cut",
    "preemption_seconds_saved",
    "fragmentation_gain",
    "time_migrating",
)
PRIORITY = (
    "priority_request_mean_gain",
    "priority_ttft_mean_gain",
    "priority_ttft_p99_gain",
    "normal_request_mean_slower",
)
SCALING = ("instances_saved", "scaling_ttft_p99_gain", "instances_saved_at_equal_ttft")
MIGRATION = ("gap_growth", "gap_gain_over_recompute", "moved_and_identical", "step_slowdown")


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed and setting."""
    seen = Observations()
    find_rates(config, lab, wanted_rates(config, lab))
    if config.traces and lab.wants(*SERVING):
        observe_serving(config, lab, seen)
    if config.priority_cvs and lab.wants(*PRIORITY):
        observe_priorities(config, lab, seen)
    if config.scaling_thresholds and lab.wants(*SCALING):
        observe_scaling(config, lab, seen)
    if config.migration_lengths and lab.wants(*MIGRATION):
        observe_migrations(config, lab, seen)
    return seen


def setup_of(config: Config, policy: str) -> Setup:
    """The cluster that a policy runs on."""
    return Setup(
        policy=policy,
        instances=config.instances,
        migration=config.migration,
        queued_demand=config.queued_demand,
        headroom=config.headroom,
        prioritises=config.prioritises,
        drain_by_migration=config.drain_by_migration,
        start_seconds=config.start_seconds,
        bytes_per_s=config.bytes_per_s,
    )


MOST_REQUESTS = 10_000  # of a run: the artifact's num_prompts


def requests_of(config: Config, trace: str) -> int:
    """Requests of a run: more where outputs are short, for such a run is over sooner.

    The longest requests take four minutes; a run much shorter than a quarter of an hour never fills up, and its search
    would find rates far beyond what the cluster sustains.
    """
    return min(MOST_REQUESTS, config.requests * 512 // means(trace)[1])


_FOUND: dict[tuple[str, float, int, int, bool], float] = {}  # rates searched before in this process


_RAN: dict[tuple[Hashable, ...], Any] = {}  # rivals' runs of this process, which controls would repeat


def run_jobs(
    config: Config, lab: Runtime, function: Callable[[SomeJob], Result], jobs: list[SomeJob], label: str
) -> list[Result]:
    """`lab.map`, but a rival's run on the same requests is done once in a process, whatever the control switches."""
    sizes: tuple[float, ...] = (
        config.requests,
        config.priority_requests,
        config.scaling_requests,
        config.high_share,
    )
    keys: list[tuple[Hashable, ...]] = []
    for index, job in enumerate(jobs):
        coordinates: list[Hashable] = [
            value for value in vars(job).values() if isinstance(value, (str, float, int))
        ]
        rival = job.setup.policy != "llumnix"
        keys.append(
            (label, *coordinates, what_matters(job.setup), *sizes, config.homogeneous) if rival else (index,)
        )
    missing = [(key, job) for key, job in zip(keys, jobs, strict=True) if key not in _RAN]
    results = lab.map(function, [job for _, job in missing], label)
    found = {key: result for (key, _), result in zip(missing, results, strict=True)}
    _RAN.update((key, result) for key, result in found.items() if len(key) > 1)
    return [found[key] if key in found else _RAN[key] for key in keys]


def find_rates(
    config: Config, lab: Runtime, wanted: Iterable[tuple[str, float]]
) -> dict[tuple[str, float], float]:
    """Requests/s of (trace, level), searched on requests that no seed evaluates."""
    keys = {
        (trace, level): (trace, level, requests_of(config, trace), config.instances, config.homogeneous)
        for trace, level in wanted
    }
    missing = [key for key in keys.values() if key not in _FOUND]
    searches = []
    for trace, level, n, instances, homogeneous in missing:
        workload = draw_trace(trace, lab.rng(0, "knee", trace), n, homogeneous=homogeneous)
        start = AUTHORS_RATES[trace] * instances / 16
        searches.append(Search(trace, level, workload, Setup("infaas++", instances), start))
    _FOUND.update(zip(missing, lab.map(rate_at, searches, "rates at the knee"), strict=True))
    return {asked: _FOUND[key] for asked, key in keys.items()}


def wanted_rates(config: Config, lab: Runtime) -> list[tuple[str, float]]:
    """All (trace, level) whose rate the run will need, so that they are searched side by side."""
    wanted = []
    if lab.wants(*SERVING):
        wanted += [(trace, level) for trace in config.traces for level in config.levels]
    if config.priority_cvs and lab.wants(*PRIORITY):
        wanted.append((priority_study.TRACE, min(config.levels)))
    if config.scaling_thresholds and lab.wants(*SCALING):
        wanted.append((scaling_study.TRACE, min(config.levels)))
    return list(dict.fromkeys(wanted))


def observe_serving(config: Config, lab: Runtime, seen: Observations) -> None:
    """Each trace at each level under INFaaS++ and Llumnix, and under round-robin on the first seed's requests."""
    rates = find_rates(config, lab, [(trace, level) for trace in config.traces for level in config.levels])
    for (trace, level), rate in rates.items():
        seen.add("rate", rate, trace=trace, level=level)
        seen.add("rate_factor", rate / AUTHORS_RATES[trace], trace=trace, level=level)
    compares = lab.wants(*(metric for metric in SERVING if metric != "time_migrating"))
    policies = ("infaas++", "llumnix", "round-robin") if compares else ("llumnix",)
    jobs = []
    for seed in lab.seeds:
        for trace in config.traces:
            rng = lab.rng(seed, "serving", trace)
            workload = draw_trace(trace, rng, requests_of(config, trace), homogeneous=config.homogeneous)
            for level in config.levels:
                for policy in policies:
                    if policy == "round-robin" and not (seed == lab.seeds[0] and lab.wants("ttft_mean")):
                        continue
                    setup = replace(setup_of(config, policy), lowest=THRESHOLDS[trace])
                    jobs.append(Job(trace, level, rates[trace, level], setup, workload, seed))
    summaries = run_jobs(config, lab, run_job, jobs, "serving")
    for seed in lab.seeds:
        by_policy: dict[str, dict[tuple[str, float], Summary]] = {policy: {} for policy in policies}
        for job, summary in zip(jobs, summaries, strict=True):
            if job.seed == seed:
                by_policy[job.setup.policy][job.trace, job.level] = summary
                for name, value, at in serving_study.rows_of(job, summary):
                    seen.add(name, value, seed, **at)
        if not compares:
            seen.add("time_migrating", serving_study.time_migrating([*by_policy["llumnix"].values()]), seed)
            continue
        pairs = {
            place: (by_policy["infaas++"][place], by_policy["llumnix"][place])
            for place in by_policy["llumnix"]
        }
        for name, value, at in serving_study.claims_of(pairs):
            seen.add(name, value, seed, **at)


def observe_priorities(config: Config, lab: Runtime, seen: Observations) -> None:
    """Bursts of requests, some of them important, under Llumnix-base and Llumnix."""
    trace = priority_study.TRACE
    level = min(config.levels)
    rate = find_rates(config, lab, [(trace, level)])[trace, level]
    rate *= priority_study.AUTHORS_RATE / AUTHORS_RATES[trace]  # as far below the knee as the authors' rate
    seen.add("priority_rate", rate)
    n = config.priority_requests
    jobs = []
    for seed in lab.seeds:
        for cv in config.priority_cvs:
            rng = lab.rng(seed, "priorities", str(cv))
            workload = draw_trace(trace, rng, n, cv, config.homogeneous)
            priority = (rng.random(n) < config.high_share).astype(np.int64)
            for policy in ("llumnix-base", "llumnix"):
                setup = replace(setup_of(config, policy), lowest=THRESHOLDS[trace])
                jobs.append(priority_study.Job(cv, rate, setup, workload, priority, seed))
    results = dict(
        zip(map(id, jobs), run_jobs(config, lab, priority_study.run_job, jobs, "priorities"), strict=True)
    )
    for seed in lab.seeds:
        found = {(job.cv, job.setup.policy): results[id(job)] for job in jobs if job.seed == seed}
        pairs = {cv: (found[cv, "llumnix-base"], found[cv, "llumnix"]) for cv in config.priority_cvs}
        for name, value, at in priority_study.claims_of(pairs):
            seen.add(name, value, seed, **at)
        for (cv, policy), (high, normal) in found.items():
            for kind, summary in (("high", high), ("normal", normal)):
                for name, value in vars(summary).items():
                    seen.add(f"class_{name}", value, seed, cv=cv, policy=policy, requests=kind)


def observe_scaling(config: Config, lab: Runtime, seen: Observations) -> None:
    """Auto-scaled fleets under INFaaS++ and Llumnix: a sweep of thresholds at CV 2, and other CVs at the usual one."""
    trace = scaling_study.TRACE
    level = min(config.levels)
    rate = find_rates(config, lab, [(trace, level)])[trace, level]
    rate *= scaling_study.AUTHORS_RATE / AUTHORS_RATES[trace]
    seen.add("scaling_rate", rate)
    settings = [(2.0, threshold) for threshold in config.scaling_thresholds]
    settings += [(cv, scaling_study.THRESHOLD) for cv in config.scaling_cvs]
    jobs = []
    for seed in lab.seeds:
        for cv, threshold in settings:
            workload = draw_trace(
                trace, lab.rng(seed, "scaling", str(cv)), config.scaling_requests, cv, config.homogeneous
            )
            scaling = Scaling(threshold, most=config.instances)
            for policy in ("infaas++", "llumnix"):
                first = min(scaling_study.FIRST_INSTANCES, config.instances)
                setup = replace(setup_of(config, policy), instances=first, scaling=scaling)
                jobs.append(scaling_study.Job(cv, rate, threshold, setup, workload, seed))
    summaries = run_jobs(config, lab, scaling_study.run_job, jobs, "auto-scaling")
    for seed in lab.seeds:
        ran = [(job, summary) for job, summary in zip(jobs, summaries, strict=True) if job.seed == seed]
        pairs = [(job, theirs, ours) for (job, theirs), (_, ours) in zip(ran[::2], ran[1::2], strict=True)]
        sweep = len(config.scaling_thresholds)
        for name, value, at in scaling_study.claims_of(pairs[:sweep], pairs[sweep:]):
            seen.add(name, value, seed, **at)
        for job, summary in ran:
            place: dict[str, str | float] = {
                "cv": job.cv,
                "threshold": job.threshold,
                "policy": job.setup.policy,
            }
            seen.add("scaled_instances", summary.instances, seed, **place)
            seen.add("scaled_ttft_p99", summary.ttft_p99, seed, **place)
            if seed == lab.seeds[0] and job.threshold == scaling_study.THRESHOLD:
                for time, instances in summary.over_time:
                    seen.add("instances_at", instances, seed, time=round(time, 3), **place)


def observe_migrations(config: Config, lab: Runtime, seen: Observations) -> None:
    """Move requests between two real processes, by every method that an asked-for metric needs."""
    from papers.llumnix import migration_study  # brings torch, which the simulations do without

    methods = ["live"]
    if lab.wants("gap_gain_over_recompute"):
        methods.append("recompute")
    if lab.wants("token_gap"):
        methods += ["blocking", "live on the decoding thread"]
    lengths = config.migration_lengths
    if not lab.wants("token_gap"):  # a control needs the ends, and one between that takes several stages
        lengths = sorted(
            {min(lengths), max(lengths), *(one for one in lengths if one == migration_study.LONG)}
        )
    plan = migration_study.Plan(
        tuple(lengths),
        tuple(methods),
        lab.seeds,
        config.migration_repeats,
        config.move,
        config.append_only,
        lab.wants("moved_and_identical"),
    )
    for name, value, seed, at in migration_study.measure(plan):
        seen.add(name, value, seed, **at)
