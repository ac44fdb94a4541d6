"""Latencies from the operator profiles that Vidur's authors measured on A100 and H100 servers.

An iteration is, layer after layer: the measured operators of a layer for its tokens (norms, projections, rotation,
MLP, residual), measured all-reduces, and attention, which is analytic here because the profile's attention tables
are too large to keep. Two constants of that part are inferred and say so below. On top come the embedding
(measured), the output head (its weights read once) and a fixed host overhead an iteration. A model without a
profile of its own takes a sibling's, scaled; see `SIBLINGS`.

Sources of the tables: the first lines of profiled_layers.csv and profiled_transfers.csv.
"""

import csv
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from common.hardware.collective import all_reduce_seconds
from common.hardware.specs import GPU, Link
from common.hardware.specs import gpu as device
from common.serving.latency import INFINITY, Line
from common.serving.models import MODELS, ModelShape

LAYERS = Path(__file__).with_name("profiled_layers.csv")
TRANSFERS = Path(__file__).with_name("profiled_transfers.csv")
DTYPE_BYTES = 2  # bfloat16

# (inferred) what attention kernels reach of the data sheet's rates on A100
ATTENTION_FLOPS_SHARE = 0.45  # of dense bf16 FLOP/s, FlashAttention over a chunk
ATTENTION_BANDWIDTH_SHARE = 0.7  # of memory bandwidth, reading keys and values
# Host work of an iteration in DistServe's published simulator; latency.py quotes the same number. Engines that
# launch kernel by kernel from Python need more: 22 ms would explain the smallest batches of test_profiled.py.
HOST_SECONDS = 2e-3

_SHAPES = (
    # 01-ai/Yi-34B and codellama/CodeLlama-34b-hf on the Hub
    ModelShape("yi-34b", 60, 7168, 56, 8, 128, 20480, gated=True, vocab=64000, tied=False),
    ModelShape("codellama-34b", 48, 8192, 64, 8, 128, 22016, gated=True, vocab=32000, tied=False),
)
SHAPES: dict[str, ModelShape] = {**MODELS, **{shape.name: shape for shape in _SHAPES}}

# Whose profile a model without its own takes. A layer's time is scaled by the ratio of the layers' parameters: both
# its FLOPs and the weight bytes it reads follow it (inferred). Mistral-7B's layers are those of Llama-3-8B.
SIBLINGS = {
    "mistral-7b": "llama-3-8b",
    "yi-34b": "codellama-34b",
    "falcon-180b": "llama-2-70b",
    "llama-3-70b": "llama-2-70b",
}
# Attention and MLP of Falcon run side by side and are summed once (microsoft/sarathi-serve, models/falcon.py).
ALL_REDUCES = {"falcon-180b": 1}

# What stands behind a name of the profiles: the card, and the GPUs that share a node and its fast links.
CARDS = {"a100": "a100-80gb-sxm", "h100": "h100-sxm"}
NETWORKS = {"a100-dgx": 8, "a100-pairwise-nvlink": 4, "h100-dgx": 8}


@dataclass(frozen=True, eq=False)
class Curve:
    """Seconds over a size (tokens or bytes): linear between the measured sizes, the ends' own laws beyond them."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def __call__(self, size: float) -> float:
        """The smallest measured size's time below it; above the largest, in proportion to it."""
        place = bisect_left(self.sizes, size)
        if place == 0:
            return self.seconds[0]
        if place == len(self.sizes):
            return self.seconds[-1] * size / self.sizes[-1]
        left, right = self.sizes[place - 1], self.sizes[place]
        low, high = self.seconds[place - 1], self.seconds[place]
        return low + (high - low) * (size - left) / (right - left)


def _curves(path: Path, keys: tuple[str, ...], size: str, value: str) -> dict[tuple[str, ...], Curve]:
    points: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            points[tuple(row[key] for key in keys)].append((float(row[size]), float(row[value]) / 1e3))
    return {key: Curve(*zip(*rows, strict=True)) for key, rows in points.items()}  # type: ignore[arg-type]


@cache
def layer_curves(value: str = "layer_ms") -> dict[tuple[str, ...], Curve]:
    """Curves over tokens by (gpu, model, tensor-parallel degree as text); value: layer_ms or embedding_ms."""
    return _curves(LAYERS, ("gpu", "model", "tensor_parallel"), "tokens", value)


