"""32 A100s serve one trace three ways: instances that lend, instances that don't, or one instance over all GPUs.

infinite       one model replica an instance, round-robin dispatch, memory lent between them
vllm-multi     the same instances without lending; a request longer than an instance's memory cannot be served
vllm-single    all GPUs hold one model: tensor parallel inside a node, pipeline stages across (its best legal layout,
               for all-reduces over the slow network between nodes would take most of an iteration)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.hardware.specs import Link as Cable
from common.hardware.specs import gpu as device
from common.hardware.specs import link
from common.serving.cluster import Dispatcher, LeastTokens, Replicas, RoundRobin
from common.serving.engine import Instance, System, simulate
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.models import ModelShape
from common.serving.profiled import SHAPES, profiled_latency, send
from common.serving.schedulers import PrefillFirst
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.infinite_llm.lending import Lender, Lending
from papers.infinite_llm.planning import BLOCK_TOKENS, Exchange, LendingLatency, Rules, Wire

SYSTEMS = ("infinite", "vllm-multi", "vllm-single")
CARD = "a100-80gb-sxm"
NETWORK = "a100-dgx"  # eight GPUs of a node, joined by NVLink (the paper: 600 GB/s both ways)
NODE_GPUS = 8
MEMORY_SHARE = 0.9  # of a GPU for weights and KV cache: vLLM's default
ETHERNET = 125e6  # bytes/s between nodes: the paper's cluster
ETHERNET_SECONDS = 50e-6  # of a message over TCP in a data centre (inferred)
DISPATCHES: dict[str, Callable[[], Dispatcher]] = {"in turn": RoundRobin, "by tokens": LeastTokens}
MODEL = "llama-2-7b"  # on one GPU an instance; 13B has no operator profile
SHAPE = SHAPES[MODEL]
COUNTERS = ("loans", "refused", "dropped", "cancelled", "moved_blocks", "placed_blocks")


@dataclass(frozen=True)
class Setup:
    """A cluster. gpus: in nodes of eight. between_nodes: bytes/s of a node's network card. prefills: whether prompts
    cost time. dispatch: a name of DISPATCHES. fetches: remote keys and values come home in every step, over NVLink.
    """

    gpus: int = 32
    rules: Rules = Rules()
    between_nodes: float = ETHERNET
    prefills: bool = False
    dispatch: str = "in turn"
    fetches: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest request that lending instances can hold together."""
        alone = kv_tokens(1)
        return alone + int(min(self.gpus - 1, self.rules.most_parts) * self.rules.most_lent * alone)


def kv_tokens(gpus: int) -> int:
    """KV tokens of an instance on so many GPUs."""
    free = MEMORY_SHARE * device(CARD).memory_bytes * gpus - SHAPE.weight_bytes()
    return int(free / SHAPE.kv_bytes_per_token())


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Tokens/s over the whole run; shares of all requests that came to their end, and of blocks that
    were remote. exact: no block was lost or made.
    """

    throughput: float
    served: float
    finished: int
    trace: Trace | None
    mean_batch: float
    loans: int = 0
    refused: int = 0
    dropped: int = 0
    cancelled: int = 0
    moved_blocks: int = 0
    placed_blocks: int = 0
    remote_share: float = 0.0
    exact: bool = True


def run(workload: Workload, system: str, setup: Setup, most: float = 0.98) -> Outcome:
    """Serve a workload. Requests that a system can never hold are left out and counted as not served.

    most: share of the memory that a request may fill; what is left is for watermarks and partly filled blocks.

    Raises ValueError for an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; one of {', '.join(SYSTEMS)}")
    capacity = {
        "infinite": setup.longest,
        "vllm-multi": kv_tokens(1),
        "vllm-single": kv_tokens(setup.gpus),
    }[system]
    fits = workload.prompt + workload.output <= most * capacity
    served = Workload(workload.arrival[fits], workload.prompt[fits], workload.output[fits])
    instances: list[Instance] = []
    lending: list[Lending] = []

    def build(loop: EventLoop) -> System:
        if system == "vllm-single":
            instances.append(single(loop, setup))
            return instances[0]
        lenders = [lender(loop, name, setup) for name in range(setup.gpus)]
        instances.extend(lenders)
        if system == "infinite":
            lending.append(lending_over(loop, lenders, SHAPE, 1, setup.rules, setup.between_nodes))
        return Replicas(lenders, DISPATCHES[setup.dispatch]())

    trace = simulate(served, build)
    seconds = float(trace.finish.max() - trace.arrival.min())
    finished = int(np.isfinite(trace.finish).sum())
    counted = {} if not lending else _counted(lending[0])
    return Outcome(
        float(served.output.sum()) / seconds,
        finished / len(workload),
        finished,
        trace,
        float(served.output.sum()) / sum(one.iterations for one in instances),
        **counted,
    )


