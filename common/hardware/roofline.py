"""Operator times from a device's data sheet: the slower of computing and moving bytes, plus a kernel's own cost.

Williams, Waterman and Patterson, 2009, Roofline (doi:10.1145/1498765.1498785). No device reaches its data sheet's
rates; `Efficiency` says what share is reached, with its source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.hardware.attention import DTYPE_BYTES
from common.hardware.linear import product_bytes, product_flops
from common.hardware.specs import GPU


@dataclass(frozen=True)
class Efficiency:
    """Reachable shares of the data sheet's rates, and a kernel's own cost in seconds.

    The defaults are this project's measurements of an H100 (tables/h100), and a test recomputes them:
    compute: median rate of the linear layers at 2,048 tokens and more.
    attention: rate of prefill at one key a wave (132 tiles of 128 queries), the limit of a long prompt.
    memory: best rate of a linear layer at few tokens.
    kernel_seconds: the least that any linear layer takes beyond its bytes.
    """

    compute: float = 0.71
    attention: float = 0.73
    memory: float = 0.86
    kernel_seconds: float = 1.9e-6

    def __post_init__(self) -> None:
        for name in ("compute", "attention", "memory"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a share of the data sheet's rate in (0, 1], not {getattr(self, name)}"
                )


MEASURED = Efficiency()


@dataclass(frozen=True)
class RooflineOperators:
    """OperatorTimes of a GPU from its data sheet."""

    gpu: GPU
    efficiency: Efficiency = MEASURED

    def seconds(self, flops: float, moved_bytes: float) -> float:
        """Seconds of one kernel that computes at the rate of products."""
        compute = flops / (self.gpu.flops * self.efficiency.compute)
        return self.efficiency.kernel_seconds + max(compute, self._moving(moved_bytes))

    def _moving(self, moved_bytes: float) -> float:
        return moved_bytes / (self.gpu.bandwidth * self.efficiency.memory)

    def linear_seconds(self, m: int, k: int, n: int) -> float:
        """See OperatorTimes."""
        return self.seconds(product_flops(m, k, n), product_bytes(m, k, n)) if m > 0 else 0.0

    def elementwise_seconds(self, moved_bytes: float) -> float:
        """See OperatorTimes."""
        return self.seconds(0, moved_bytes)

    def prefill_seconds(
        self, heads: int, kv_heads: int, head_dim: int, chunks: Sequence[tuple[int, int]]
    ) -> float:
        """See OperatorTimes: all chunks in one kernel, each query with the keys up to itself."""
        chunks = [(new, before) for new, before in chunks if new]
        if not chunks:
            return 0.0
        pairs = sum(new * before + new * (new + 1) / 2 for new, before in chunks)
        elements = sum(2 * kv_heads * (new + before) + 2 * heads * new for new, before in chunks)
        compute = 4 * heads * head_dim * pairs / (self.gpu.flops * self.efficiency.attention)
        return self.efficiency.kernel_seconds + max(compute, self._moving(DTYPE_BYTES * head_dim * elements))

    def decode_lines(
        self, heads: int, kv_heads: int, head_dim: int, batch: int
    ) -> tuple[tuple[float, float], ...]:
        """See OperatorTimes: computing, and reading keys and values beside queries and outputs."""
        start = self.efficiency.kernel_seconds
        compute = 4 * heads * head_dim / (self.gpu.flops * self.efficiency.attention)
        queries = self._moving(2 * DTYPE_BYTES * batch * heads * head_dim)
        reading = self._moving(2 * DTYPE_BYTES * kv_heads * head_dim)
        return ((start + queries, reading), (start, compute))


def crossing(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where line `high` (intercept, slope) overtakes `low`; infinite if it never does."""
    return (low[0] - high[0]) / (high[1] - low[1]) if high[1] > low[1] else math.inf
