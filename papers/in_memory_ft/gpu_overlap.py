"""On a GPU: a shard copied to pinned host memory beside products, in buckets, as one copy, or while they wait.

Plain torch on any device, so that a test covers it on a CPU, where copies and products simply take turns.
"""

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["none", "bucketed", "whole", "synchronous"]


class CopiedStep:
    """A training step's products, with a device's share of the state copied out during it."""

    def __init__(self, device: str, shard_bytes: int, size: int, products: int, bucket: int) -> None:
        """size: of square bf16 matrices. products: of a step. bucket: bytes of one copy."""
        generator = torch.Generator(device=device).manual_seed(0)
        self.on_gpu = device.startswith("cuda")
        kind = torch.bfloat16 if self.on_gpu else torch.float32
        self.left, self.right = (
            torch.randn(size, size, device=device, generator=generator).to(kind) for _ in range(2)
        )
        self.out = torch.empty_like(self.left)
        self.shard = torch.empty(shard_bytes, dtype=torch.uint8, device=device).random_(generator=generator)
        self.host = torch.empty(shard_bytes, dtype=torch.uint8, pin_memory=self.on_gpu)
        self.products, self.bucket = products, bucket
        self.side = torch.cuda.Stream() if self.on_gpu else None

    def run(self, mode: Mode) -> Tensor:
        """One step; the host memory holds the shard afterwards, unless mode is "none"."""
        if mode == "synchronous":
            self.host.copy_(self.shard)
            self._wait()
        elif mode != "none":
            self._copy(len(self.shard) if mode == "whole" else self.bucket)
        for _ in range(self.products):
            torch.mm(self.left, self.right, out=self.out)
        if self.side is not None and mode in ("bucketed", "whole"):
            torch.cuda.current_stream().wait_stream(self.side)  # the update must not overtake the copy
        return self.host

    def _copy(self, bucket: int) -> None:
        if self.side is None:
            self._buckets(bucket, non_blocking=False)
            return
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            self._buckets(bucket, non_blocking=True)

    def _buckets(self, bucket: int, non_blocking: bool) -> None:
        for start in range(0, len(self.shard), bucket):
            part = slice(start, start + bucket)
            self.host[part].copy_(self.shard[part], non_blocking=non_blocking)

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int) -> float:
        """Median seconds of some work, after one round to warm up."""
        taken = []
        for _ in range(rounds + 1):
            self._wait()
            begun = time.perf_counter()
            work()
            self._wait()
            taken.append(time.perf_counter() - begun)
        return sorted(taken[1:])[rounds // 2]