@cache
def transfer_curves() -> dict[tuple[str, ...], Curve]:
    """Curves over bytes by (network, all_reduce or send_recv, GPUs, GPUs a node), the last two as text."""
    return _curves(TRANSFERS, ("network", "kind", "workers", "per_node"), "bytes", "ms")


def all_reduce(network: str, gpus: int, reduced: float, across: Link | None = None) -> float:
    """Seconds to sum `reduced` bytes over `gpus` GPUs, which fill one node after another.

    across: the link between nodes; a group on several nodes then follows NCCL's cost model over it (collective.py).
    Without it the profile's own measurement across nodes is taken. Raises KeyError for a network or a group without
    a profile.
    """
    if gpus == 1:
        return 0.0
    per_node = min(gpus, _node(network))
    if across is not None and gpus > per_node:
        return all_reduce_seconds(across, reduced, gpus)
    return _found(transfer_curves(), (network, "all_reduce", str(gpus), str(per_node)))(reduced)


def send(network: str, gpus: int, sent: float, across: Link | None = None) -> float:
    """Seconds to send `sent` bytes from one GPU to another, in a node if it holds all `gpus`, else to the next node."""
    if gpus <= _node(network):
        return _found(transfer_curves(), (network, "send_recv", "2", "2"))(sent)
    if across is not None:
        return across.transfer_seconds(sent)
    return _found(transfer_curves(), (network, "send_recv", "2", "1"))(sent)


def _node(network: str) -> int:
    if network not in NETWORKS:
        raise KeyError(f"no profiled network {network!r}; there is {', '.join(NETWORKS)}")
    return NETWORKS[network]


def _found(curves: dict[tuple[str, ...], Curve], key: tuple[str, ...]) -> Curve:
    if key not in curves:
        known = sorted(" ".join(other) for other in curves if other[0] == key[0]) or sorted(
            {other[0] for other in curves}
        )
        raise KeyError(f"no profile of {' '.join(key)}; there is {', '.join(known)}")
    return curves[key]


