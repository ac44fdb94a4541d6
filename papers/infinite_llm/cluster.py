"""32 A100s serve one trace three ways: instances that lend, instances that don't, or one instance over all GPUs.

infinite       one model replica an instance, round-robin dispatch, memory lent between them
vllm-multi     the same instances without lending; a request longer than an instance's memory cannot be served
vllm-single    all GPUs hold one model: tensor parallel inside a node, pipeline stages across (its best legal layout,
               for all-reduces over the slow network between nodes would take most of an iteration)
"""

from collections.abc import Callable
from dataclasses import dataclass

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
GPUS_OF = {"llama-2-7b": 1, "llama-2-70b": 8}  # of an instance (inferred); 13B has no operator profile


@dataclass(frozen=True)
class Setup:
    """A cluster. gpus: in nodes of eight. between_nodes: bytes/s of a node's network card. prefills: whether prompts
    cost time. dispatch: a name of DISPATCHES. fetches: remote keys and values come home in every step, over NVLink.
    """

    model: str = "llama-2-7b"
    gpus: int = 32
    rules: Rules = Rules()
    between_nodes: float = ETHERNET
    prefills: bool = False
    dispatch: str = "in turn"
    fetches: bool = False

    @property
    def instance_gpus(self) -> int:
        return GPUS_OF[self.model]

    @property
    def instances(self) -> int:
        return self.gpus // self.instance_gpus

    @property
    def longest(self) -> int:
        """Tokens of the longest request that lending instances can hold together."""
        alone = self.kv_tokens(self.instance_gpus)
        return alone + int(min(self.instances - 1, self.rules.most_parts) * self.rules.most_lent * alone)

    def kv_tokens(self, gpus: int) -> int:
        """KV tokens of an instance on so many GPUs."""
        shape = SHAPES[self.model]
        free = MEMORY_SHARE * device(CARD).memory_bytes * gpus - shape.weight_bytes()
        return int(free / shape.kv_bytes_per_token())


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Tokens/s over the whole run; shares of requests served, and of blocks that were remote.

    finished: requests that came to their end.
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
    exact: bool = True  # no block lost or made, at the end


def run(workload: Workload, system: str, setup: Setup, most: float = 0.98) -> Outcome:
    """Serve a workload. Requests that a system can never hold are left out and counted as not served.

    most: share of the memory that a request may fill; what is left is for watermarks and partly filled blocks.

    Raises ValueError for an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; one of {', '.join(SYSTEMS)}")
    capacity = {
        "infinite": setup.longest,
        "vllm-multi": setup.kv_tokens(setup.instance_gpus),
        "vllm-single": setup.kv_tokens(setup.gpus),
    }[system]
    fits = workload.prompt + workload.output <= most * capacity
    served = Workload(workload.arrival[fits], workload.prompt[fits], workload.output[fits])
    instances: list[Instance] = []
    lending: list[Lending] = []

    def build(loop: EventLoop) -> System:
        if system == "vllm-single":
            instances.append(single(loop, setup))
            return instances[0]
        lenders = [lender(loop, name, setup) for name in range(setup.instances)]
        instances.extend(lenders)
        if system == "infinite":
            lending.append(lend_between(loop, lenders, setup))
        return Replicas(lenders, DISPATCHES[setup.dispatch]())

    trace = simulate(served, build)
    seconds = float(trace.finish.max() - trace.arrival.min())
    iterations = sum(one.iterations for one in instances)
    outcome = Outcome(
        float(served.output.sum()) / seconds,
        float(fits.mean()),
        int(np.isfinite(trace.finish).sum()),
        trace,
        float(served.output.sum()) / iterations,
    )
    if not lending:
        return outcome
    (book,) = lending
    return Outcome(
        outcome.throughput,
        outcome.served,
        outcome.finished,
        trace,
        outcome.mean_batch,
        book.loans,
        book.refused,
        book.dropped,
        book.cancelled,
        book.moved_blocks,
        book.placed_blocks,
        float(np.mean(book.remote_share)) if book.remote_share else 0.0,
        conserved(book),
    )


def longest_served(setup: Setup, system: str, output: int = 16) -> int:
    """Tokens of the longest request that an idle cluster serves to its end, to the percent of what fits in theory."""
    held = setup.longest if system == "infinite" else setup.kv_tokens(setup.instance_gpus)
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
    gpus = setup.instance_gpus
    latency = profiled_latency(setup.model, "a100", gpus, network=NETWORK)
    node = name * gpus // NODE_GPUS
    nvlink = link(device(CARD).interconnect)
    home = SHAPES[setup.model].kv_bytes_per_token() / (nvlink.bytes_per_s * nvlink.usable)
    times = LendingLatency(latency, setup.prefills, home if setup.fetches else None)
    return Lender(loop, name, node, times, setup.kv_tokens(gpus))


def lend_between(loop: EventLoop, lenders: list[Lender], setup: Setup) -> Lending:
    """The global manager over instances, with NVLink inside a node and Ethernet between nodes."""
    return lending_over(
        loop, lenders, SHAPES[setup.model], setup.instance_gpus, setup.rules, setup.between_nodes
    )


def lending_over(
    loop: EventLoop, lenders: list[Lender], shape: ModelShape, gpus: int, rules: Rules, between_nodes: float
) -> Lending:
    """The same for any model on instances of `gpus` A100s; between_nodes: bytes/s."""
    # a query in bf16 goes out; a weighted sum, a maximum and a total come back in the same format
    sent = 2.0 * shape.heads * (2 * shape.head_dim + 2)
    nvlink = link(device(CARD).interconnect)
    within = Wire(nvlink.bytes_per_s * nvlink.usable, send(NETWORK, 2, 1024.0))
    across = Wire(between_nodes, ETHERNET_SECONDS)
    block_bytes = float(BLOCK_TOKENS * shape.kv_bytes_per_token())
    exchange = Exchange(shape.layers, sent, within, across)
    return Lending(loop, lenders, rules, exchange, block_bytes, device(CARD).bandwidth * gpus)


def single(loop: EventLoop, setup: Setup) -> Instance:
    """vLLM-single: the whole cluster as one instance."""
    tensor = min(NODE_GPUS, setup.gpus)
    stages = setup.gpus // tensor
    cable = Cable("cluster-ethernet", setup.between_nodes, 1.0, "network", "the paper's cluster")
    latency = profiled_latency(setup.model, "a100", tensor, stages, network=NETWORK, across=cable)
    times = latency if setup.prefills else Prefilled(latency)
    memory = PagedMemory(setup.kv_tokens(setup.gpus), BLOCK_TOKENS)
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
