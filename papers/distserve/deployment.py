"""What can be deployed: a model with its latencies and memory, parallelism per phase, a placement of both."""

from collections.abc import Callable
from dataclasses import dataclass

from common.serving.batch import Scheduler
from common.serving.cluster import LeastLoad, Replicas
from common.serving.engine import Instance, System
from common.serving.latency import LatencyModel
from common.serving.link import Link
from common.serving.loop import DOWNSTREAM, UPSTREAM, EventLoop
from common.serving.memory import PagedMemory
from common.serving.models import ModelShape
from common.serving.schedulers import PrefillFirst
from common.serving.sequence import Sequence
from papers.distserve.disaggregation import DecodeBatches, Disaggregated, PrefillBatches, SharedGpus

Build = Callable[[EventLoop], System]


@dataclass(frozen=True, order=True)
class Parallelism:
    """How one instance splits the model: `tensor` ways inside each layer (intra-op), `stages` of layers (inter-op)."""

    tensor: int
    stages: int = 1

    @property
    def gpus(self) -> int:
        return self.tensor * self.stages

    def __str__(self) -> str:
        return f"TP{self.tensor}" + (f"xPP{self.stages}" if self.stages > 1 else "")


@dataclass(frozen=True)
class Placement:
    """`units` copies of (`prefills` prefill instances, `decodes` decode instances); a unit shares its links."""

    prefill: Parallelism
    decode: Parallelism
    prefills: int = 1
    decodes: int = 1
    units: int = 1

    @property
    def gpus(self) -> int:
        """All GPUs, those of both phases."""
        return self.units * (self.prefills * self.prefill.gpus + self.decodes * self.decode.gpus)

    def __str__(self) -> str:
        unit = f"{self.prefills}x prefill {self.prefill} + {self.decodes}x decode {self.decode}"
        return unit if self.units == 1 else f"{self.units} x ({unit})"


@dataclass(frozen=True)
class Profile:
    """A model on a kind of GPU under an engine: everything that instances are built from.

    latency: of one instance by its parallelism; raises KeyError where there is none. kv_tokens: its KV capacity
    in tokens, None where the model does not fit. prefill_tokens: the paper's L_m.
    """

    shape: ModelShape
    latency: Callable[[Parallelism], LatencyModel]
    kv_tokens: Callable[[Parallelism], int | None]
    prefill_tokens: int
    link_bytes_per_s: float
    shared_link: bool = False  # all decode instances pull over one wire (a node's network card)
    overlap: float = 0.0  # share of a prompt's prefill time that hides its copy (layer-wise streaming)
    max_sequences: int = (
        1024  # of a decode batch, of either system (authors' artifact, 2-start-api-server.py)
    )
    waiting_share: float = 0.05  # waiting_block_prop_threshold of the published engine
    block_tokens: int = 16
    host_gbytes_per_s: float = 25.0  # device to host, PCIe 4.0 x16 in practice; only swapping pays it
    records_tokens: bool = False  # of every token when it came out, not only of the first and the last

    def parallelisms(self, tensor: list[int], stages: list[int], gpus: int) -> list[Parallelism]:
        """Those of tensor x stages that have published latencies, fit the model, and use at most `gpus`."""
        feasible = []
        for parallelism in (Parallelism(t, p) for t in tensor for p in stages):
            if parallelism.gpus > gpus or self.kv_tokens(parallelism) is None:
                continue
            if self.shape.heads % parallelism.tensor or self.shape.layers % parallelism.stages:
                continue
            try:
                self.latency(parallelism)
            except KeyError:
                continue
            feasible.append(parallelism)
        return feasible

    def memory(self, parallelism: Parallelism, watermark: float) -> PagedMemory:
        """The KV memory of an instance. Raises ValueError where the model does not fit."""
        tokens = self.kv_tokens(parallelism)
        if tokens is None:
            raise ValueError(f"{self.shape.name} does not fit on {parallelism}; choose more GPUs")
        return PagedMemory(tokens, self.block_tokens, watermark)

    def swap_seconds_per_block(self, parallelism: Parallelism) -> float:
        """Seconds to swap a block of one instance, whose GPUs copy their shards side by side."""
        size = self.block_tokens * self.shape.kv_bytes_per_token()
        return size / (self.host_gbytes_per_s * 1e9 * parallelism.gpus)


UNBOUNDED_HOST = 2**40  # blocks; a decode instance cannot recompute, so its swap space must not run out


