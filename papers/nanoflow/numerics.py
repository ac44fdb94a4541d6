"""Nano-batches change when things are computed, not what: a real layer, run in a schedule's order.

Each nano-operation reads its rows of the buffer before it and writes its rows of its own, in the order in which the
schedule starts them. Tokens are decodes: each has keys and values of its own in the cache, so that a range of the
batch is a range of sequences. Collectives of one rank copy.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from papers.nanoflow.nano_batches import Layer


class RealLayer:
    """One transformer layer with grouped-query attention and a gated MLP, on random weights.

    batch: sequences, each with `context` tokens in the cache and a new one. On the generator's device; float32 on a
    CPU, bfloat16 on a GPU.
    """

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
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        dtype = torch.bfloat16 if generator.device.type == "cuda" else torch.float32

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=generator.device).to(dtype)

        self.qkv = random(hidden, (heads + 2 * kv_heads) * head_dim) * hidden**-0.5
        self.out = random(hidden, hidden) * hidden**-0.5
        self.up = random(hidden, 2 * inner) * hidden**-0.5
        self.down = random(inner, hidden) * inner**-0.5
        self.input = random(batch, hidden)
        past = random(2, batch, kv_heads, context, head_dim)
        self.cache = F.pad(past, (0, 0, 0, 1))  # the last place is the new token's

    def part(self, rows: slice) -> Tensor:
        """The layer's output of a range of the batch, shape (rows, hidden), operator after operator."""
        attended = self.attention(_norm(self.input[rows]) @ self.qkv, rows)
        middle = self.input[rows] + attended @ self.out
        return middle + self.gated_down(_norm(middle) @ self.up)

    def attention(self, packed: Tensor, rows: slice) -> Tensor:
        """Attention of a new token a sequence over its cache and itself; packed: q, k, v of these rows."""
        kinds = [self.heads, self.kv_heads, self.kv_heads]
        query, *new = packed.view(len(packed), -1, self.head_dim).split(kinds, dim=1)
        cache = self.cache[:, rows]
        cache[:, :, :, -1] = torch.stack(new)
        found = F.scaled_dot_product_attention(query[:, :, None], cache[0], cache[1], enable_gqa=True)
        return found.reshape(len(packed), -1)

    def gated_down(self, packed: Tensor) -> Tensor:
        """The gated product of what the MLP's first GEMM gave, and its second GEMM."""
        gate, up = packed.chunk(2, dim=-1)
        return (F.silu(gate) * up) @ self.down

    def in_order(self, layer: Layer, starts: tuple[float, ...]) -> Tensor:
        """The whole output through the nano-operations of `layer`, one after another by their starts.

        An operation that runs before what it needs reads zeros, as a kernel would read a stale buffer.
        """
        chain = list(dict.fromkeys(op.operator for op in layer.ops))
        widths = {"KQV": self.qkv.shape[1], "UpGate": self.up.shape[1]}
        batch, hidden = self.input.shape
        buffers = {name: torch.zeros(batch, widths.get(name, hidden)) for name in chain}
        middle = torch.zeros(batch, hidden)  # the residual stream after attention
        for op, _ in sorted(zip(layer.ops, starts, strict=True), key=lambda item: item[1]):
            rows = slice(op.low, op.high)
            place = chain.index(op.operator)
            before = buffers[chain[place - 1]][rows] if place else self.input[rows]
            if op.operator == "KQV":
                after = _norm(before) @ self.qkv
            elif op.operator == "Attn":
                after = self.attention(before, rows)
            elif op.operator == "O":
                after = before @ self.out
            elif op.operator == "UpGate":
                middle[rows] = self.input[rows] + before
                after = _norm(middle[rows]) @ self.up
            elif op.operator == "Down":
                after = self.gated_down(before)
            else:  # a collective of one rank
                after = before
            buffers[op.operator][rows] = after
        return middle + buffers[chain[-1]]


def differences(layer: Layer, starts: tuple[float, ...], generator: torch.Generator, batch: int) -> Tensor:
    """A small layer in a schedule's order minus the layer at once, absolute, shape (batch, hidden)."""
    if len(starts) != len(layer.ops):
        raise ValueError(f"{len(starts)} starts are not those of {len(layer.ops)} nano-operations")
    small = RealLayer(generator, batch)
    return (small.in_order(layer, starts) - small.part(slice(None))).abs()


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])
