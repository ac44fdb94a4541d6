"""What serving needs of compute, memory and network (Section 3), and what each operator of a layer takes (Table 2).

    T_mem  = MemSize / MemBW                            an iteration at the largest batch reads the whole memory once
    T_comp = 2 * B_dense * P_model / Compute
    T_net  = 4 * B_dense * D_model * bytes * layers / NetBW     of each GPU: two all-gathers and an all-reduce a layer
    T_R    = T_mem / T_comp                             below 1 serving is bound by compute
    optimum = Compute / (2 * P_model)                   tokens/s of one GPU, with profiled, not peak, compute

Tokens are counted as the paper counts them: prompt and output together. Work is in microseconds of one layer.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.serving.models import MODELS, ModelShape

COMPUTE, MEMORY, NETWORK = "compute", "memory", "network"


@dataclass(frozen=True)
class Accelerator:
    """Bytes, bytes/s of memory, bytes/s of the links (both directions together), dense half-precision FLOP/s."""

    name: str
    memory: float
    bandwidth: float
    network: float
    flops: float


def _card(name: str, gb: float, gb_per_s: float, net_gb_per_s: float, tflops: float) -> Accelerator:
    return Accelerator(name, gb * 1e9, gb_per_s * 1e9, net_gb_per_s * 1e9, tflops * 1e12)


# The thirteen cards of Table 1 (arXiv v2). A100-80, H100 and Ada 6000 as the paper prints them; the others are the
# vendors' data sheets: memory, its bandwidth, links both ways, dense FP16 or BF16. B100 and B200 as announced.
ACCELERATORS = (
    _card("V100", 16, 900, 300, 125),  # NVIDIA V100 data sheet, SXM2
    _card("A100-40", 40, 1555, 600, 312),  # NVIDIA A100 data sheet, SXM
    _card("A100-80", 80, 2000, 600, 312),
    _card("H100", 80, 3352, 900, 989),
    _card("H200", 141, 4800, 900, 989),  # NVIDIA H200 data sheet
    _card("B100", 192, 8000, 1800, 1750),  # NVIDIA Blackwell architecture brief, dense
    _card("B200", 192, 8000, 1800, 2250),  # the same
    _card("MI250", 128, 3277, 800, 362),  # AMD Instinct MI250 data sheet
    _card("MI300X", 192, 5300, 1024, 1307),  # AMD Instinct MI300X data sheet; 8 x 128 GB/s Infinity Fabric
    _card("MI325X", 256, 6000, 1024, 1307),  # AMD Instinct MI325X data sheet
    _card("Gaudi 2", 96, 2450, 600, 432),  # Intel Gaudi 2 white paper; 24 x 100 Gbit/s, both ways
    _card("Gaudi 3", 128, 3700, 1200, 1835),  # Intel Gaudi 3 white paper; 24 x 200 Gbit/s, both ways
    _card("Ada 6000", 48, 960, 64, 182),
)

# deepseek-ai/deepseek-llm-67b-base, config.json on the Hugging Face Hub
_DEEPSEEK = ModelShape("deepseek-67b", 95, 8192, 64, 8, 128, 22016, gated=True, vocab=102400, tied=False)
# Qwen/Qwen2-72B
_QWEN = ModelShape("qwen2-72b", 80, 8192, 64, 8, 128, 29568, gated=True, vocab=152064, tied=False)
# mistralai/Mixtral-8x7B-v0.1
_MIXTRAL = ModelShape(
    "mixtral-8x7b", 32, 4096, 32, 8, 128, 14336, True, 32000, False, experts=8, active_experts=2
)
_LLAMA3 = ModelShape("llama-3-70b", 80, 8192, 64, 8, 128, 28672, gated=True, vocab=128256, tied=False)
SHAPES: dict[str, ModelShape] = {**MODELS, **{s.name: s for s in (_DEEPSEEK, _QWEN, _MIXTRAL, _LLAMA3)}}


@dataclass(frozen=True)
class Deployment:
    """A model on its GPUs with the dense batch (tokens) that NanoFlow gives it: 2,048, and 1,024 for 8B (Section 6)."""

    model: str
    gpus: int = 8
    dense_batch: int = 2048

    @property
    def shape(self) -> ModelShape:
        return SHAPES[self.model]


LLAMA_2_70B = Deployment("llama-2-70b")
DEPLOYMENTS = (
    Deployment("llama-3-70b"),
    Deployment("qwen2-72b"),
    Deployment("deepseek-67b"),
    Deployment("llama-3-8b", 1, 1024),
    Deployment("mixtral-8x7b"),
)

# Tokens/s of one A100 that LLaMA-2-70B could reach at the paper's profiled compute (Section 3.5, and the constant of
# the artifact). 280 TFLOP/s over twice 70e9 would be 2,000; 1,857 is what about 256 TFLOP/s give, and that is also
# what the GEMMs of Table 2 reach.
OPTIMAL_LLAMA_2_70B = 1857.0


def optimal_throughput(model: str) -> float:
    """Tokens/s of one A100 at most: Compute / (2 P), with the compute behind the paper's number for LLaMA-2-70B.

    P counts the parameters that a token passes through (two experts of Mixtral).
    """
    return OPTIMAL_LLAMA_2_70B * SHAPES["llama-2-70b"].parameters / SHAPES[model].active_parameters


def resource_seconds(
    card: Accelerator, deployment: Deployment, batch: int, dtype: int = 2
) -> dict[str, float]:
    """Seconds that an iteration needs of each resource: T_comp, T_mem, T_net (module docstring). batch: tokens.

    A GPU sends what the n - 1 others lack, over its links in one direction: that gives Table 2's 31.33 ms.
    """
    shape, n = deployment.shape, deployment.gpus
    moved = 4 * (n - 1) / n * batch * shape.hidden * dtype * shape.layers
    return {
        COMPUTE: 2 * batch * shape.active_parameters / (card.flops * n),
        MEMORY: card.memory / card.bandwidth,
        NETWORK: moved / (card.network / 2),
    }


def memory_over_compute(card: Accelerator, deployment: Deployment, batch: int) -> float:
    """T_R: below 1 the iteration is bound by compute rather than by memory."""
    seconds = resource_seconds(card, deployment, batch)
    return seconds[MEMORY] / seconds[COMPUTE]


@dataclass(frozen=True)
class Workload:
    """Constant lengths, tokens. In steady state a dense batch of B holds B * output / (prompt + output) decodes."""

    prompt: int
    output: int

    def __post_init__(self) -> None:
        if not (self.prompt >= 0 and self.output >= 0 and 0 < self.prompt + self.output < 10**9):
            raise ValueError(
                f"a workload has tokens, not {self.prompt} of prompt and {self.output} of output"
            )

    @property
    def decode_context(self) -> float:
        """KV tokens that decode attention reads for one token of a dense batch, on average over its tokens."""
        return self.output / (self.prompt + self.output) * (self.prompt + self.output / 2)

    @property
    def prefill_context(self) -> float:
        """The same for prefill attention: a prompt's token sees half the prompt on average."""
        return self.prompt / (self.prompt + self.output) * self.prompt / 2

    def __str__(self) -> str:
        return f"{self.prompt}-{self.output}"


