"""The systems of the serving bake-off, each built from its paper's own package on the terms that all share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bakeoffs.nanoflow_overlap import Overlap, OverlappedLatency
from common.hardware.copies import h100
from common.hardware.specs import gpu as device
from common.hardware.specs import link
from common.serving.batch import Scheduler
from common.serving.cluster import Fleet, LeastLoad, Replicas
from common.serving.engine import Instance, System
from common.serving.loop import EventLoop
from common.serving.memory import KVMemory, PagedMemory, ReservedMemory
from common.serving.profiled import CARDS, SHAPES, ProfiledLatency, profiled_latency
from common.serving.schedulers import IterationLevel, PrefillFirst, RequestLevel
from common.serving.workload import Workload
from papers.distserve.deployment import Parallelism, Placement, Profile, disaggregated
from papers.fastgen.splitfuse import DynamicSplitFuse
from papers.fastswitch.async_swaps import KVLayout
from papers.fastswitch.conversations import Conversations
from papers.fastswitch.deployments import DEPLOYMENTS, HOST_BYTES
from papers.fastswitch.priorities import markov_priorities
from papers.fastswitch.priority_switching import PrioritySwitching
from papers.fastswitch.server import Setup, SwitchingInstance
from papers.infinite_llm.cluster import ETHERNET, NODE_GPUS, lending_over
from papers.infinite_llm.lending import Lender
from papers.infinite_llm.planning import LendingLatency
from papers.infinite_llm.planning import Rules as LendingRules
from papers.llumnix.global_scheduler import Llumnix
from papers.llumnix.global_scheduler import Setup as Fleets
from papers.llumnix.local_scheduler import PreemptionLoss, PromptsFirst
from papers.nanoflow.dense_batch import DenseBatch
from papers.sarathi_serve.schedulers import StallFree

MEMORY_SHARE = 0.9  # of a GPU for weights and KV cache: vLLM's default gpu_memory_utilization
MAX_SEQUENCES = 256  # of a batch: vLLM's default max_num_seqs
DTYPE_BYTES = 2  # bfloat16
BLOCK_TOKENS = 16  # of a KV block, where a system has blocks
LONGEST = 2048  # tokens of a request: the bound of the length tables


@dataclass(frozen=True)
class Terms:
    """What all systems share: a model with its latency and memory on one instance, and how many instances there are."""

    latency: ProfiledLatency
    kv_tokens: int  # of an instance
    tensor_parallel: int
    instances: int
    card: str  # in common/hardware/specs.py

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.instances

    @staticmethod
    def of(model: str, gpu: str, tensor_parallel: int, instances: int, kv_share: float = 1.0) -> "Terms":
        """The terms of a model on GPUs with an operator profile. kv_share: of what is free for KV caches."""
        shape, card = SHAPES[model], device(CARDS[gpu])
        free = MEMORY_SHARE * card.memory_bytes * tensor_parallel - shape.weight_bytes()
        latency = profiled_latency(model, gpu, tensor_parallel)
        kv_tokens = int(kv_share * free / shape.kv_bytes_per_token())
        return Terms(latency, kv_tokens, tensor_parallel, instances, card.name)


Build = Callable[[Terms, EventLoop], System]


def replicas(
    terms: Terms, loop: EventLoop, scheduler: Callable[[], Scheduler], memory: Callable[[int], KVMemory]
) -> Replicas:
    """Equal instances behind a dispatcher that looks at the load."""
    return Replicas(
        [
            Instance(loop, terms.latency, memory(terms.kv_tokens), scheduler(), records_tokens=True)
            for _ in range(terms.instances)
        ],
        LeastLoad(),
    )


def distserve(terms: Terms, loop: EventLoop, prefills: int = 0) -> System:
    """Disaggregated: `prefills` instances (0: half) prefill, the others decode and pull caches over NVLink."""
    prefills = prefills or terms.instances // 2
    wire = link(device(terms.card).interconnect)
    profile = Profile(
        terms.latency.shape,
        lambda _: terms.latency,
        lambda _: terms.kv_tokens,
        prefill_tokens=512,
        link_bytes_per_s=wire.bytes_per_s * wire.usable,
        records_tokens=True,
    )
    one = Parallelism(terms.tensor_parallel)
    return disaggregated(profile, Placement(one, one, prefills, terms.instances - prefills), loop)


def llumnix(terms: Terms, loop: EventLoop, migrates: bool) -> System:
    """vLLM's batches behind dispatch by freeness; with `migrates`, running requests move to the freer instances.

    Caches move over the network between machines, at the rate that papers/llumnix assumes for gloo.
    """
    loss = PreemptionLoss()

    def instance() -> Instance:
        memory = PagedMemory(terms.kv_tokens)
        return Instance(loop, terms.latency, memory, PromptsFirst(loss), records_tokens=True)

    block_bytes = BLOCK_TOKENS * terms.latency.shape.kv_bytes_per_token()
    setup = Fleets(migration=migrates, block_bytes=block_bytes, sample_seconds=0.0)
    return Llumnix(loop, Fleet(loop, instance, terms.instances), setup)


def infinite(terms: Terms, loop: EventLoop) -> System:
    """vLLM's batches on instances that lend KV memory: over NVLink in a node of eight GPUs, over Ethernet beyond."""
    per_node = max(1, NODE_GPUS // terms.tensor_parallel)
    lenders = [
        Lender(loop, name, name // per_node, LendingLatency(terms.latency, True), terms.kv_tokens, True)
        for name in range(terms.instances)
    ]
    lending_over(loop, lenders, terms.latency.shape, terms.tensor_parallel, LendingRules(), ETHERNET)
    return Replicas(lenders, LeastLoad())


def switching(terms: Terms, loop: EventLoop, ours: bool, requests: int = 10_000, seed: int = 0) -> System:
    """Priorities that change as FastSwitch's Markov pattern has it, every 50 iterations, and swaps that follow them.

    ours: with FastSwitch's block groups, reuse and asynchronous copies; else as vLLM swaps, a block a call, waited for.
    Every request is a conversation of one turn. Copies cost what was measured on an H100, over the A100's PCIe 4; each
    GPU copies its share of the KV heads over a link of its own.
    """
    shape = terms.latency.shape
    heads = max(1, shape.kv_heads // terms.tensor_parallel)
    layout = KVLayout(shape.layers, BLOCK_TOKENS * heads * shape.head_dim * DTYPE_BYTES)
    setup = Setup(
        kv_blocks=terms.kv_tokens // BLOCK_TOKENS,
        host_blocks=int(HOST_BYTES // layout.size(1)),
        layout=layout,
        to_host=h100("d2h").over_pcie4(),
        to_device=h100("h2d").over_pcie4(),
        memory_bandwidth=device(terms.card).bandwidth,
        groups=ours,
        reuse=ours,
        asynchronous=ours,
    )
    ones, none = np.ones(requests, dtype=np.int64), np.zeros(requests, dtype=np.int64)
    turns = Conversations(Workload(none.astype(float), ones, ones), np.arange(requests), none, none)
    update = markov_priorities(np.random.default_rng(seed), requests)
    frequency = DEPLOYMENTS["qwen-32b"].frequency  # of the paper's larger model
    return Replicas(
        [
            SwitchingInstance(
                loop, terms.latency, setup, turns, PrioritySwitching(update, frequency, MAX_SEQUENCES)
            )
            for _ in range(terms.instances)
        ],
        LeastLoad(),
    )


def nanoflow(terms: Terms, loop: EventLoop, overlap: Overlap | None = None) -> System:
    """Dense batches, whose mixed iterations take the share of their time that `overlap` leaves (None: all of it)."""
    latency = OverlappedLatency(terms.latency, overlap) if overlap else terms.latency
    return Replicas(
        [
            Instance(loop, latency, PagedMemory(terms.kv_tokens), DenseBatch(), records_tokens=True)
            for _ in range(terms.instances)
        ],
        LeastLoad(),
    )


def vattention(terms: Terms, loop: EventLoop, page_bytes: int) -> System:
    """vLLM's batches on contiguous virtual memory whose physical pages are mapped as a request grows."""
    shape = terms.latency.shape
    heads = max(1, shape.kv_heads // terms.tensor_parallel)
    page_tokens = page_bytes // (heads * shape.head_dim * DTYPE_BYTES)
    return replicas(terms, loop, PrefillFirst, partial(PagedMemory, block_tokens=page_tokens))


SYSTEMS: dict[str, Build] = {
    "vLLM": partial(replicas, scheduler=PrefillFirst, memory=PagedMemory),
    "static": partial(replicas, scheduler=partial(RequestLevel, 32), memory=ReservedMemory),
    "Orca": partial(replicas, scheduler=IterationLevel, memory=partial(ReservedMemory, longest=LONGEST)),
    "Sarathi-Serve": partial(replicas, scheduler=partial(StallFree, 512, MAX_SEQUENCES), memory=PagedMemory),
    **{
        f"FastGen {budget}": partial(
            replicas, scheduler=partial(DynamicSplitFuse, budget), memory=partial(PagedMemory, watermark=0.0)
        )
        for budget in (512, 768)
    },
    "DistServe": distserve,
    "INFaaS++": partial(llumnix, migrates=False),
    "Llumnix": partial(llumnix, migrates=True),
    "Infinite-LLM": infinite,
    "vAttention 64 KB": partial(vattention, page_bytes=64 << 10),
    "vAttention 2 MB": partial(vattention, page_bytes=2 << 20),
    "NanoFlow's batches": partial(nanoflow, overlap=None),
    "NanoFlow": nanoflow,
    "vLLM, priorities": partial(switching, ours=False),
    "FastSwitch": partial(switching, ours=True),
}

# What each of them is, in a line, for the reader of the table.
ABOUT: dict[str, str] = {
    "vLLM": "waiting prompts run first and alone, else everybody decodes; paged memory",
    "static": "request-level batches of up to 32: nobody joins or leaves before the longest is done",
    "Orca": "iteration-level batches, whole prompts beside decodes; every request reserves the longest length",
    "Sarathi-Serve": "chunked prefills beside all decodes, 512 tokens an iteration",
    "FastGen 512": "Dynamic SplitFuse: decodes, then split and fused prompts, 512 tokens a pass",
    "FastGen 768": "the same with its authors' default of 768 tokens a pass",
    "DistServe": "prefill and decode on different instances, split for the best goodput; caches move over NVLink",
    "INFaaS++": "vLLM's batches, requests go to the instance with most free memory a request",
    "Llumnix": "the same, and running requests migrate between instances",
    "Infinite-LLM": "vLLM's batches, and instances lend one another KV memory",
    "vAttention 64 KB": "vLLM's batches, KV memory taken in pages of 64 KB a layer; the same kernels for all here",
    "vAttention 2 MB": "the same with the driver's own pages of 2 MB",
    "NanoFlow's batches": "dense batches of 2,048 tokens, ends seen late; without its overlap inside the GPU",
    "NanoFlow": "the same; mixed iterations are shorter by what its pipeline overlaps (simulated)",
    "vLLM, priorities": "requests of high priority run first, and priorities change; swaps a block a call, waited for",
    "FastSwitch": "the same priorities; swaps in groups of blocks, reused and beside computing",
}
