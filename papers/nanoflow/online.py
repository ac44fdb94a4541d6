"""Serving the length traces on a pipeline: normalised latency over the rate, and the rate within a limit (6.3)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from common.lab.runtime import Coordinate, Observations, Runtime
from common.serving.engine import Instance, simulate
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.metrics import goodput, normalised_latency
from common.serving.trace import Trace
from common.serving.workload import Lengths, Workload, poisson, read_trace
from papers.nanoflow.config import TRACES, Config
from papers.nanoflow.cost_model import ACCELERATORS, LLAMA_2_70B
from papers.nanoflow.dense_batch import DenseBatch
from papers.nanoflow.pipeline_latency import PipelineLatency, sequential_latency

LIMIT = 0.2  # seconds a token, of the mean normalised latency (Section 6.3)
MOST_RATE = 80.0  # requests/s that traces are drawn for: beyond what any of the systems sustains
LONGEST = 4096  # tokens of a request that is kept: the context of LLaMA-2
CURVE = (0.1, 0.4, 0.8, 1.0, 1.2, 1.4, 1.6)  # rates that a figure shows, over 1,000 tokens/s and GPU
_A100 = next(card for card in ACCELERATORS if card.name == "A100-80")
KV_TOKENS = int(
    (LLAMA_2_70B.gpus * _A100.memory - LLAMA_2_70B.shape.weight_bytes())
    / LLAMA_2_70B.shape.kv_bytes_per_token()
)


class System(NamedTuple):
    """LLaMA-2-70B on eight GPUs: its pipeline and its batch policy."""

    latency: PipelineLatency
    policy: DenseBatch


class Job(NamedTuple):
    """One engine on a trace's requests of one seed; curve: whether latencies over the rate are asked for."""

    trace: str
    seed: int
    latency: PipelineLatency
    batch: int  # tokens of the dense batch
    late: int
    requests: int
    seconds: float
    resolution: float
    curve: bool


class Served(NamedTuple):
    """The highest rate within the limit, how many requests that took, and (rate, seconds a token) of the curve."""

    rate: float
    requests: int
    curve: tuple[tuple[float, float], ...]


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
    """Tokens that the engine computes after an end of sequence, over all tokens put out; counted, one by one."""
    system = System(
        sequential_latency(), DenseBatch(LLAMA_2_70B.dense_batch, float(work.output.mean()), late)
    )
    computed = []

    def counted(loop: EventLoop) -> Instance:
        loop.on_finish = lambda sequence: computed.append(sequence.generated)
        return build(system, loop)

    simulate(work.scaled(usual_rate(work)), counted)
    return sum(computed) / float(work.output.sum()) - 1


def usual_rate(work: Workload) -> float:
    """Requests/s that make 1,000 tokens/s on each of the eight GPUs."""
    return 1000 * LLAMA_2_70B.gpus / float((work.prompt + work.output).mean())


def served(job: Job, work: Workload) -> Served:
    """Rate within the limit, and latencies over the rate."""
    system = System(job.latency, DenseBatch(job.batch, float(work.output.mean()), job.late))
    start = usual_rate(work)

    def first_of(rate: float) -> Workload:
        return work.first(max(job.requests, int(rate * job.seconds)))

    def latency_at(rate: float) -> float:
        return float(np.mean(normalised_latency(serve(system, first_of(rate), rate))))

    rate = sustained_rate(system, first_of, start, job.resolution)
    curve = tuple((part * start, latency_at(part * start)) for part in CURVE) if job.curve else ()
    return Served(rate, len(first_of(rate)), curve)


def serve_all(lab: Runtime, config: Config, jobs: list[Job]) -> list[Served]:
    """What became of each job; one that an earlier arm asked for is not served again."""
    known: dict[Job, Served] = lab.once("nanoflow: online", dict)
    missing = [job for job in dict.fromkeys(jobs) if job not in known]
    works = {(one.trace, one.seed): draw(one.trace, config, lab, one.seed) for one in missing}
    pairs = [(job, works[job.trace, job.seed]) for job in missing]
    known.update(zip(missing, lab.map(_served, pairs, "online"), strict=True))
    return [known[job] for job in jobs]


def _served(pair: tuple[Job, Workload]) -> Served:
    return served(*pair)


def observe(seen: Observations, trace: str, seed: int, plain: Served, ours: Served) -> None:
    """The rows of one seed: rates within the limit of the pipeline and of the same engine without overlap."""
    for name, one in (("non-overlap", plain), ("NanoFlow", ours)):
        seen.add("online_rate", one.rate, seed, trace=trace, system=name)
        for rate, latency in one.curve:
            at: dict[str, Coordinate] = {"trace": trace, "system": name, "rate": rate}
            seen.add("normalised_latency", latency, seed, **at)
    seen.add("online_rate_gain_by_trace", ours.rate / plain.rate, seed, trace=trace)
    if trace == "lmsys":
        seen.add("online_rate_gain", ours.rate / plain.rate, seed)
        seen.add("online_requests", plain.requests, seed)


def draw(name: str, config: Config, lab: Runtime, seed: int) -> Workload:
    """Requests of a trace with Poisson arrivals at one a second."""
    rng = lab.rng(seed, name)
    count = max(config.requests, int(MOST_RATE * config.seconds))
    lengths = trace_lengths(name, lab)
    assert lengths is not None
    drawn = lengths.sample(rng, count)
    return Workload(poisson(rng, count), drawn.prompt, drawn.output)


def trace_lengths(name: str, lab: Runtime) -> Lengths | None:
    """A trace's lengths below LONGEST tokens; None where the trace cannot be had."""
    path = lab.data(TRACES[name])
    if path is None:
        return None
    return lab.once(("nanoflow: trace", name), lambda: read_trace(path).within(LONGEST))
