"""Three policies behind one real engine: a small decoder that serves on this machine's CPU, on the wall clock.

The scheduler objects are those of the simulations; common/serving/live.py runs what they plan. Requests arrive at a
rate set by the machine's own speed, so that every machine sees the same load.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from common.models.decoder import Decoder, KVCache
from common.serving.batch import Scheduler
from common.serving.live import LiveRun, serve
from common.serving.memory import PagedMemory
from common.serving.metrics import token_gaps
from common.serving.schedulers import IterationLevel, PrefillFirst
from common.serving.workload import poisson
from papers.sarathi_serve.schedulers import AlternatingChunks, StallFree

PROMPTS = (192, 577)  # tokens, uniform from the first up to below the second
OUTPUTS = (16, 49)
LONGEST = PROMPTS[1] + OUTPUTS[1]
BUDGET = 128  # tokens: shorter chunks cost this decoder over a fifth more time
SEQUENCES = 16
LOAD = 0.6  # of what the engine could do with four decodes in a batch
SHARING = 4

POLICIES: dict[str, Callable[[], Scheduler]] = {
    "sarathi": lambda: StallFree(BUDGET, SEQUENCES),
    "hybrid-only": lambda: StallFree(LONGEST, SEQUENCES),
    "chunked-only": lambda: AlternatingChunks(BUDGET, SEQUENCES),
    "swapped": lambda: StallFree(BUDGET, SEQUENCES, decodes_first=False),
    "vllm": lambda: PrefillFirst(LONGEST, SEQUENCES),
    "orca": lambda: IterationLevel(SEQUENCES),
}


class Requests(NamedTuple):
    """Prompts as token ids, output lengths, and arrivals in seconds."""

    prompts: list[list[int]]
    outputs: list[int]
    arrivals: list[float]


def service_seconds(model: Decoder) -> float:
    """About what a request costs this machine: its mean prompt, and its share of its decode iterations."""
    prompt, context = sum(PROMPTS) // 2, sum(PROMPTS) // 2
    caches = [KVCache(model.config, context + 8) for _ in range(SHARING)]
    seconds = []
    for lengths in ([prompt], [1] * SHARING):
        taken = []
        for _ in range(3):
            for cache in caches:
                cache.length = 0 if len(lengths) == 1 else context
            start = time.perf_counter()
            model([torch.zeros(n, dtype=torch.int64) for n in lengths], caches[: len(lengths)])
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))
    return seconds[0] + sum(OUTPUTS) / 2 * seconds[1] / SHARING


def draw_requests(rng: np.random.Generator, n: int, vocabulary: int, rate: float) -> Requests:
    """`n` requests with Poisson arrivals at `rate` requests/s."""
    prompts = [rng.integers(vocabulary, size=length).tolist() for length in rng.integers(*PROMPTS, size=n)]
    return Requests(prompts, rng.integers(*OUTPUTS, size=n).tolist(), (poisson(rng, n) / rate).tolist())


def run_policy(model: Decoder, requests: Requests, policy: str) -> LiveRun:
    """Serve the requests in real time under a policy of POLICIES; KeyError for another."""
    memory = PagedMemory(LONGEST * SEQUENCES, block_tokens=16)
    return serve(
        model, requests.prompts, requests.outputs, POLICIES[policy](), memory, arrivals=requests.arrivals
    )


def tail(run: LiveRun) -> tuple[float, float]:
    """P99 of all token gaps in seconds, and generated tokens a second until the last request ended."""
    trace = run.trace
    return float(np.quantile(token_gaps(trace), 0.99)), float(trace.output.sum() / trace.finish.max())
