"""32 A100s serve one trace three ways: instances that lend, instances that don't, or one instance over all GPUs.

infinite       one model replica an instance, round-robin dispatch, memory lent between them
vllm-multi     the same instances without lending; a request longer than an instance's memory cannot be served
vllm-single    all GPUs hold one model: tensor parallel inside a node, pipeline stages across (its best legal layout,
               for all-reduces over the slow network between nodes would take most of an iteration)
"""

from dataclasses import dataclass

import numpy as np

from common.hardware.specs import Link as Cable
from common.hardware.specs import gpu as device
from common.hardware.specs import link
from common.serving.cluster import Replicas, RoundRobin
from common.serving.engine import Instance, System, simulate
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.models import ModelShape
from common.serving.profiled import SHAPES, profiled_latency, send
from common.serving.schedulers import PrefillFirst
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.infinite_llm.lending import BLOCK_TOKENS, Exchange, Lender, Lending, LendingLatency, Rules, Wire

SYSTEMS = ("infinite", "vllm-multi", "vllm-single")
CARD = "a100-80gb-sxm"
NETWORK = "a100-dgx"  # eight GPUs of a node, joined by NVLink (the paper: 600 GB/s both ways)
NODE_GPUS = 8
MEMORY_SHARE = 0.9  # of a GPU for weights and KV cache: vLLM's default
ETHERNET = 125e6  # bytes/s between nodes: the paper's cluster
ETHERNET_SECONDS = 50e-6  # of a message over TCP in a data centre (inferred)
GPUS_OF = {"llama-2-7b": 1, "llama-2-70b": 8}  # of an instance (inferred); 13B has no operator profile


@dataclass(frozen=True)
class Setup:
    """A cluster. gpus: in nodes of eight. wire_bytes_per_s: between nodes. prefills: whether prompts cost time."""

    model: str = "llama-2-7b"
    gpus: int = 32
    rules: Rules = Rules()
    between_nodes: float = ETHERNET
    prefills: bool = False

    @property
    def instance_gpus(self) -> int:
        return GPUS_OF[self.model]

    @property
    def instances(self) -> int:
        return self.gpus // self.instance_gpus

    def kv_tokens(self, gpus: int) -> int:
        """KV tokens of an instance on so many GPUs."""
        shape = SHAPES[self.model]
        free = MEMORY_SHARE * device(CARD).memory_bytes * gpus - shape.weight_bytes()
        return int(free / shape.kv_bytes_per_token())


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Tokens/s over the whole run; shares of requests served, and of blocks that were remote."""

    throughput: float
    served: float
    trace: Trace
    mean_batch: float
    loans: int = 0
    refused: int = 0
    cancelled: int = 0
    moved_blocks: int = 0
    remote_share: float = 0.0
    exact: bool = True  # no block lost or made, at the end


def run(workload: Workload, system: str, setup: Setup) -> Outcome:
    """Serve a workload. Requests that a system can never hold are left out and counted as not served.

    Raises ValueError for an unknown system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; one of {', '.join(SYSTEMS)}")
    capacity = {
        "infinite": setup.kv_tokens(setup.instance_gpus) * setup.instances,
        "vllm-multi": setup.kv_tokens(setup.instance_gpus),
        "vllm-single": setup.kv_tokens(setup.gpus),
    }[system]
    fits = workload.prompt + workload.output <= 0.98 * capacity  # the watermark, and partly filled blocks
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
        return Replicas(lenders, RoundRobin())

    trace = simulate(served, build)
    seconds = float(trace.finish.max() - trace.arrival.min())
    iterations = sum(one.iterations for one in instances)
    outcome = Outcome(
        float(served.output.sum()) / seconds,
        float(fits.mean()),
        trace,
        float(served.output.sum()) / iterations,
    )
    if not lending:
        return outcome
    (book,) = lending
    return Outcome(
        outcome.throughput,
        outcome.served,
        trace,
        outcome.mean_batch,
        book.loans,
        book.refused,
        book.cancelled,
        book.moved_blocks,
        float(np.mean(book.remote_share)) if book.remote_share else 0.0,
        conserved(book),
    )


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
    return Lender(loop, name, node, LendingLatency(latency, setup.prefills), setup.kv_tokens(gpus))


def lend_between(loop: EventLoop, lenders: list[Lender], setup: Setup) -> Lending:
    """The global manager over instances, with NVLink inside a node and Ethernet between nodes."""
    return lending_over(loop, lenders, SHAPES[setup.model], setup.rules, setup.between_nodes)


def lending_over(
    loop: EventLoop, lenders: list[Lender], shape: ModelShape, rules: Rules, between_nodes: float
) -> Lending:
    """The same for any model; between_nodes: bytes/s."""
    # a query in bf16 goes out; a weighted sum, a maximum and a total come back in the same format
    exchange = Exchange(shape.layers, 2.0 * shape.heads * (2 * shape.head_dim + 2))
    nvlink = link(device(CARD).interconnect)
    within = Wire(nvlink.bytes_per_s * nvlink.usable, send(NETWORK, 2, 1024.0))
    across = Wire(between_nodes, ETHERNET_SECONDS)
    block_bytes = float(BLOCK_TOKENS * shape.kv_bytes_per_token())
    return Lending(loop, lenders, rules, exchange, block_bytes, (within, across))


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
