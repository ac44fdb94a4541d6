"""A layer in nano-batches on the streams of a real GPU (PROFILE=cuda).

Nothing limits a kernel's execution units here: streams alone decide who runs (the paper limits thread blocks, Section
4.1.1). On a CPU, for tests, the nano-batches run one after another.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from common.lab.errors import LabError
from common.lab.runtime import Observations, Runtime
from papers.nanoflow.numerics import RealLayer

WARM_UP, REPEATS = 3, 15
PARTS = 2  # nano-batches, a stream each


@torch.inference_mode()
def forward(layer: RealLayer, parts: int, streams: Sequence["torch.cuda.Stream"] = ()) -> Tensor:
    """The layer's output, shape (batch, hidden), in nano-batches; one after another where there are no streams.

    streams: of the layer's GPU, one a part.
    """
    edges = np.linspace(0, len(layer.input), parts + 1).round().astype(int)
    ranges = [slice(int(low), int(high)) for low, high in zip(edges, edges[1:], strict=False)]
    if not streams:
        return torch.cat([layer.part(rows) for rows in ranges])
    here = torch.cuda.current_stream(layer.input.device)
    results = []
    for rows, stream in zip(ranges, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            results.append(layer.part(rows))
    for stream, result in zip(streams, results, strict=True):
        here.wait_stream(stream)
        result.record_stream(here)
    return torch.cat(results)


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of some work on this device, after a warm-up."""
    if device.type != "cuda":
        taken = []
        for _ in range(WARM_UP + REPEATS):
            clock = time.perf_counter()
            work()
            taken.append(time.perf_counter() - clock)
        return float(np.median(taken[WARM_UP:]))
    taken = []
    for _ in range(WARM_UP + REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()  # type: ignore[no-untyped-call]
        work()
        end.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        taken.append(float(begin.elapsed_time(end)) / 1e3)  # type: ignore[no-untyped-call]
    return float(np.median(taken[WARM_UP:]))


def observe_streams(lab: Runtime, seen: Observations, batch: int, context: int, overlap: bool) -> None:
    """A layer shaped like LLaMA-3-8B in nano-batches on streams of this device, for each seed."""
    if lab.device != "cuda":
        raise LabError(
            "gpu_batch: times a GPU's streams; use PROFILE=cuda where there is one, or gpu_batch=0"
        )
    streams = [torch.cuda.Stream() for _ in range(PARTS)] if overlap else []  # type: ignore[no-untyped-call]
    for seed in lab.seeds:
        generator = lab.torch_generator(seed, "streams")
        layer = RealLayer(generator, batch, context, heads=32, kv_heads=8, head_dim=128, inner=14336)
        observe_layer(layer, seen, seed, streams)


def observe_layer(
    layer: RealLayer, seen: Observations, seed: int, streams: Sequence["torch.cuda.Stream"] = ()
) -> None:
    """The rows of one seed; the unsplit layer and the nano-batches are timed in turn (A B B A)."""
    whole, split = partial(forward, layer, 1), partial(forward, layer, PARTS, streams)
    right = whole()
    seen.add("gpu_difference", float((split() - right).abs().max() / right.abs().max()), seed)
    a, b, c, d = (median_seconds(one, layer.input.device) for one in (whole, split, split, whole))
    seen.add("gpu_overlap_gain", (a + d) / (b + c), seed)