def _counted(book: Lending) -> dict[str, Any]:
    counted: dict[str, Any] = {name: getattr(book, name) for name in COUNTERS}
    remote = float(np.mean(book.remote_share)) if book.remote_share else 0.0
    return counted | {"remote_share": remote, "exact": conserved(book)}


def longest_served(setup: Setup, system: str, output: int = 16) -> int:
    """Tokens of the longest request that an idle cluster serves to its end, to the percent of what fits in theory."""
    held = setup.longest if system == "infinite" else kv_tokens(1)
    for percent in range(100, 0, -1):
        tokens = held * percent // 100
        try:
            alone = run(
                Workload(np.zeros(1), np.array([tokens - output]), np.array([output])), system, setup, 1.0
            )
        except (ValueError, RuntimeError):  # it was refused, or never found enough blocks
            continue
        assert alone.served == 1.0
        return tokens
    raise ValueError(f"{system} serves no request of {output} tokens")


def conserved(book: Lending) -> bool:
    """After the last request: every block that nobody lent or borrowed is free."""
    for one in book.instances:
        borrowed, lent = sum(one.manager.borrowed.values()), sum(one.manager.lent.values())
        if one.memory.free != one.manager.blocks + borrowed - lent:
            return False
    return True


def lender(loop: EventLoop, name: int, setup: Setup) -> Lender:
    """One instance, which lends only if somebody asks."""
    nvlink = link(device(CARD).interconnect)
    home = SHAPE.kv_bytes_per_token() / (nvlink.bytes_per_s * nvlink.usable)
    base = profiled_latency(MODEL, "a100", 1, network=NETWORK)
    times = LendingLatency(base, setup.prefills, home if setup.fetches else None)
    return Lender(loop, name, name // NODE_GPUS, times, kv_tokens(1))


def lending_over(
    loop: EventLoop, lenders: list[Lender], shape: ModelShape, gpus: int, rules: Rules, between_nodes: float
) -> Lending:
    """The global manager over instances of `gpus` A100s, with NVLink inside a node; between_nodes: bytes/s."""
    # a query in bf16 goes out; a weighted sum, a maximum and a total come back in the same format
    sent = 2.0 * shape.heads * (2 * shape.head_dim + 2)
    nvlink = link(device(CARD).interconnect)
    within = Wire(nvlink.bytes_per_s * nvlink.usable, send(NETWORK, 2, 1024.0))
    across = Wire(between_nodes, ETHERNET_SECONDS)
    block_bytes = float(BLOCK_TOKENS * shape.kv_bytes_per_token())
    exchange = Exchange(shape.layers, sent, block_bytes, within, across)
    return Lending(loop, lenders, rules, exchange, device(CARD).bandwidth * gpus)


def single(loop: EventLoop, setup: Setup) -> Instance:
    """vLLM-single: the whole cluster as one instance."""
    tensor = min(NODE_GPUS, setup.gpus)
    stages = setup.gpus // tensor
    cable = Cable("cluster-ethernet", setup.between_nodes, 1.0, "network", "the paper's cluster")
    latency = profiled_latency(MODEL, "a100", tensor, stages, network=NETWORK, across=cable)
    times = latency if setup.prefills else Prefilled(latency)
    memory = PagedMemory(kv_tokens(setup.gpus), BLOCK_TOKENS)
    return Instance(loop, times, memory, PrefillFirst())


class Prefilled:
    """A latency model whose prompts cost nothing: requests arrive prefilled."""

    def __init__(self, base) -> None:  # type: ignore[no-untyped-def]
        self.base = base
        self.stages = base.stages

    def iteration(self, chunks, decodes, context):  # type: ignore[no-untyped-def]
        """See LatencyModel."""
        return self.base.iteration([], decodes, context) if decodes else (0.0, 0.0)

    def decode_line(self, decodes, context):  # type: ignore[no-untyped-def]
        """See LatencyModel."""
        return self.base.decode_line(decodes, context)
