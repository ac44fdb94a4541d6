"""The systems of the serving bake-off, each built from its paper's own package on the terms that all share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from common.hardware.specs import gpu as device
from common.hardware.specs import link
from common.serving.batch import Scheduler
from common.serving.cluster import LeastLoad, Replicas
from common.serving.engine import Instance, System
from common.serving.loop import EventLoop
from common.serving.memory import KVMemory, PagedMemory, ReservedMemory
from common.serving.profiled import CARDS, SHAPES, ProfiledLatency, profiled_latency
from common.serving.schedulers import ChunkedPrefill, IterationLevel, PrefillFirst, RequestLevel
from papers.distserve.deployment import Parallelism, Placement, Profile, disaggregated

MEMORY_SHARE = 0.9  # of a GPU for weights and KV cache: vLLM's default gpu_memory_utilization
MAX_SEQUENCES = 256  # of a batch: vLLM's default max_num_seqs
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
    @cache
    def of(model: str, gpu: str, tensor_parallel: int, instances: int) -> "Terms":
        """The terms of a model on GPUs with an operator profile."""
        shape, card = SHAPES[model], device(CARDS[gpu])
        free = MEMORY_SHARE * card.memory_bytes * tensor_parallel - shape.weight_bytes()
        latency = profiled_latency(model, gpu, tensor_parallel)
        return Terms(latency, int(free / shape.kv_bytes_per_token()), tensor_parallel, instances, card.name)


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


SYSTEMS: dict[str, Build] = {
    "vLLM": partial(replicas, scheduler=PrefillFirst, memory=PagedMemory),
    "static": partial(replicas, scheduler=partial(RequestLevel, 32), memory=ReservedMemory),
    "Orca": partial(replicas, scheduler=IterationLevel, memory=partial(ReservedMemory, longest=LONGEST)),
    "Sarathi-Serve": partial(replicas, scheduler=partial(ChunkedPrefill, 512), memory=PagedMemory),
    "DistServe": distserve,
}

# What each of them is, in a line, for the reader of the table.
ABOUT: dict[str, str] = {
    "vLLM": "waiting prompts run first and alone, else everybody decodes; paged memory",
    "static": "request-level batches of up to 32: nobody joins or leaves before the longest is done",
    "Orca": "iteration-level batches, whole prompts beside decodes; every request reserves the longest length",
    "Sarathi-Serve": "chunked prefills beside all decodes, 512 tokens an iteration",
    "DistServe": "prefill and decode on different instances, split for the best goodput; caches move over NVLink",
}
