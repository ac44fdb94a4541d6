"""The notebook's exercises and their solutions. Each answer is computed by the mechanism."""

from typing import Any

import numpy as np

from common.lab.exercises import Exercise
from papers.sarathi_serve import ablation
from papers.sarathi_serve.budget import token_budget
from papers.sarathi_serve.capacity import serve
from papers.sarathi_serve.deployments import DEPLOYMENTS
from papers.sarathi_serve.lengths import draw


def budget_of_150_ms(lab: Any) -> float:
    """Tokens, Mistral-7B on one A100 without a decode batch to speak of."""
    return float(token_budget(DEPLOYMENTS["mistral"].latency(), 0.15))


def delay_of_orca(lab: Any) -> float:
    """Median scheduling delay of Orca less Sarathi-Serve's, Yi-34B, 128 chats at 1 request/s."""
    work = draw("chat", np.random.default_rng(7), 128)
    delays = {name: ablation.latencies(work, "chat", name).delay for name in ("orca", "sarathi")}
    return delays["orca"] - delays["sarathi"]


def longest_gap(lab: Any) -> float:
    """Longest gap between tokens of any request under a budget of 512 tokens, Yi-34B, 60 chats at 0.5 requests/s."""
    trace, _ = serve(draw("chat", np.random.default_rng(7), 60).scaled(0.5), "yi", "chat", "sarathi", 512)
    return float(max(np.diff(times).max() for times in trace.token_times if len(times) > 1))


EXERCISES = {
    "exercise-1": Exercise(
        "Which token budget keeps Mistral-7B's iterations within 150 ms?",
        "token_budget(latency, objective) with DEPLOYMENTS['mistral'].latency() and an objective in seconds.",
        budget_of_150_ms,
    ),
    "exercise-2": Exercise(
        "How many seconds longer does a request wait for its first slot under Orca than under Sarathi-Serve (median)?",
        "ablation.latencies(work, 'chat', system).delay for 'orca' and 'sarathi', with work of 128 chats, seed 7.",
        delay_of_orca,
    ),
    "exercise-3": Exercise(
        "What is the longest pause of any answer, in seconds, with 60 chats at 0.5 requests/s and a budget of 512?",
        "serve(work.scaled(0.5), 'yi', 'chat', 'sarathi', 512) gives a trace; np.diff of each of its token_times.",
        longest_gap,
    ),
}
