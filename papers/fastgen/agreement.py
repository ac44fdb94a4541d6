"""The service-level agreement of FastGen's authors, and what it counts: requests served as agreed, a second.

Section 4.C: a request succeeds if its first token comes within prompt / 512 seconds and if the running average of its
generation rate never falls below 2, 4 or 6 tokens a second.
"""

from dataclasses import dataclass

import numpy as np

from common.serving.trace import Trace

PROMPT_RATE = 512.0  # tokens/s of prompt until the first token (Section 4.C)
RATES = (2.0, 4.0, 6.0)  # tokens/s of generation (Section 4.C)
ALPHA = 0.2  # (inferred) weight of the newest gap in the average; the authors publish none
ALPHAS = (0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Agreement:
    """What every request is promised."""

    generation_rate: float  # tokens/s, as a running average at its worst
    prompt_rate: float = PROMPT_RATE
    alpha: float = ALPHA


def slowest_rates(trace: Trace, alpha: float = ALPHA) -> np.ndarray:
    """The lowest running average of each request's generation rate, tokens/s, shape (requests,); inf for one token.

    As `common.serving.metrics.slowest_running_rate` has it for one stream, for all streams at once.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"the newest gap has a weight above 0 and up to 1, not {alpha}")
    if len(trace.token_times) != len(trace.arrival):
        raise ValueError("the agreement needs every token's time: build instances with records_tokens=True")
    longest = max((len(times) for times in trace.token_times), default=1)
    gaps = np.full(
        (longest, len(trace.token_times)), np.nan
    )  # a row for each token after the first, and one more
    for column, times in enumerate(trace.token_times):
        gaps[: len(times) - 1, column] = np.diff(times)
    average, worst = gaps[0].copy(), gaps[0].copy()
    for row in gaps[1:]:
        average += alpha * (row - average)  # nan beyond a stream's end, where fmax keeps the worst so far
        np.fmax(worst, average, out=worst)
    with np.errstate(divide="ignore"):
        return np.where(np.isnan(worst), np.inf, 1.0 / worst)


def successful(trace: Trace, agreement: Agreement, slowest: np.ndarray | None = None) -> np.ndarray:
    """Which requests were served as agreed, bool of shape (requests,). The trace must hold the times of tokens.

    slowest: what `slowest_rates` gives for the agreement's alpha, where it is known already.
    """
    if slowest is None:
        slowest = slowest_rates(trace, agreement.alpha)
    return (trace.ttft <= trace.prompt / agreement.prompt_rate) & (slowest >= agreement.generation_rate)


def effective_throughput(trace: Trace, agreement: Agreement, slowest: np.ndarray | None = None) -> float:
    """Requests/s that were served as agreed, from the first arrival to the last token; see `successful`."""
    return float(np.sum(successful(trace, agreement, slowest)) / seconds(trace))


def throughput(trace: Trace) -> float:
    """Requests/s, however they were served."""
    return len(trace.arrival) / seconds(trace)


def seconds(trace: Trace) -> float:
    """From the first arrival to the last token."""
    return float(trace.finish.max() - trace.arrival.min())
