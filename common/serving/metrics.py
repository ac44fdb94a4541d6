"""Service-level objectives, attainment, and the rate that a system sustains under them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.serving.trace import Trace


@dataclass(frozen=True)
class SLO:
    """Objectives in seconds: time to first token, and time per output token after it."""

    ttft: float
    tpot: float

    def scaled(self, scale: float) -> "SLO":
        """Both objectives times `scale` (below 1: tighter)."""
        return SLO(self.ttft * scale, self.tpot * scale)


def attainment(trace: Trace, slo: SLO) -> float:
    """Share of requests that meet both objectives, each request on its own (joint attainment)."""
    return float(np.mean((trace.ttft <= slo.ttft) & (trace.tpot <= slo.tpot)))


def separate_attainment(trace: Trace, slo: SLO) -> tuple[float, float]:
    """Share that meets the TTFT objective, and share that meets the TPOT objective.

    Testing these two against a target, as DistServe's published search does, is weaker than the joint form.
    """
    return float(np.mean(trace.ttft <= slo.ttft)), float(np.mean(trace.tpot <= slo.tpot))


def smallest_scale(trace: Trace, slo: SLO, target: float = 0.9) -> float:
    """The tightest scale of both objectives at which the joint attainment is at least `target`.

    Exact: each request needs max(TTFT / objective, TPOT / objective), and the answer is an order statistic of these.
    """
    needed = np.sort(np.maximum(trace.ttft / slo.ttft, trace.tpot / slo.tpot))
    return float(needed[math.ceil(target * len(needed)) - 1])


def normalised_latency(trace: Trace) -> np.ndarray:
    """End-to-end latency over output tokens, seconds a token, shape (requests,) (Orca, OSDI 2022, Section 6.2)."""
    return (trace.finish - trace.arrival) / trace.output


def token_gaps(trace: Trace) -> np.ndarray:
    """Seconds between consecutive tokens (TBT), all requests in one row. ValueError where tokens were not recorded."""
    if len(trace.token_times) != len(trace.arrival):
        raise ValueError(
            "the times of tokens were not recorded: build the instances with records_tokens=True"
        )
    return np.concatenate([np.diff(times) for times in trace.token_times] or [np.empty(0)])


def keeps_pace(trace: Trace, tbt: float, delay: float = 2.0, quantile: float = 0.99) -> bool:
    """Whether that quantile of all token gaps is within `tbt` and the median scheduling delay within `delay`, seconds.

    The capacity criterion of Sarathi-Serve (OSDI 2024, Section 5.1). Without the second condition a queue that grows
    for ever would pass: only tokens after the first have gaps.
    """
    gaps = token_gaps(trace)
    steady = len(gaps) == 0 or float(np.quantile(gaps, quantile)) <= tbt
    return steady and float(np.median(trace.scheduling_delay)) <= delay


def slowest_running_rate(times: np.ndarray, alpha: float) -> float:
    """The lowest that the running average of a stream's token rate gets, tokens/s; inf for streams of one token.

    times: when each token came out, seconds, shape (tokens,). The average is the exponential one over gaps between
    tokens, with weight `alpha` on the newest and started at the first gap, as FastGen's service-level agreement asks.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"the weight of the newest gap lies in (0, 1], not at {alpha}")
    gaps = np.diff(times).tolist()
    if not gaps:
        return math.inf
    average = worst = gaps[0]
    for gap in gaps[1:]:
        average += alpha * (gap - average)
        worst = max(worst, average)
    return 1 / worst if worst > 0 else math.inf


def goodput(
    sustains: Callable[[float], bool],
    start: float,
    resolution: float = 0.02,
    lowest: float = 1e-3,
    highest: float = 1e3,
) -> float:
    """The highest rate that `sustains` accepts, by doubling or halving from `start` and then bisection.

    Rates in requests per second. The answer is a rate that was accepted, at most `resolution` (relative) below one
    that was refused; 0 if even `lowest` is refused, `highest` if that is accepted (nothing limits the rate).
    Raises ValueError for a resolution that no bisection reaches, and for a start outside of the bounds.
    """
    if not resolution > 1e-9:
        raise ValueError(f"a resolution of {resolution} is never reached; give a relative step such as 0.02")
    if not lowest <= start <= highest:
        raise ValueError(f"start rate {start} must lie between {lowest} and {highest} requests/s")
    low = high = start
    if sustains(start):
        while sustains(high := min(2 * low, highest)):
            low = high
            if high == highest:
                return highest
    else:
        while not sustains(low := max(high / 2, lowest)):
            high = low
            if low == lowest:
                return 0.0
    while high > low * (1 + resolution):
        middle = math.sqrt(low * high)
        if sustains(middle):
            low = middle
        else:
            high = middle
    return low
