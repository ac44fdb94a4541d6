"""Hybrid batches timed on a real device: one layer's iteration over decodes, a chunk of a prompt, or both.

Linear layers run on all tokens together; attention runs for the decodes and for the chunk apart, the chunk seeing all
the prompt before it (paper, Section 4.2). Weights and caches are random.
"""

import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.serving.models import ModelShape

WARM_UP, REPEATS = 3, 15


class Layer:
    """One transformer layer of a shape, bfloat16 on a GPU and float32 on a CPU, beside a batch of decodes.

    decodes: sequences of `context` stored tokens each. prompt: the longest prefill, tokens.
    """

    def __init__(
        self, shape: ModelShape, decodes: int, context: int, prompt: int, generator: torch.Generator
    ) -> None:
        self.shape, self.decodes = shape, decodes
        self.generator, self.device = generator, generator.device
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.weights = [self._random(k, n) * k**-0.5 for _, k, n in shape.linears(1)]
        self.caches = self._random(2, decodes, shape.kv_heads, context, shape.head_dim)
        self.past = self._random(2, 1, shape.kv_heads, prompt, shape.head_dim)
        self.tokens = self._random(decodes + prompt, shape.hidden)

    def _random(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator, device=self.device).to(self.dtype)

    @torch.inference_mode()
    def iteration(self, decodes: bool, chunk: int, start: int = 0) -> Tensor:
        """Output of one iteration, (decodes + chunk, hidden): a `chunk` of a prompt from token `start` on, 0: none.

        The chunk's keys and values are written to the prompt's cache, so that chunks in order are one prefill.
        """
        shape = self.shape
        n = self.decodes if decodes else 0
        first = self.decodes + start  # row of the chunk's first token
        x = torch.cat([self.tokens[:n], self.tokens[first : first + chunk]])
        qkv, out, up, down = self.weights  # in the order of ModelShape.linears
        grouped = shape.heads != shape.kv_heads
        mixed = F.rms_norm(x, (shape.hidden,)) @ qkv
        q, k, v = mixed.split([shape.heads * shape.head_dim, *[shape.kv_heads * shape.head_dim] * 2], dim=1)
        attended = []
        if n:
            one = q[:n].view(n, shape.heads, 1, shape.head_dim)
            decoded = F.scaled_dot_product_attention(one, self.caches[0], self.caches[1], enable_gqa=grouped)
            attended.append(decoded.reshape(n, -1))
        if chunk:
            end = start + chunk
            q, k, v = (t[n:].view(1, chunk, -1, shape.head_dim).transpose(1, 2) for t in (q, k, v))
            self.past[0, :, :, start:end], self.past[1, :, :, start:end] = k, v
            keys, values = self.past[:, :, :, :end]
            attended.append(self._causal(q, keys, values, start).transpose(1, 2).reshape(chunk, -1))
        x = x + torch.cat(attended) @ out
        inner = F.rms_norm(x, (shape.hidden,)) @ up
        if shape.gated:
            gate, inner = inner.chunk(2, dim=1)
            inner = F.silu(gate) * inner
        else:
            inner = F.relu(inner)
        return x + inner @ down

    def _causal(self, q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """Attention of a chunk whose token i sees start + i + 1 keys."""
        grouped = self.shape.heads != self.shape.kv_heads
        if not start:
            return F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=grouped)
        from torch.nn.attention.bias import causal_lower_right

        seen = causal_lower_right(q.shape[2], keys.shape[2])
        if grouped:  # this bias does not go with enable_gqa in every version of torch
            times = self.shape.heads // self.shape.kv_heads
            keys, values = (t.repeat_interleave(times, dim=1) for t in (keys, values))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)  # type: ignore[arg-type]

    def prefill_seconds(self, prompt: int, chunk: int) -> float:
        """Median seconds of a whole prompt, an iteration without decodes for every chunk."""
        parts = [(False, min(chunk, prompt - start), start) for start in range(0, prompt, chunk)]
        return self._median(parts)

    def _median(self, iterations: list[tuple[bool, int, int]]) -> float:
        taken = []
        for _ in range(WARM_UP + REPEATS):
            if self.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize(self.device)
                begin.record()  # type: ignore[no-untyped-call]
                for one in iterations:
                    self.iteration(*one)
                end.record()  # type: ignore[no-untyped-call]
                torch.cuda.synchronize(self.device)
                taken.append(begin.elapsed_time(end) / 1e3)  # type: ignore[no-untyped-call]
            else:
                clock = time.perf_counter()
                for one in iterations:
                    self.iteration(*one)
                taken.append(time.perf_counter() - clock)
        return float(np.median(taken[WARM_UP:]))