# (compute, memory, network estimate, measured) of LLaMA-2-70B on 8 A100, dense batch 2,048, all 80 layers, ms: Table 2.
TABLE_2: Mapping[str, tuple[float, float, float, float]] = {
    "KQV": (11.01, 1.22, 0.0, 16.08),
    "O": (8.81, 1.01, 0.0, 16.01),
    "UpGate": (61.67, 6.04, 0.0, 69.92),
    "Down": (30.84, 3.11, 0.0, 34.96),
    "DecAttn": (1.47, 28.89, 0.0, 35.60),
    "PfAttn": (0.37, 0.13, 0.0, 4.56),
    "Net": (0.01, 4.70, 31.33, 47.92),
}
TABLE_BATCH = 2048
# The lengths behind Table 2 (inferred): 28.89 ms at 8 x 2 TB/s are 1.41 million tokens of 320 KiB, which is what 1,365
# decodes at 1,024 tokens hold, the steady state of 512-1024; 512-512 holds 0.79 and 1024-512 0.87 million.
TABLE_WORKLOAD = Workload(512, 1024)
GEMMS = ("KQV", "O", "UpGate", "Down")

# A GEMM on another nano-batch reads its weights once more: Table 2's memory time, at the rate that the table's decode
# attention reaches of its own memory time.
REACHED_BANDWIDTH = TABLE_2["DecAttn"][1] / TABLE_2["DecAttn"][3]
# What each further collective costs, microseconds: intercept of a line through Vidur's medians of all-reduces of 4 to
# 34 MB over the 8 A100 of a DGX (microsoft/vidur, data/profiling, MIT; common/serving/profiled_transfers.csv).
COLLECTIVE_US = 60.0


