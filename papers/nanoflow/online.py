"""Serving the length traces on a pipeline: normalised latency over the rate, and the rate within a limit (6.3)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from common.serving.engine import Instance, simulate
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.metrics import goodput, normalised_latency
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.nanoflow.cost_model import ACCELERATORS, LLAMA_2_70B
from papers.nanoflow.dense_batch import DenseBatch
from papers.nanoflow.pipeline_latency import PipelineLatency

LIMIT = 0.2  # seconds a token, of the mean normalised latency (Section 6.3)
_A100 = next(card for card in ACCELERATORS if card.name == "A100-80")
KV_TOKENS = int(
    (LLAMA_2_70B.gpus * _A100.memory - LLAMA_2_70B.shape.weight_bytes())
    / LLAMA_2_70B.shape.kv_bytes_per_token()
)


class System(NamedTuple):
    """LLaMA-2-70B on eight GPUs: its pipeline and its batch policy."""

    latency: PipelineLatency
    policy: DenseBatch


def build(system: System, loop: EventLoop) -> Instance:
    """The instance on an event loop."""
    return Instance(loop, system.latency, PagedMemory(KV_TOKENS), system.policy)


def serve(system: System, work: Workload, rate: float) -> Trace:
    """The trace of requests that arrive at `rate` a second."""
    return simulate(work.scaled(rate), partial(build, system))


def sustained_rate(
    system: System, work: Callable[[float], Workload], start: float, resolution: float
) -> float:
    """The highest rate (requests/s) whose mean normalised latency is within LIMIT. work: requests to send at a rate."""

    def within(rate: float) -> bool:
        return float(np.mean(normalised_latency(serve(system, work(rate), rate)))) <= LIMIT

    return goodput(within, start, resolution, highest=4 * start)


def wasted_share(work: Workload, late: int) -> float:
    """Tokens computed after the end of a sequence over all tokens put out."""
    return late * len(work.output) / float(work.output.sum())
