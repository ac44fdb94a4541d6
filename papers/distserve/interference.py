"""The problem on a real GPU: how much longer a decode iteration takes when a prompt shares it (paper, Section 2.3).

A few layers with the shape of Llama-2-7B and random weights. One iteration runs the linear layers on all tokens
together, as continuous batching does, and attention for the decoding sequences and the prompt apart.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.serving.models import ModelShape

WARM_UP, REPEATS = 3, 20


@dataclass(frozen=True)
class Batch:
    """`decodes` sequences with `context` stored tokens each, and a prompt of `prompt` tokens (0: none)."""

    decodes: int
    context: int
    prompt: int


class Layers:
    """`layers` transformer layers of a shape on a device, with random weights (bfloat16; float32 on a CPU)."""

    def __init__(self, shape: ModelShape, layers: int, generator: torch.Generator) -> None:
        self.shape = shape
        self.generator = generator
        self.device = generator.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.weights = [
            {name: self._random(k, n) * k**-0.5 for name, k, n in shape.linears(1)} for _ in range(layers)
        ]

    def _random(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, device=self.device).to(self.dtype)

    def seconds(self, batch: Batch) -> float:
        """Median seconds of one iteration of the layers over a batch."""
        shape = self.shape
        x = self._random(batch.decodes + batch.prompt, shape.hidden)
        caches = [
            self._random(2, batch.decodes, shape.kv_heads, batch.context, shape.head_dim)
            for _ in self.weights
        ]
        taken = []
        for _ in range(WARM_UP + REPEATS):
            self._wait()
            start = time.perf_counter()
            self._iterate(x, caches, batch)
            self._wait()
            taken.append(time.perf_counter() - start)
        return float(np.median(taken[WARM_UP:]))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def _iterate(self, x: Tensor, caches: list[Tensor], batch: Batch) -> Tensor:
        shape, n = self.shape, batch.decodes
        for weights, (keys, values) in zip(self.weights, caches, strict=True):
            qkv, out, up, down = weights.values()  # in the order of ModelShape.linears
            mixed = F.rms_norm(x, (shape.hidden,)) @ qkv
            q, k, v = mixed.split(
                [shape.heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2], dim=1
            )
            grouped = shape.heads != shape.kv_heads
            decoded = F.scaled_dot_product_attention(
                q[:n].view(n, shape.heads, 1, shape.head_dim), keys, values, enable_gqa=grouped
            )
            attended = [decoded.reshape(n, -1)]
            if batch.prompt:
                q, k, v = (t[n:].view(1, batch.prompt, -1, shape.head_dim).transpose(1, 2) for t in (q, k, v))
                prompt = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
                attended.append(prompt.transpose(1, 2).reshape(batch.prompt, -1))
            x = x + torch.cat(attended) @ out
            inner = F.rms_norm(x, (shape.hidden,)) @ up
            if shape.gated:
                gate, inner = inner.chunk(2, dim=1)
                inner = F.silu(gate) * inner
            else:
                inner = F.relu(inner)
            x = x + inner @ down
        return x


def slowdown(layers: Layers, decodes: int, context: int, prompt: int) -> float:
    """Time of a decode iteration with a prompt in it over its time alone."""
    alone = layers.seconds(Batch(decodes, context, 0))
    return layers.seconds(Batch(decodes, context, prompt)) / alone