def prefill_instance(
    profile: Profile, parallelism: Parallelism, loop: EventLoop, on_prefilled: Callable[[Sequence], None]
) -> Instance:
    """One instance of the prefill phase."""
    return Instance(
        loop,
        profile.latency(parallelism),
        profile.memory(parallelism, watermark=0.0),
        PrefillBatches(profile.prefill_tokens),
        on_prefilled=on_prefilled,
        rank=UPSTREAM,
        records_tokens=profile.records_tokens,
    )


def decode_instance(
    profile: Profile, parallelism: Parallelism, loop: EventLoop, on_begin: Callable[[], None]
) -> Instance:
    """One instance of the decode phase."""
    return Instance(
        loop,
        profile.latency(parallelism),
        profile.memory(parallelism, watermark=0.0),
        DecodeBatches(profile.max_sequences),
        on_begin=on_begin,
        rank=DOWNSTREAM,
        host_blocks=UNBOUNDED_HOST,
        swap_seconds_per_block=profile.swap_seconds_per_block(parallelism),
        records_tokens=profile.records_tokens,
    )


def disaggregated(profile: Profile, placement: Placement, loop: EventLoop) -> "Units":
    """The system of a placement, phases on different GPUs."""
    prefill_latency = profile.latency(placement.prefill)
    shared = Link(profile.link_bytes_per_s)

    def hidden_seconds(tokens: int) -> float:
        if not profile.overlap:
            return 0.0
        return profile.overlap * prefill_latency.iteration([(tokens, 0)], 0, 0)[0]

    def unit() -> Disaggregated:
        return Disaggregated(
            loop,
            lambda done: prefill_instance(profile, placement.prefill, loop, done),
            placement.prefills,
            lambda done: decode_instance(profile, placement.decode, loop, done),
            [
                shared if profile.shared_link else Link(profile.link_bytes_per_s)
                for _ in range(placement.decodes)
            ],
            profile.shape.kv_bytes_per_token(),
            profile.waiting_share,
            hidden_seconds,
        )

    return Units([unit() for _ in range(placement.units)])


class Units:
    """Equal disaggregated units; a request goes to the one whose prefill instances have the least to do."""

    def __init__(self, units: list[Disaggregated]) -> None:
        self.units = units

    def submit(self, sequence: Sequence) -> None:
        if len(self.units) == 1:
            self.units[0].submit(sequence)
        else:
            min(self.units, key=lambda u: min(i.unfinished() for i in u.prefills)).submit(sequence)


class PrefillOnly:
    """The prefill phase on its own: a request ends with its first token, and its cache is dropped."""

    def __init__(self, profile: Profile, parallelism: Parallelism, loop: EventLoop) -> None:
        self.loop = loop
        self.instance = prefill_instance(profile, parallelism, loop, self._drop)

    def submit(self, sequence: Sequence) -> None:
        self.instance.submit(sequence)

    def _drop(self, sequence: Sequence) -> None:
        sequence.finish = self.loop.now
        self.instance.release(sequence.blocks)


def decode_only(profile: Profile, parallelism: Parallelism, loop: EventLoop) -> Disaggregated:
    """The decode phase on its own: requests arrive prefilled and are pulled over the link."""
    return Disaggregated(
        loop,
        lambda done: prefill_instance(profile, parallelism, loop, done),
        0,
        lambda done: decode_instance(profile, parallelism, loop, done),
        [Link(profile.link_bytes_per_s)],
        profile.shape.kv_bytes_per_token(),
        profile.waiting_share,
    )


def colocated(
    profile: Profile,
    parallelism: Parallelism,
    replicas: int,
    loop: EventLoop,
    scheduler: Callable[[], Scheduler] = PrefillFirst,
    watermark: float = 0.01,
) -> Replicas:
    """Both phases on every replica, each new request on the one with the fewest.

    By default as vLLM serves: prompts first and alone, recompute on overflow, a watermark of 0.01 (its default).
    """
    return Replicas(
        [
            Instance(
                loop,
                profile.latency(parallelism),
                profile.memory(parallelism, watermark),
                scheduler(),
                host_blocks=UNBOUNDED_HOST,
                swap_seconds_per_block=profile.swap_seconds_per_block(parallelism),
            )
            for _ in range(replicas)
        ],
        LeastLoad(),
    )


def shared_gpus(profile: Profile, parallelism: Parallelism, replicas: int, loop: EventLoop) -> Replicas:
    """The method without its idea: its own batches of both phases, on the same GPUs."""

    def scheduler() -> SharedGpus:
        return SharedGpus(PrefillBatches(profile.prefill_tokens), profile.max_sequences)

    return colocated(profile, parallelism, replicas, loop, scheduler, watermark=0.0)
