"""One request in ten is more important: what it gains, and what the others pay (Section 6.4, Figure 13).

The rival is Llumnix-base, which migrates and treats all requests alike. Arrivals come in bursts: Gamma gaps.
"""

from dataclasses import replace

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.llumnix.config import Config
from papers.llumnix.lengths import draw_trace
from papers.llumnix.runs import AUTHORS_RATES, Job, find_rates, run_once, setup_of
from papers.llumnix.serving_study import THRESHOLDS

TRACE = "128-128"
AUTHORS_RATE = 26.0  # requests/s; artifact/64_support_for_priorities/run.sh
METRICS = ("priority_request_mean_gain", "priority_ttft_mean_gain")


NAMES = ("request_mean", "ttft_mean")  # latencies, seconds


def run_job(job: Job) -> list[tuple[float, float]]:
    """NAMES of the important requests, and of the others."""
    assert job.priority is not None
    trace = job.serve().trace
    latency = trace.finish - trace.arrival
    return [
        (float(latency[chosen].mean()), float(trace.ttft[chosen].mean()))
        for chosen in (job.priority > 0, job.priority == 0)
    ]


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """Bursts of requests, some of them important, under Llumnix-base and Llumnix."""
    level = min(config.levels)
    rate, reached = find_rates(config, lab, [(TRACE, level)])[TRACE, level]
    seen.add("priority_level_reached", float(reached))
    # As far below the knee as the authors' rate.
    rate *= config.priority_load * AUTHORS_RATE / AUTHORS_RATES[TRACE]
    seen.add("priority_rate", rate)
    n = config.priority_requests
    seen.add("high_requests", config.high_share * n)
    jobs = []
    for seed in lab.seeds:
        for cv in config.priority_cvs:
            rng = lab.rng(seed, "priorities", str(cv))
            workload = draw_trace(TRACE, rng, n, cv, config.homogeneous)
            priority = (rng.random(n) < config.high_share).astype(np.int64)
            priority[0] = 1
            told = priority if config.told == "true" else lab.rng(seed, "told", str(cv)).permutation(priority)
            for policy in ("llumnix-base", "llumnix"):
                setup = replace(setup_of(config, policy, seed, priorities=True), lowest=THRESHOLDS[TRACE])
                knows = policy == "llumnix" and config.prioritises
                at = (cv, n, config.high_share, config.homogeneous, knows and config.told)
                jobs.append(Job(at, policy, seed, rate, setup, workload, priority, told))
    results = run_once(lab, run_job, jobs, "priorities")
    found = {
        (job.seed, job.at[0], job.policy): np.array(result) for job, result in zip(jobs, results, strict=True)
    }
    for seed in lab.seeds:
        gains = []  # important ones, others; by latency
        for cv in config.priority_cvs:
            gains.append(found[seed, cv, "llumnix-base"] / found[seed, cv, "llumnix"])
            for name, important, others in zip(NAMES, *gains[-1], strict=True):
                seen.add(f"priority_{name}_gain_at", important, seed, cv=cv)
                seen.add(f"normal_{name}_gain_at", others, seed, cv=cv)
        for name, gain in zip(NAMES, np.exp(np.mean(np.log(gains), axis=0))[0], strict=True):
            seen.add(f"priority_{name}_gain", float(gain), seed)
