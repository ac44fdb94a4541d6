"""The latency of an iteration, put together from the times of a transformer layer's operators.

A layer on one GPU of a tensor-parallel group: four linear layers (Megatron's split), attention (all prefilled
sequences in one kernel, all decoding ones in another), the elementwise kernels of `elementwise` with their
memory traffic, and two all-reduces. All kernels run one after the other inside a CUDA graph: no overlap of
computing with communication, no host work. Where the operators' times come from is the caller's choice:
measured tables (measured.py) or a roofline (roofline.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.hardware.collective import all_reduce_seconds
from common.hardware.operators import OperatorTimes
from common.hardware.roofline import crossing
from common.hardware.specs import Link
from common.serving.latency import INFINITY, Line
from common.serving.models import ModelShape

DTYPE_BYTES = 2  # bfloat16


def elementwise(shape: ModelShape, tensor_parallel: int = 1) -> tuple[tuple[str, int], ...]:
    """The elementwise kernels of a layer on one GPU, as (name, elements read and written a token).

    What a layer must do beside products and attention, one kernel each, as engines run it without fusing norms
    and residuals. Norms and residuals are not split by tensor parallelism; all else is.
    """
    hidden = shape.hidden
    queries = shape.heads // tensor_parallel * shape.head_dim
    keys = max(1, shape.kv_heads // tensor_parallel) * shape.head_dim
    inner = shape.intermediate // tensor_parallel * shape.active_experts
    kernels = [("attention_norm", 2 * hidden)]
    if not shape.learned_positions:
        kernels += [("rotate_queries", 2 * queries), ("rotate_keys", 2 * keys)]
    kernels += [("append_keys", 2 * keys), ("append_values", 2 * keys), ("attention_residual", 3 * hidden)]
    kernels += [("mlp_norm", 2 * hidden)]
    if shape.experts > 1:
        kernels += [("route", 2 * shape.experts), ("scatter_to_experts", (1 + shape.active_experts) * hidden)]
    kernels += [("activation", 2 * inner)]
    if shape.gated:
        kernels += [("gate", 3 * inner)]
    if shape.experts > 1:
        kernels += [("combine_experts", (1 + shape.active_experts) * hidden)]
    return (*kernels, ("mlp_residual", 3 * hidden))


def experts_reached(shape: ModelShape, tokens: int) -> float:
    """Expected number of experts that `tokens` reach, each choosing its active experts uniformly."""
    return shape.experts * (1 - (1 - shape.active_experts / shape.experts) ** tokens)


@dataclass(frozen=True)
class LayeredLatency:
    """LatencyModel of a model on `tensor_parallel` GPUs a stage and `stages` pipeline stages.

    Each stage holds layers / stages of them, rounded up. The first stage embeds; the last norms, runs the output
    head and takes the best token; with several stages both fall to every stage but the first, so that the
    slowest stage is exact and those between are overestimated by the head. Chunks are (new tokens, tokens already
    cached); every chunk is counted as drawing one token at its end.
    Raises ValueError for a split the model does not allow.
    """

    operators: OperatorTimes
    shape: ModelShape
    tensor_parallel: int
    stages: int
    link: Link  # between the GPUs of a stage, and between stages
    _layer: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _ends: dict[tuple[int, int], tuple[float, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self.shape.linears(self.tensor_parallel)
        if not 1 <= self.stages <= self.shape.layers:
            raise ValueError(
                f"{self.shape.name} has {self.shape.layers} layers: {self.stages} stages do not fit"
            )

    @property
    def stage_layers(self) -> int:
        """Layers of the fullest stage."""
        return math.ceil(self.shape.layers / self.stages)

    @property
    def _heads(self) -> tuple[int, int, int]:
        shape, degree = self.shape, self.tensor_parallel
        return shape.heads // degree, max(1, shape.kv_heads // degree), shape.head_dim

    def layer_seconds(self, chunks: Sequence[tuple[int, int]], decodes: int, context: float) -> float:
        """Seconds of one layer with its all-reduces, and nothing else of the model."""
        tokens = sum(new for new, _ in chunks) + decodes
        seconds = self._without_attention(tokens) + self.operators.prefill_seconds(*self._heads, chunks)
        return seconds + self._decode_attention(decodes, context)

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        layers = self.stage_layers * self.layer_seconds(chunks, decodes, context)
        tokens = sum(new for new, _ in chunks) + decodes
        first, last = self._first_and_last(tokens, len(chunks) + decodes)
        if self.stages == 1:
            return layers + first + last, 0.0
        return layers + first, layers + last

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel: the highest of the attention operator's lines, over the rest of the iteration."""
        rest = self.shape.layers * self._without_attention(decodes) + sum(
            self._first_and_last(decodes, decodes)
        )
        lines = self.operators.decode_lines(*self._heads, decodes)
        here = max(lines, key=lambda line: (line[0] + line[1] * context, line[1]))
        until = min((c for line in lines if (c := crossing(here, line)) > context), default=INFINITY)
        return Line(rest + self.shape.layers * here[0], self.shape.layers * here[1], until)

    def _decode_attention(self, decodes: int, context: float) -> float:
        if not decodes:
            return 0.0
        return max(a + b * context for a, b in self.operators.decode_lines(*self._heads, decodes))

    def _without_attention(self, tokens: int) -> float:
        """Seconds of one layer's linear layers, elementwise kernels and all-reduces."""
        if tokens not in self._layer:
            kernels = elementwise(self.shape, self.tensor_parallel)
            seconds = sum(
                self.operators.elementwise_seconds(DTYPE_BYTES * tokens * elements) for _, elements in kernels
            )
            reduced = DTYPE_BYTES * tokens * self.shape.hidden
            seconds += 2 * all_reduce_seconds(self.link, reduced, self.tensor_parallel)
            self._layer[tokens] = seconds + self._linears(tokens)
        return self._layer[tokens]

    def _linears(self, tokens: int) -> float:
        linears = self.shape.linears(self.tensor_parallel)
        if self.shape.experts == 1:
            return sum(self.operators.linear_seconds(tokens, k, n) for _, k, n in linears)
        attention, expert = linears[:2], linears[2:]
        seconds = sum(self.operators.linear_seconds(tokens, k, n) for _, k, n in attention)
        seconds += self.operators.linear_seconds(tokens, self.shape.hidden, self.shape.experts)
        reached = experts_reached(self.shape, tokens)
        if not reached:
            return seconds
        rows = math.ceil(tokens * self.shape.active_experts / reached)
        return seconds + reached * sum(self.operators.linear_seconds(rows, k, n) for _, k, n in expert)

    def _first_and_last(self, tokens: int, drawn: int) -> tuple[float, float]:
        """Seconds of embedding `tokens`, and of handing them on, the final norm, the head and the choice."""
        if (tokens, drawn) not in self._ends:
            hidden, vocabulary = self.shape.hidden, math.ceil(self.shape.vocab / self.tensor_parallel)
            embed = self.operators.elementwise_seconds(DTYPE_BYTES * tokens * 2 * hidden)
            last = self.operators.elementwise_seconds(DTYPE_BYTES * drawn * 2 * hidden)
            last += self.operators.linear_seconds(drawn, hidden, vocabulary)
            last += self.operators.elementwise_seconds(DTYPE_BYTES * drawn * vocabulary)
            if self.stages > 1:
                last += self.link.transfer_seconds(DTYPE_BYTES * tokens * hidden / self.tensor_parallel)
            self._ends[tokens, drawn] = embed, last
        return self._ends[tokens, drawn]