@dataclass(frozen=True)
class Operator:
    """Work of one layer's operator at the whole GPU's speed: fixed + per_token * tokens, microseconds."""

    name: str
    stream: str
    fixed: float
    per_token: float

    def work(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens

    def scaled(self, factor: float) -> "Operator":
        """The same with `factor` times the work."""
        return replace(self, fixed=self.fixed * factor, per_token=self.per_token * factor)

    def on(self, stream: str) -> "Operator":
        """The same on another stream."""
        return replace(self, stream=stream)


# Which operator feeds which (Section 4.1); "AR" is an all-reduce over the GPUs, each half of Table 2's network time.
CHAIN = ("KQV", "Attn", "O", "O.AR", "UpGate", "Down", "D.AR")


def operators(deployment: Deployment, workload: Workload, *, duplication: bool = True) -> dict[str, Operator]:
    """One layer's operators in the chain's order, Table 2 rescaled by FLOPs, bytes and hidden size per GPU.

    duplication: whether another nano-batch costs another read of the weights and another start of a collective;
    without it an operator takes time in proportion to its tokens. Decode and prefill attention are one operator on the
    memory stream, spread evenly over the batch. A single GPU has no network operators.
    """
    shape, base = deployment.shape, SHAPES["llama-2-70b"]
    split = LLAMA_2_70B.gpus / deployment.gpus  # what a GPU holds, against an eighth
    found: dict[str, Operator] = {}
    for name in CHAIN:
        if name in GEMMS:
            real, stream = TABLE_2[name][3], COMPUTE
            fixed = TABLE_2[name][1] / REACHED_BANDWIDTH
            slope = (real - fixed) / TABLE_BATCH
            ours, theirs = _weights(shape, name), _weights(base, name)
            experts = (shape.experts, shape.active_experts) if name in ("UpGate", "Down") else (1, 1)
            fixed *= ours / theirs * split * experts[0]
            slope *= ours / theirs * split * experts[1]
        elif name == "Attn":
            stream, fixed = MEMORY, 0.0
            decode = TABLE_2["DecAttn"][3] * workload.decode_context / TABLE_WORKLOAD.decode_context
            prefill = TABLE_2["PfAttn"][3] * workload.prefill_context / TABLE_WORKLOAD.prefill_context
            kv, heads = shape.kv_heads / base.kv_heads, shape.heads / base.heads
            slope = (decode * kv + prefill * heads) * split / TABLE_BATCH
        elif deployment.gpus > 1:
            stream = NETWORK
            fixed = COLLECTIVE_US / 1000 * base.layers
            slope = (TABLE_2["Net"][3] / 2 - fixed) / TABLE_BATCH
            slope *= shape.hidden / base.hidden
        else:
            continue
        if not duplication:
            slope, fixed = slope + fixed / deployment.dense_batch, 0.0
        to_layer = 1000 / base.layers  # milliseconds of 80 layers to microseconds of one
        found[name] = Operator(name, stream, fixed * to_layer, slope * to_layer)
    return found


def _weights(shape: ModelShape, name: str) -> int:
    """Elements of one expert's matrix of that name over all GPUs."""
    place = {"KQV": 0, "O": 1, "UpGate": 2, "Down": 3}[name]
    _, k, n = shape.linears()[place]
    return k * n


def sequential_us(found: Mapping[str, Operator], batch: int) -> float:
    """Microseconds of one layer whose operators run one after another on the whole batch (non-overlap)."""
    return sum(operator.work(batch) for operator in found.values())


def throughput(deployment: Deployment, period_us: float, batch: int | None = None) -> float:
    """Tokens/s of one GPU (prompt and output tokens together) at a period of one layer, above 0."""
    if not period_us > 0:
        raise ValueError(f"a layer takes time, not {period_us} us")
    batch = batch or deployment.dense_batch
    return batch / (period_us * 1e-6 * deployment.shape.layers) / deployment.gpus


def largest_batch(card: Accelerator, deployment: Deployment, workload: Workload) -> int:
    """Tokens of a dense batch whose KV cache fills what the weights leave of all memories; 0 where weights don't fit.

    n decodes of average context p + d/2 fill the memory, and each brings p/d prompt tokens a step (Section 3.2).
    """
    shape = deployment.shape
    room = card.memory * deployment.gpus - shape.weight_bytes()
    return max(0, int(room / shape.kv_bytes_per_token() / workload.decode_context))


def bound_map(workload: Workload, batch: int = 0) -> list[tuple[str, str, float, float]]:
    """Card, model, T_R and T_net / T_comp of every pair whose weights fit. batch: tokens; 0: what fills the memory."""
    found = []
    for card in ACCELERATORS:
        for one in (LLAMA_2_70B, *DEPLOYMENTS):
            if fits := largest_batch(card, one, workload):
                seconds = resource_seconds(card, one, batch or fits)
                ratio = memory_over_compute(card, one, batch or fits)
                found.append((card.name, one.model, ratio, seconds[NETWORK] / seconds[COMPUTE]))
    return found


def published(quantity: str) -> dict[str, float]:
    """A quantity of published.csv, by workload or model: what the paper and its artifact print of runs like ours."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        found = {
            row["of"]: float(row["value"]) for row in csv.DictReader(file) if row["quantity"] == quantity
        }
    if not found:
        raise ValueError(f"published.csv holds nothing called {quantity!r}")
    return found
