"""Times operators with PyTorch, on a CUDA device inside CUDA graphs; the clock behind profile_gpu.py.

Operands are rotated through more copies than the L2 cache holds, so that a product reads its weights from device
memory as it does inside a model. On `device="cpu"` the same operators run under a wall clock: that is for
checking this file without a GPU, not for tables that anyone should use.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F

from common.serving.operator_calls import AttentionCall, CopyCall, LayerCall, Sample

REPEATS = 30  # timed replays of a graph, or calls of a copy
LEAST_CALLS = 8  # calls in a graph at least, so that its own launch weighs little
ROTATED_L2 = 3  # operands together hold this many times the L2 cache
CPU_CACHE = 1 << 14  # stands in for L2 on the CPU: small, so that checks are quick

Call = Callable[[], Any]
P = ParamSpec("P")
R = TypeVar("R")


def _fitting(method: Callable[P, R]) -> Callable[P, R]:
    """`method`, with the device's out-of-memory error as Python's."""

    @functools.wraps(method)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            raise MemoryError("operands do not fit on the device") from error

    return measured


class TorchTimer:
    """Timer of profile_gpu.py on `device`. Raises MemoryError where a call's operands do not fit."""

    def __init__(self, device: str = "cuda", repeats: int = REPEATS) -> None:
        self.torch_device = torch.device(device)
        self.cuda = self.torch_device.type == "cuda"
        self.repeats = repeats
        properties: Any = torch.cuda.get_device_properties(self.torch_device) if self.cuda else None
        self.l2_bytes = getattr(properties, "L2_cache_size", 0) or CPU_CACHE
        self._properties = properties

    def device(self) -> dict[str, str | int]:
        """What device.json holds."""
        name, sms, memory = ("cpu", 1, 1 << 30)
        if self.cuda:
            found = self._properties
            name, sms, memory = found.name, found.multi_processor_count, found.total_memory
        return {
            "name": name,
            "sms": sms,
            "mem": memory,
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "none",
            "attention_timing": "graph",
        }

    @_fitting
    def linear(self, m: int, k: int, n: int) -> Sample:
        """y = x W^T: x [m, k], W [n, k]."""
        x = self._tensor(m, k)
        weights = [self._tensor(n, k) for _ in range(self._copies(2 * n * k))]
        return self._in_graph([lambda w=w: F.linear(x, w) for w in weights])  # type: ignore[misc]

    @_fitting
    def attention(self, call: AttentionCall) -> Sample:
        """Scaled dot-product attention of query [batch, heads, q, d] over keys [batch, kv_heads, kv, d]."""
        shape = (call.batch, call.kv_heads, call.kv_len, call.head_dim)
        query = self._tensor(call.batch, call.heads, call.q_len, call.head_dim)
        pairs = [
            (self._tensor(*shape), self._tensor(*shape)) for _ in range(self._copies(4 * math.prod(shape)))
        ]
        causal = call.phase == "prefill_causal"
        return self._in_graph([lambda k=k, v=v: _attend(query, k, v, causal) for k, v in pairs])  # type: ignore[misc]

    @_fitting
    def copy(self, call: CopyCall) -> Sample:
        """Host-device copies in `calls` pieces, or a device copy; `..._dispatch_only` stops before they end."""
        count = call.bytes // call.calls
        device = [torch.empty(count, dtype=torch.uint8, device=self.torch_device) for _ in range(call.calls)]
        if call.kind == "device_copy":
            source = torch.empty_like(device[0])
            return self._wall(lambda: device[0].copy_(source))
        pinned = self.cuda and call.kind.startswith("pinned")
        host = [torch.empty(count, dtype=torch.uint8, pin_memory=pinned) for _ in range(call.calls)]
        to, of = (device, host) if call.direction == "h2d" else (host, device)

        def copies() -> None:
            for target, source in zip(to, of, strict=True):
                target.copy_(source, non_blocking=pinned)

        return self._wall(copies, wait=not call.kind.endswith("dispatch_only"))

    @_fitting
    def layers(self, call: LayerCall) -> tuple[Sample, Sample]:
        """Whole decoder layers over a mixed batch, eager and in a CUDA graph."""
        stack = [DecoderLayer(call, self._tensor) for _ in range(call.layers)]
        x = self._tensor(call.tokens, call.shape.hidden)

        def forward() -> torch.Tensor:
            y = x
            for layer in stack:
                y = layer(y)
            return y

        return self._wall(forward), self._in_graph([forward], least=1)

    def _tensor(self, *size: int) -> torch.Tensor:
        return torch.randn(size, dtype=torch.bfloat16, device=self.torch_device)

    def _copies(self, operand_bytes: int) -> int:
        return max(2, math.ceil(ROTATED_L2 * self.l2_bytes / operand_bytes))

    def _in_graph(self, calls: Sequence[Call], least: int = LEAST_CALLS) -> Sample:
        """Seconds of one of `calls`, run in turn, at least `least` of them in one graph."""
        rounds = math.ceil(least / len(calls))

        def body() -> None:
            for _ in range(rounds):
                for call in calls:
                    call()

        with torch.inference_mode():
            if not self.cuda:
                return self._wall(body, share=rounds * len(calls))
            warm = torch.cuda.Stream()
            warm.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm):
                body()
            torch.cuda.current_stream().wait_stream(warm)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                body()
            return self._wall(graph.replay, share=rounds * len(calls))

    def _wall(self, body: Call, share: int = 1, wait: bool = True) -> Sample:
        """Seconds of `body` / `share` over the repeats: events on CUDA, a wall clock elsewhere."""
        seconds = []
        with torch.inference_mode():
            for repeat in range(self.repeats + 3):
                took = self._event_seconds(body) if self.cuda and wait else self._clock_seconds(body)
                if repeat >= 3:  # the first ones warm up
                    seconds.append(took / share)
        return Sample.of(seconds)

    def _clock_seconds(self, body: Call) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        body()
        return time.perf_counter() - start

    def _event_seconds(self, body: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        body()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool) -> torch.Tensor:
    grouped = query.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(query, keys, values, is_causal=causal, enable_gqa=grouped)


