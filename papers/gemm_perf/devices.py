"""What the tile sweep needs of a machine, and the two that offer it: CUDA, and this CPU for checking the sweep itself.

On CUDA the kernel is compiled by NVRTC through torch, so that no CUDA toolkit is needed.
"""

import time
from collections.abc import Callable
from typing import Protocol

import torch

from papers.gemm_perf.energy_meter import Meter, Nvml
from papers.gemm_perf.tiled_kernel import SOURCE, launch, tiled_product


class Device(Protocol):
    """What the sweep needs of a machine."""

    meter: Meter
    name: str

    def product(self, a: torch.Tensor, b: torch.Tensor, tile: int) -> torch.Tensor:
        """Start the tiled kernel."""

    def synchronize(self) -> None:
        """Wait until all that was started has ended."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call on the device's own clock."""

    def tensor(self, rows: int, columns: int) -> torch.Tensor:
        """An empty float32 matrix."""


class CudaDevice:
    """The Device on CUDA. one_tile: launch with this tile whatever is asked for (a control); 0: as asked."""

    def __init__(self, device: str, one_tile: int = 0) -> None:
        self.torch_device = torch.device(device)
        properties = torch.cuda.get_device_properties(self.torch_device)
        self.name = str(properties.name)
        self.capability = f"{properties.major}.{properties.minor}"
        uuid = str(properties.uuid)
        self.meter: Meter = Nvml(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        self.one_tile = one_tile
        self._kernel = torch.cuda._compile_kernel(SOURCE, "tiled_sgemm")

    def product(self, a: torch.Tensor, b: torch.Tensor, tile: int) -> torch.Tensor:
        """See Device."""
        tile = self.one_tile or tile
        (m, k), n = a.shape, b.shape[1]
        shape = launch(m, n, tile)
        c = torch.empty(m, n, device=a.device)
        self._kernel(
            grid=(*shape.grid, 1),
            block=(*shape.block, 1),
            args=[a, b, c, m, n, k, tile],
            shared_mem=shape.shared_bytes,
        )
        return c

    def synchronize(self) -> None:
        """See Device."""
        torch.cuda.synchronize(self.torch_device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Between two CUDA events around one launch."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def tensor(self, rows: int, columns: int) -> torch.Tensor:
        """See Device."""
        return torch.empty(rows, columns, device=self.torch_device)


class CpuDevice:
    """The Device on this CPU, with a meter handed in: for checking this file without a GPU, not for tables."""

    name = "CPU"

    def __init__(self, meter: Meter, one_tile: int = 0) -> None:
        self.meter = meter
        self.one_tile = one_tile

    def product(self, a: torch.Tensor, b: torch.Tensor, tile: int) -> torch.Tensor:
        """See Device."""
        return tiled_product(a, b, self.one_tile or tile)

    def synchronize(self) -> None:
        """Nothing runs behind the caller's back."""

    def seconds(self, call: Callable[[], object]) -> float:
        """See Device: the wall clock."""
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    def tensor(self, rows: int, columns: int) -> torch.Tensor:
        """See Device."""
        return torch.empty(rows, columns)


class exact_float32:
    """No TF32 within the block."""

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self._before
