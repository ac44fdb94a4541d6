"""A layer in nano-batches on the streams of a real GPU, and how kernels slow each other down there.

Nothing limits a kernel's execution units here: streams alone decide who runs (the paper limits thread blocks, Section
4.1.1). On a CPU the same code runs one kernel after another.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.lab.errors import LabError
from common.lab.runtime import Observations, Runtime

WARM_UP, REPEATS = 3, 15
COVER = 2.0  # times as long as a kernel's stand-alone time that the other one goes on beside it


class StreamedLayer:
    """One layer of decodes with grouped-query attention and a gated MLP; bfloat16 on a GPU, float32 on a CPU.

    batch: sequences, each with `context` tokens stored.
    """

    def __init__(
        self,
        generator: torch.Generator,
        batch: int,
        context: int,
        heads: int = 32,
        kv_heads: int = 8,
        head_dim: int = 128,
        inner: int = 14336,
    ) -> None:
        self.device = generator.device
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        hidden = heads * head_dim
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=self.device).to(dtype)

        self.qkv = random(hidden, (heads + 2 * kv_heads) * head_dim) * hidden**-0.5
        self.out = random(hidden, hidden) * hidden**-0.5
        self.up = random(hidden, 2 * inner) * hidden**-0.5
        self.down = random(inner, hidden) * inner**-0.5
        self.input = random(batch, hidden)
        self.past = random(2, batch, kv_heads, context, head_dim)

    def attention(self, rows: slice, q: Tensor | None = None) -> Tensor:
        """Decode attention of a range of the batch, (rows, heads x head_dim); without q, of its input."""
        past = self.past[:, rows]
        query = (self.input[rows] if q is None else q).reshape(-1, self.heads, 1, self.head_dim)
        found = F.scaled_dot_product_attention(query, past[0], past[1], enable_gqa=True)
        return found.reshape(query.shape[0], -1)

    def product(self, rows: slice) -> Tensor:
        """The layer's largest GEMM on a range of the batch."""
        return self.input[rows] @ self.up

    def part(self, rows: slice) -> Tensor:
        """The layer's output for a range of the batch."""
        x = self.input[rows]
        width = self.heads * self.head_dim
        mixed = F.rms_norm(x, (width,)) @ self.qkv
        middle = x + self.attention(rows, mixed[:, :width]) @ self.out
        gate, up = (F.rms_norm(middle, (width,)) @ self.up).chunk(2, dim=-1)
        return middle + (F.silu(gate) * up) @ self.down

    @torch.inference_mode()
    def forward(self, parts: int, overlap: bool) -> Tensor:
        """The layer in `parts` nano-batches, on a stream each (`overlap`) or one after another."""
        edges = np.linspace(0, len(self.input), parts + 1).round().astype(int)
        ranges = [slice(int(low), int(high)) for low, high in zip(edges, edges[1:], strict=False)]
        if not overlap or self.device.type != "cuda":
            return torch.cat([self.part(rows) for rows in ranges])
        here = torch.cuda.current_stream(self.device)
        results = []
        for rows, stream in zip(ranges, self.streams(parts), strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                results.append(self.part(rows))
        for stream, result in zip(self.streams(parts), results, strict=True):
            here.wait_stream(stream)
            result.record_stream(here)
        return torch.cat(results)

    def streams(self, count: int) -> list["torch.cuda.Stream"]:
        """Streams of this layer, made once."""
        made: list[torch.cuda.Stream] = self.__dict__.setdefault("_streams", [])
        while len(made) < count:
            made.append(torch.cuda.Stream(self.device))
        return made[:count]

    def seconds(self, work: Callable[[], object]) -> float:
        """Median seconds of some work on this device, after a warm-up."""
        return float(np.median([self._once(work) for _ in range(WARM_UP + REPEATS)][WARM_UP:]))

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            clock = time.perf_counter()
            work()
            return time.perf_counter() - clock
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()  # type: ignore[no-untyped-call]
        work()
        end.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        return float(begin.elapsed_time(end)) / 1e3  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def share_beside(self, kernel: Callable[[], object], other: Callable[[], object]) -> float:
        """Share of its stand-alone rate that a kernel reaches while another runs all along (1: undisturbed)."""
        alone = self.seconds(kernel)
        times = max(1, int(np.ceil(COVER * alone / self.seconds(other))) + 1)
        on_gpu = self.device.type == "cuda"

        def side() -> AbstractContextManager[object]:
            return torch.cuda.stream(self.streams(1)[0]) if on_gpu else nullcontext()

        taken = []
        for _ in range(WARM_UP + REPEATS):
            if on_gpu:
                torch.cuda.synchronize(self.device)
            with side():
                for _ in range(times):
                    other()
            taken.append(self._beside(kernel))
        return alone / float(np.median(taken[WARM_UP:]))

    def _beside(self, kernel: Callable[[], object]) -> float:
        """Seconds of a kernel on the present stream, whatever runs on others."""
        if self.device.type != "cuda":
            return self._once(kernel)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()  # type: ignore[no-untyped-call]
        kernel()
        end.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        return float(begin.elapsed_time(end)) / 1e3  # type: ignore[no-untyped-call]


def observe_streams(lab: Runtime, seen: Observations, batch: int, context: int, overlap: bool) -> None:
    """A layer in nano-batches on streams of this device, and shares of stand-alone rates beside one another."""
    if lab.device != "cuda":
        raise LabError(
            "gpu_batch: times a GPU's streams; use PROFILE=cuda where there is one, or gpu_batch=0"
        )
    for seed in lab.seeds:
        layer = StreamedLayer(lab.torch_generator(seed, "streams"), batch, context)
        observe_layer(layer, seen, seed, overlap)


def observe_layer(layer: StreamedLayer, seen: Observations, seed: int, overlap: bool) -> None:
    """The rows of one seed; the unsplit layer and the nano-batches are timed in turn (A B B A)."""
    whole = layer.forward(1, False)
    for parts in (2, 4):
        found = layer.forward(parts, overlap)
        error = float((found - whole).abs().max() / whole.abs().max())
        seen.add("gpu_difference", error, seed, parts=parts)
        taken: dict[int, list[float]] = {1: [], parts: []}
        for pieces in (1, parts, parts, 1):
            taken[pieces].append(layer.seconds(partial(layer.forward, pieces, overlap and pieces > 1)))
        gain = sum(taken[1]) / sum(taken[parts])
        seen.add("gpu_gain_by_parts", gain, seed, parts=parts)
        if parts == 2:
            seen.add("gpu_overlap_gain", gain, seed)
    every = slice(None)
    for part in (8, 4, 2, 1):
        rows = slice(0, max(1, len(layer.input) // part))
        product, attend = partial(layer.product, rows), partial(layer.attention, every)
        seen.add("gpu_share", layer.share_beside(product, attend), seed, kernel="GEMM", rows=rows.stop)
        seen.add("gpu_share", layer.share_beside(attend, product), seed, kernel="attention", rows=rows.stop)