@dataclass(frozen=True, eq=False)
class ProfiledLatency:
    """LatencyModel from the profiles, of a model on `tensor_parallel` GPUs a stage and `stages` pipeline stages.

    Every chunk is counted as drawing one token. With stages, each holds layers / stages (rounded up), all stages
    are given the embedding or the head, whichever takes longer, and each but the first waits for its input. Where
    `attention` is False attention is free, and where `rereads` is False a chunk does not read earlier keys again.
    """

    shape: ModelShape
    gpu: GPU
    network: str
    tensor_parallel: int
    stages: int
    host_seconds: float
    layer: Curve  # over tokens, of the profiled model
    embedding: Curve
    scale: float  # of a layer over the profiled one
    across: Link | None = None  # between nodes
    attention: bool = True
    rereads: bool = True
    _linear: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _sent: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _lines: dict[int, Line] = field(default_factory=dict, init=False, repr=False)

    @property
    def stage_layers(self) -> int:
        """Layers of the fullest stage."""
        return math.ceil(self.shape.layers / self.stages)

    @property
    def _kv_seconds(self) -> float:
        """Seconds to read the keys and values of one token in one layer."""
        heads = max(1.0, self.shape.kv_heads / self.tensor_parallel)
        read = 2 * heads * self.shape.head_dim * DTYPE_BYTES
        return read / (ATTENTION_BANDWIDTH_SHARE * self.gpu.bandwidth) if self.attention else 0.0

    def linear_seconds(self, tokens: int) -> float:
        """Seconds of one layer without attention, with its all-reduces."""
        if tokens not in self._linear:
            reduced = DTYPE_BYTES * tokens * self.shape.hidden
            times = ALL_REDUCES.get(self.shape.name, 2)
            seconds = self.scale * self.layer(tokens)
            self._linear[tokens] = seconds + times * all_reduce(
                self.network, self.tensor_parallel, reduced, self.across
            )
        return self._linear[tokens]

    def chunk_attention_seconds(self, chunk: int, cached: int) -> float:
        """Seconds of one layer's causal attention of `chunk` tokens after `cached` ones (Section 4 of Sarathi-Serve).

        4 heads head_dim (cached chunk + chunk^2 / 2) FLOPs, and reading the cached keys and values once more.
        """
        if not self.attention:
            return 0.0
        width = self.shape.heads * self.shape.head_dim / self.tensor_parallel
        flops = 4 * width * (cached * chunk + chunk * chunk / 2)
        seconds = flops / (ATTENTION_FLOPS_SHARE * self.gpu.flops)
        return seconds + (self._kv_seconds * cached if self.rereads else 0.0)

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        tokens = decodes
        seconds = self._kv_seconds * context if decodes else 0.0
        for new, cached in chunks:
            tokens += new
            seconds += self.chunk_attention_seconds(new, cached)
        seconds = self.stage_layers * (seconds + self.linear_seconds(tokens))
        stage = seconds + self._ends(tokens)
        if self.stages == 1:
            return stage + self.host_seconds, 0.0
        return stage + self.host_seconds, stage + self._send(tokens)

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel: one line for every context."""
        if decodes not in self._lines:
            rest = self.stage_layers * self.linear_seconds(decodes) + self._ends(decodes) + self.host_seconds
            self._lines[decodes] = Line(rest, self.stage_layers * self._kv_seconds, INFINITY)
        return self._lines[decodes]

    def _ends(self, tokens: int) -> float:
        """Embedding the tokens, and reading the output head's weights; the slower of the two in a pipeline."""
        head = DTYPE_BYTES * self.shape.vocab * self.shape.hidden / self.tensor_parallel
        last = head / (ATTENTION_BANDWIDTH_SHARE * self.gpu.bandwidth)
        first = self.embedding(tokens)
        return first + last if self.stages == 1 else max(first, last)

    def _send(self, tokens: int) -> float:
        """Each GPU hands all hidden values on to its partner in the next stage, as Megatron does."""
        if tokens not in self._sent:
            sent = DTYPE_BYTES * tokens * self.shape.hidden
            self._sent[tokens] = send(self.network, self.tensor_parallel * self.stages, sent, self.across)
        return self._sent[tokens]


def profiled_latency(
    model_name: str,
    gpu: str = "a100",
    tensor_parallel: int = 1,
    stages: int = 1,
    network: str | None = None,
    *,
    across: Link | None = None,
    host_seconds: float = HOST_SECONDS,
    attention: bool = True,
    rereads: bool = True,
) -> ProfiledLatency:
    """The latency model of `model_name` in SHAPES on "a100" or "h100" GPUs.

    network: a name of NETWORKS; by default "a100-pairwise-nvlink" (nodes of four GPUs, as Sarathi-Serve ran on) or
    "h100-dgx". across: the link between nodes, instead of the profile's own measurements. host_seconds: fixed cost
    of an iteration. Raises KeyError naming what there is, for a model, GPU, degree or network without a profile,
    ValueError for more stages than layers.
    """
    if model_name not in SHAPES:
        raise KeyError(f"no model {model_name!r}; there is {', '.join(SHAPES)}")
    if gpu not in CARDS:
        raise KeyError(f"no profiled GPU {gpu!r}; there is {', '.join(CARDS)}")
    shape = SHAPES[model_name]
    if not 1 <= stages <= shape.layers:
        raise ValueError(f"{model_name} has {shape.layers} layers: {stages} stages do not fit")
    profiled = SHAPES[SIBLINGS.get(model_name, model_name)]
    key = (gpu, profiled.name, str(tensor_parallel))
    chosen = network or ("a100-pairwise-nvlink" if gpu == "a100" else "h100-dgx")
    _node(chosen)
    all_reduce(chosen, tensor_parallel, 1.0, across)  # raises now rather than in the midst of a simulation
    return ProfiledLatency(
        shape,
        device(CARDS[gpu]),
        chosen,
        tensor_parallel,
        stages,
        host_seconds,
        _found(layer_curves(), key),
        layer_curves("embedding_ms")[key],
        _layer_parameters(shape) / _layer_parameters(profiled),
        across,
        attention,
        rereads,
    )


def _layer_parameters(shape: ModelShape) -> int:
    return sum(k * n for _, k, n in shape.linears())
