"""The notebook's exercises and their solutions."""

from typing import Any

import numpy as np

from common.lab.exercises import Exercise
from papers.fastgen.agreement import Agreement, effective_throughput, throughput
from papers.fastgen.closed_loop import Load, Slower, default_policy, draw, serve
from papers.fastgen.deployments import LLAMA_70B
from papers.fastgen.latency_curve import LatencyCurve, slowdown_for

SEED, REQUESTS, CLIENTS = 5, 128, 12
SWEEP = (2, 4, 8, 16, 32)


def agreed(alpha: float) -> float:
    """Effective throughput of SplitFuse over vLLM's schedule under 4 tokens/s with a smoothing factor."""
    workload = draw(np.random.default_rng(SEED), REQUESTS, Load(2600, 60))
    found = [
        serve(workload, CLIENTS, default_policy(name), [LLAMA_70B.latency()], LLAMA_70B.kv_tokens)
        for name in ("fastgen", "vllm")
    ]
    ours, theirs = (effective_throughput(trace, Agreement(4.0, alpha=alpha)) for trace in found)
    return ours / theirs


def curve(name: str) -> LatencyCurve:
    """Latency over throughput of a schedule, 2 to 32 clients."""
    workload = draw(np.random.default_rng(SEED), REQUESTS, Load(2600, 60))
    traces = [
        serve(workload, n, default_policy(name), [LLAMA_70B.latency()], LLAMA_70B.kv_tokens) for n in SWEEP
    ]
    latency = [float(np.mean(trace.finish - trace.arrival)) for trace in traces]
    return LatencyCurve(np.array(latency), np.array([throughput(trace) for trace in traces]))


def slower_kernels(lab: Any) -> float:
    """How many times slower vLLM's passes must be for twice its throughput at a mean latency of 12 s."""
    return slowdown_for(2.0, curve("fastgen"), curve("vllm"), 12.0)


def fleet_rate(balancer: str) -> float:
    """Requests/s of four replicas, the last of them three times slower, under 48 clients."""
    workload = draw(np.random.default_rng(SEED), 2 * REQUESTS, Load(2600, 60))
    latency = LLAMA_70B.latency()
    fleet = [latency, latency, latency, Slower(latency, 3.0)]
    return throughput(
        serve(workload, 4 * CLIENTS, default_policy("fastgen"), fleet, LLAMA_70B.kv_tokens, balancer)
    )


def from_balancing(lab: Any) -> float:
    """The rate with requests sent to the least loaded replica, over that with turns."""
    return fleet_rate("least loaded") / fleet_rate("round robin")


EXERCISES = {
    "exercise-1": Exercise(
        question=(
            "The paper does not say how the running average of the generation rate is smoothed. With 12 clients, what "
            "is SplitFuse's gain in effective throughput under 4 tokens/s where the newest gap has a weight of 0.5?"
        ),
        hint="`agreed` takes the weight; the cell asks with 0.2. A single long gap then counts for more.",
        answer=lambda lab: agreed(0.5),
        tolerance=0.02,
    ),
    "exercise-2": Exercise(
        question=(
            "How many times slower would vLLM's passes have to be for SplitFuse to serve twice its throughput at a "
            "mean latency of 12 s?"
        ),
        hint="`slowdown_for(gain, ours, theirs, latency)` looks for it; the cell asks for a gain of 1.5.",
        answer=slower_kernels,
        tolerance=0.02,
    ),
    "exercise-3": Exercise(
        question=(
            "One of four replicas is three times slower. How many times as many requests a second does the balancer "
            "serve that sends each to the least loaded replica, against the one that takes turns?"
        ),
        hint='`fleet_rate` takes the balancer: "round robin" or "least loaded".',
        answer=from_balancing,
        tolerance=0.02,
    ),
}
