"""Calls of operators whose seconds a GPU is asked for (profile_gpu.py), and what a timer answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.hardware.linear import DTYPE_BYTES, product_bytes
from common.serving.models import ModelShape


class Sample(NamedTuple):
    """Median, 5th and 95th percentile, seconds."""

    seconds: float
    p05: float
    p95: float

    @staticmethod
    def of(seconds: Sequence[float]) -> "Sample":
        """The sample of single measurements."""
        return Sample(*(float(q) for q in np.quantile(seconds, [0.5, 0.05, 0.95])))


class LinearCall(NamedTuple):
    """[m, k] @ [k, n]."""

    m: int
    k: int
    n: int

    @property
    def bytes(self) -> int:
        """Bytes of the operands."""
        return product_bytes(*self)


class AttentionCall(NamedTuple):
    """phase: prefill_causal, chunk_full (no mask) or decode."""

    phase: str
    heads: int
    kv_heads: int
    head_dim: int
    batch: int
    q_len: int
    kv_len: int

    @property
    def bytes(self) -> int:
        """Bytes of keys, values, queries and outputs."""
        elements = 2 * self.kv_heads * self.kv_len + 2 * self.heads * self.q_len
        return DTYPE_BYTES * self.batch * self.head_dim * elements


class CopyCall(NamedTuple):
    """`bytes` in `calls` equal pieces; direction h2d, d2h or d2d."""

    kind: str
    direction: str
    bytes: int
    calls: int


class LayerCall(NamedTuple):
    """Some layers of a model over chunks (new tokens, tokens before) and decodes of one length."""

    shape: ModelShape
    layers: int
    chunks: tuple[tuple[int, int], ...]
    decodes: int
    decode_kv_len: int

    @property
    def tokens(self) -> int:
        """Tokens that pass through the linear layers."""
        return sum(new for new, _ in self.chunks) + self.decodes

    @property
    def bytes(self) -> int:
        """Bytes of weights, caches and the widest activations."""
        weights = sum(k * n for _, k, n in self.shape.linears())
        cached = sum(new + before for new, before in self.chunks) + self.decodes * self.decode_kv_len
        kept = self.layers * (weights + 2 * cached * self.shape.kv_heads * self.shape.head_dim)
        return DTYPE_BYTES * (kept + 3 * self.tokens * self.shape.intermediate)
