"""Hybrid batches and chunked prefills, each without the other: TTFT and TBT at a fixed rate (Section 5.4, Table 4)."""

from typing import NamedTuple

import numpy as np

from common.serving.latency import LatencyModel
from common.serving.metrics import token_gaps
from common.serving.workload import Workload
from papers.sarathi_serve.capacity import serve

RATES = {"chat": 1.0, "arxiv": 0.5}  # requests/s, osdi-experiments/table-6
REQUESTS = 128
BUDGET = 512  # of the script; the text says 1,024
CALM = 1.0  # seconds of median scheduling delay, above which TTFT measures a queue rather than a policy
EASE = 0.9  # factor by which the rate is lowered until it is calm


class Latencies(NamedTuple):
    """What Table 4 lists for one system, and whether its queue was stable."""

    ttft: float  # median, seconds
    tbt: float  # 99th percentile of all token gaps, seconds
    delay: float  # median scheduling delay, seconds
    preemptions: int


def latencies(
    workload: Workload, kind: str, system: str, budget: int = BUDGET, latency: LatencyModel | None = None
) -> Latencies:
    """Serve the workload as it is on two A100s with Yi-34B. latency: instead of the deployment's own."""
    trace, _ = serve(workload, "yi", kind, system, budget, latency)
    return Latencies(
        float(np.median(trace.ttft)),
        float(np.quantile(token_gaps(trace), 0.99)),
        float(np.median(trace.scheduling_delay)),
        int(trace.preemptions.sum()),
    )


def calm_rate(workload: Workload, kind: str, latency: LatencyModel | None = None) -> float:
    """The paper's rate, lowered step by step until Sarathi-Serve has no queue to speak of, in requests/s.

    Raises ValueError where no rate is calm.
    """
    rate = RATES[kind]
    for _ in range(40):
        if latencies(workload.scaled(rate), kind, "sarathi", latency=latency).delay < CALM:
            return rate
        rate *= EASE
    raise ValueError(f"the queue of {kind} is not calm at any rate from {RATES[kind]:g} requests/s down")
