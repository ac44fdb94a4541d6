"""The service-level agreement of FastGen's authors, and what it counts: requests served as agreed, a second.

Section 4.C: a request succeeds if its first token comes within prompt / 512 seconds and if the running average of its
generation rate never falls below 2, 4 or 6 tokens a second.
"""

from dataclasses import dataclass

import numpy as np

from common.serving.metrics import slowest_running_rate
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


def successful(trace: Trace, agreement: Agreement) -> np.ndarray:
    """Which requests were served as agreed, bool of shape (requests,). The trace must hold the times of tokens."""
    if len(trace.token_times) != len(trace.arrival):
        raise ValueError("the agreement needs every token's time: build instances with records_tokens=True")
    prompt = trace.ttft <= trace.prompt / agreement.prompt_rate
    slowest = [slowest_running_rate(times, agreement.alpha) for times in trace.token_times]
    return prompt & (np.array(slowest) >= agreement.generation_rate)


def effective_throughput(trace: Trace, agreement: Agreement) -> float:
    """Requests/s that were served as agreed, from the first arrival to the last token."""
    return float(np.sum(successful(trace, agreement)) / seconds(trace))


def throughput(trace: Trace) -> float:
    """Requests/s, however they were served."""
    return len(trace.arrival) / seconds(trace)


def seconds(trace: Trace) -> float:
    """From the first arrival to the last token."""
    return float(trace.finish.max() - trace.arrival.min())
