"""vLLM's, Orca's and FastGen's schedules behind one real engine, on this machine's CPU, under eight waiting clients.

The policies are those of the simulations; common/serving/live.py runs what they plan. The token budget is where this
machine's own curve bends (token_curve.py), as the paper chooses it.
"""

from typing import NamedTuple

import numpy as np

from common.models.decoder import Decoder
from common.serving.clients import ClosedLoop
from common.serving.live import LiveRun, serve
from common.serving.memory import PagedMemory
from common.serving.metrics import token_gaps
from papers.fastgen.closed_loop import BLOCK_TOKENS, default_policy

CLIENTS = 8
PROMPTS = (128, 385)  # tokens, uniform from the first up to below the second
OUTPUTS = (16, 33)
KV_TOKENS = CLIENTS * (PROMPTS[1] + OUTPUTS[1])


class Requests(NamedTuple):
    """Prompts as token ids, and how many tokens each asks for."""

    prompts: list[list[int]]
    outputs: list[int]


def draw_requests(rng: np.random.Generator, n: int, vocabulary: int) -> Requests:
    """`n` requests of random tokens."""
    prompts = [rng.integers(vocabulary, size=length).tolist() for length in rng.integers(*PROMPTS, size=n)]
    return Requests(prompts, rng.integers(*OUTPUTS, size=n).tolist())


def run_policy(model: Decoder, requests: Requests, policy: str, budget: int) -> LiveRun:
    """Serve the requests in real time under a policy of closed_loop.POLICIES."""
    memory = PagedMemory(KV_TOKENS, BLOCK_TOKENS, 0.0)
    scheduler = default_policy(policy, budget)
    return serve(model, requests.prompts, requests.outputs, scheduler, memory, clients=ClosedLoop(CLIENTS))


def tail(runs: list[LiveRun]) -> float:
    """P95 of all gaps between tokens of all runs, seconds."""
    return float(np.quantile(np.concatenate([token_gaps(run.trace) for run in runs]), 0.95))


def same_answers(one: LiveRun, other: LiveRun) -> float:
    """Share of requests that got the very same tokens."""
    return float(np.mean([a == b for a, b in zip(one.tokens, other.tokens, strict=True)]))