class _Group(NamedTuple):
    """Sequences of equal lengths, with their caches [sequences, kv_heads, before + new, head_dim]."""

    new: int
    before: int
    sequences: int
    keys: torch.Tensor
    values: torch.Tensor


class DecoderLayer:
    """A Llama layer over a mixed batch, with random weights and caches; no rotary embedding.

    Chunks of the same lengths share one attention call. A chunk of q tokens behind p cached ones appends to its
    cache and attends to all q + p, unmasked where p > 0, as in layers_bf16.csv of the H100.
    """

    def __init__(self, call: LayerCall, tensor: Callable[..., torch.Tensor]) -> None:
        shape = call.shape
        self.shape, self.decodes = shape, call.decodes
        self.weights = {name: tensor(n, k) for name, k, n in shape.linears()}
        self.scales = tensor(2, shape.hidden)
        groups = {chunk: call.chunks.count(chunk) for chunk in call.chunks}
        if call.decodes:
            groups[(1, call.decode_kv_len - 1)] = groups.get((1, call.decode_kv_len - 1), 0) + call.decodes
        self.groups = []
        for (new, before), count in groups.items():
            cache = (count, shape.kv_heads, new + before, shape.head_dim)
            self.groups.append(_Group(new, before, count, tensor(*cache), tensor(*cache)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [tokens, hidden] -> the same shape."""
        shape = self.shape
        width = shape.kv_heads * shape.head_dim
        qkv = F.linear(F.rms_norm(x, (shape.hidden,), self.scales[0]), self.weights["qkv"])
        query, key, value = qkv.split([shape.heads * shape.head_dim, width, width], dim=-1)
        outputs, start = [], 0
        for new, before, sequences, keys, values in self.groups:
            rows = slice(start, start + new * sequences)
            start += new * sequences
            q, k, v = (
                part[rows].view(sequences, new, heads, shape.head_dim).transpose(1, 2)
                for part, heads in ((query, shape.heads), (key, shape.kv_heads), (value, shape.kv_heads))
            )
            keys[:, :, before:] = k
            values[:, :, before:] = v
            out = _attend(q, keys, values, causal=before == 0 and new > 1)
            outputs.append(out.transpose(1, 2).reshape(new * sequences, -1))
        x = x + F.linear(torch.cat(outputs), self.weights["attention_output"])
        up = F.linear(F.rms_norm(x, (shape.hidden,), self.scales[1]), self.weights["mlp_up"])
        if shape.gated:
            gate, up = up.chunk(2, dim=-1)
            up = F.silu(gate) * up
        else:
            up = F.relu(up)
        return x + F.linear(up, self.weights["mlp_down"])
