"""Nano-batches change when things are computed, not what: a real layer, run in a schedule's order, on this machine.

Each nano-operation reads its rows of the buffer before it and writes its rows of its own, in the order in which the
schedule starts them. Tokens are decodes: each has keys and values of its own in the cache, so that a range of the
batch is a range of sequences. Collectives of one rank copy.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from papers.nanoflow.nano_batches import Layer


class SmallLayer:
    """One transformer layer with grouped-query attention and a gated MLP, in float32, on random weights."""

    def __init__(
        self,
        generator: torch.Generator,
        batch: int,
        context: int = 24,
        heads: int = 8,
        kv_heads: int = 2,
        head_dim: int = 16,
        inner: int = 256,
    ) -> None:
        hidden = heads * head_dim
        self.heads, self.kv_heads, self.head_dim, self.inner = heads, kv_heads, head_dim, inner

        def weights(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) * rows**-0.5

        self.qkv = weights(hidden, (heads + 2 * kv_heads) * head_dim)
        self.out, self.up, self.down = (
            weights(hidden, hidden),
            weights(hidden, 2 * inner),
            weights(inner, hidden),
        )
        self.input = torch.randn(batch, hidden, generator=generator)
        self.past = torch.randn(2, batch, kv_heads, context, head_dim, generator=generator)

    def whole(self) -> Tensor:
        """The layer's output, shape (batch, hidden), computed at once."""
        rows = slice(None)
        attended = self.attention(self._norm(self.input) @ self.qkv, rows)
        middle = self.input + attended @ self.out
        gate, up = (self._norm(middle) @ self.up).chunk(2, dim=-1)
        return middle + (F.silu(gate) * up) @ self.down

    def in_order(self, layer: Layer, starts: tuple[float, ...]) -> Tensor:
        """The same through the nano-operations of `layer`, one after another by their starts.

        An operation that runs before what it needs reads zeros, as a kernel would read a stale buffer.
        """
        chain = list(dict.fromkeys(op.operator for op in layer.ops))
        buffers: dict[str, Tensor] = {}
        batch, hidden = self.input.shape
        widths = {"KQV": self.qkv.shape[1], "UpGate": 2 * self.inner}
        for name in chain:
            buffers[name] = torch.zeros(batch, widths.get(name, hidden))
        middle = torch.zeros(batch, hidden)  # the residual stream after attention
        for op, _ in sorted(zip(layer.ops, starts, strict=True), key=lambda item: item[1]):
            rows = slice(op.low, op.high)
            place = chain.index(op.operator)
            before = buffers[chain[place - 1]][rows] if place else self.input[rows]
            if op.operator == "KQV":
                after = self._norm(before) @ self.qkv
            elif op.operator == "Attn":
                after = self.attention(before, rows)
            elif op.operator == "O":
                after = before @ self.out
            elif op.operator == "UpGate":
                middle[rows] = self.input[rows] + before
                after = self._norm(middle[rows]) @ self.up
            elif op.operator == "Down":
                gate, up = before.chunk(2, dim=-1)
                after = (F.silu(gate) * up) @ self.down
            else:  # a collective of one rank
                after = before
            buffers[op.operator][rows] = after
        return middle + buffers[chain[-1]]

    def attention(self, packed: Tensor, rows: slice) -> Tensor:
        """Attention of one new token a sequence over its cache and itself; packed: q, k, v of these rows."""
        count = len(packed)
        packed = packed.view(count, -1, self.head_dim)
        queries, keys, values = packed.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        all_keys = torch.cat([self.past[0, rows], keys[:, :, None]], dim=2)
        all_values = torch.cat([self.past[1, rows], values[:, :, None]], dim=2)
        found = F.scaled_dot_product_attention(queries[:, :, None], all_keys, all_values, enable_gqa=True)
        return found.reshape(count, -1)

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:])


def differences(layer: Layer, starts: tuple[float, ...], generator: torch.Generator, batch: int) -> Tensor:
    """The layer in a schedule's order minus the layer at once, absolute, shape (batch, hidden)."""
    if len(starts) != len(layer.ops):
        raise ValueError(f"{len(starts)} starts are not those of {len(layer.ops)} nano-operations")
    small = SmallLayer(generator, batch)
    return (small.in_order(layer, starts) - small.whole()).abs()
