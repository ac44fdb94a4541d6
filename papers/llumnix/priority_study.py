"""One request in ten is more important: what it gains, and what the others pay (Section 6.4, Figure 13).

The rival is Llumnix-base, which migrates and treats all requests alike. Arrivals come in bursts: Gamma gaps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.serving.workload import Workload
from papers.llumnix.cluster import Outcome, Setup, serve

TRACE = "128-128"
AUTHORS_RATE = 26.0  # requests/s; artifact/64_support_for_priorities/run.sh


@dataclass(frozen=True)
class Job:
    """One run: requests at a rate, of which those with priority 1 are important, arriving with that variation."""

    cv: float
    rate: float  # requests/s
    setup: Setup
    workload: Workload  # at one request a second
    priority: np.ndarray
    seed: int


@dataclass(frozen=True)
class Summary:
    """Latencies of one class of requests, seconds."""

    request_mean: float
    ttft_mean: float
    ttft_p99: float
    decode_mean: float


def summarise(outcome: Outcome, chosen: np.ndarray) -> Summary:
    """The latencies of the chosen requests, a boolean mask of shape (requests,)."""
    trace = outcome.trace
    longer = chosen & (trace.output > 1)
    return Summary(
        float((trace.finish - trace.arrival)[chosen].mean()),
        float(trace.ttft[chosen].mean()),
        float(np.quantile(trace.ttft[chosen], 0.99)),
        float(trace.tpot[longer].mean()),
    )


def run_job(job: Job) -> tuple[Summary, Summary]:
    """Latencies of the important requests, and of the others."""
    outcome = serve(job.workload.scaled(job.rate), job.setup, job.priority)
    return summarise(outcome, job.priority > 0), summarise(outcome, job.priority == 0)


Row = tuple[str, float, dict[str, str | float]]


def claims_of(runs: dict[float, tuple[tuple[Summary, Summary], tuple[Summary, Summary]]]) -> Iterator[Row]:
    """Claims' numbers of one seed from the (important, normal) latencies of base and Llumnix at each CV.

    Gains are geometric means over the CVs; what normal requests pay is the largest of them, 0.1 for a tenth.
    """
    for name in ("request_mean", "ttft_mean", "ttft_p99", "decode_mean"):
        gains = []
        slower = []
        for cv, (base, ours) in runs.items():
            gains.append(getattr(base[0], name) / getattr(ours[0], name))
            slower.append(getattr(ours[1], name) / getattr(base[1], name) - 1)
            yield f"priority_{name}_gain_at", gains[-1], {"cv": cv}
            yield f"normal_{name}_slower_at", slower[-1], {"cv": cv}
        yield f"priority_{name}_gain", float(np.exp(np.mean(np.log(gains)))), {}
        yield f"normal_{name}_slower", max(slower), {}
