"""The time of a 3 x 3 group convolution on a real device, by group size: DRACO's premise without a simulator."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

WARMUP = 5


def seconds(channels: int, size: int, group_size: int, batch: int, device: str, repeats: int = 30) -> float:
    """The median time of a forward pass, float32, maps of size x size. ValueError where groups don't fit channels."""
    if channels % group_size:
        raise ValueError(f"groups of {group_size} do not divide {channels} channels")
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // group_size, bias=False).to(device)
    images = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    clock = _on_gpu if device.startswith("cuda") else _on_cpu
    with torch.inference_mode():
        for _ in range(WARMUP):
            layer(images)
        return statistics.median(clock(lambda: layer(images)) for _ in range(repeats))


def _on_cpu(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _on_gpu(call: Callable[[], object]) -> float:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended) / 1e3
