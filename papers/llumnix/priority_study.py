"""One request in ten is more important: what it gains, and what the others pay (Section 6.4, Figure 13).

The rival is Llumnix-base, which migrates and treats all requests alike. Arrivals come in bursts: Gamma gaps.
"""

from dataclasses import dataclass, replace

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.llumnix.cluster import Outcome
from papers.llumnix.config import Config
from papers.llumnix.lengths import draw_trace
from papers.llumnix.runs import AUTHORS_RATES, Job, find_rates, run_once, setup_of
from papers.llumnix.serving_study import THRESHOLDS

TRACE = "128-128"
AUTHORS_RATE = 26.0  # requests/s; artifact/64_support_for_priorities/run.sh
METRICS = ("priority_request_mean_gain", "priority_ttft_mean_gain")


@dataclass(frozen=True)
class Summary:
    """Latencies of one class of requests, seconds."""

    request_mean: float
    ttft_mean: float
    ttft_p99: float


def summarise(outcome: Outcome, chosen: np.ndarray) -> Summary:
    """The latencies of the chosen requests, a boolean mask of shape (requests,)."""
    trace = outcome.trace
    ttft = trace.ttft[chosen]
    return Summary(
        float((trace.finish - trace.arrival)[chosen].mean()),
        float(ttft.mean()),
        float(np.quantile(ttft, 0.99)),
    )


def run_job(job: Job) -> tuple[Summary, Summary]:
    """Latencies of the important requests, and of the others."""
    assert job.priority is not None
    outcome = job.serve()
    return summarise(outcome, job.priority > 0), summarise(outcome, job.priority == 0)


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """Bursts of requests, some of them important, under Llumnix-base and Llumnix."""
    level = min(config.levels)
    rate = find_rates(config, lab, [(TRACE, level)])[TRACE, level]
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
                setup = replace(setup_of(config, policy, seed), lowest=THRESHOLDS[TRACE])
                at = (cv, n, config.high_share, config.homogeneous, policy == "llumnix" and config.told)
                jobs.append(Job(at, seed, rate, setup, workload, priority, told))
    results = run_once(lab, run_job, jobs, "priorities")
    for seed in lab.seeds:
        found = {
            (float(str(job.at[0])), job.setup.policy): result
            for job, result in zip(jobs, results, strict=True)
            if job.seed == seed
        }
        for name in ("request_mean", "ttft_mean", "ttft_p99"):
            gains = []
            for cv in config.priority_cvs:
                (base, others), (ours, normal) = found[cv, "llumnix-base"], found[cv, "llumnix"]
                gains.append(getattr(base, name) / getattr(ours, name))
                slower = getattr(normal, name) / getattr(others, name) - 1
                seen.add(f"priority_{name}_gain_at", gains[-1], seed, cv=cv)
                seen.add(f"normal_{name}_slower_at", slower, seed, cv=cv)
            seen.add(f"priority_{name}_gain", float(np.exp(np.mean(np.log(gains)))), seed)
