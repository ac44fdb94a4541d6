"""Peak rates of GPUs and links, each from the data sheet named beside it. Nothing here is an achieved rate."""

import difflib
from dataclasses import dataclass
from typing import TypeVar

GIB = 2**30
A100_SHEET = "NVIDIA A100 Tensor Core GPU data sheet, 1758950-r4 (SMs: Ampere architecture white paper)"
H100_SHEET = "NVIDIA H100 Tensor Core GPU data sheet (SMs, dense rate: Hopper architecture white paper)"


@dataclass(frozen=True)
class GPU:
    """A device's limits: dense bfloat16 FLOP/s with float32 accumulation, bytes, bytes/s."""

    name: str
    flops: float  # dense bf16 tensor FLOP/s: half of what data sheets print with sparsity
    bandwidth: float  # device memory, bytes/s
    memory_bytes: int  # as sold; drivers leave a little less (an H100 80GB reports 79.2 GiB)
    sms: int  # streaming multiprocessors
    interconnect: str  # the fastest link between two of them in a node, a name in LINKS
    host_link: str  # to the host, a name in LINKS
    source: str


@dataclass(frozen=True)
class Link:
    """A connection: bytes/s in one direction (data sheets print both), and what of it transfers can reach."""

    name: str
    bytes_per_s: float  # one direction, nominal
    usable: float  # reachable share
    kind: str  # nvlink | pcie | network: which latencies of collectives apply
    source: str

    def transfer_seconds(self, transfer_bytes: float) -> float:
        """Seconds to move `transfer_bytes` one way, without latency."""
        return transfer_bytes / (self.bytes_per_s * self.usable)


LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        # Usable: NCCL's own estimate a link, 20.0 (A100) and 20.6 (H100) of 25 GB/s (src/graph/topo.h).
        Link("nvlink-3", 300e9, 20.0 / 25, "nvlink", A100_SHEET + ": 600 GB/s both ways"),
        Link("nvlink-4", 450e9, 20.6 / 25, "nvlink", H100_SHEET + ": 900 GB/s both ways"),
        # 16 lanes of 16 or 32 GT/s, 128b/130b coding (PCI Express Base Specification 4.0, 5.0). Usable: 55.0 of
        # 63.0 GB/s, the largest pinned copies of tables/h100/copies.csv.
        Link("pcie-4", 16 * 16e9 * 128 / 130 / 8, 0.87, "pcie", "PCI Express Base Specification 4.0, x16"),
        Link("pcie-5", 16 * 32e9 * 128 / 130 / 8, 0.87, "pcie", "PCI Express Base Specification 5.0, x16"),
        # Nominal rates: what a protocol stack leaves of them depends on it, so nothing is taken off here.
        Link("ethernet-25g", 25e9 / 8, 1.0, "network", "IEEE 802.3by, 25 Gbit/s"),
        Link("ethernet-100g", 100e9 / 8, 1.0, "network", "IEEE 802.3ba, 100 Gbit/s"),
        Link("infiniband-hdr", 200e9 / 8, 1.0, "network", "InfiniBand HDR 4x, 200 Gbit/s"),
        Link("infiniband-ndr", 400e9 / 8, 1.0, "network", "InfiniBand NDR 4x, 400 Gbit/s"),
    )
}

GPUS: dict[str, GPU] = {
    gpu.name: gpu
    for gpu in (
        GPU("a100-40gb-sxm", 312e12, 1555e9, 40 * GIB, 108, "nvlink-3", "pcie-4", A100_SHEET),
        GPU("a100-80gb-sxm", 312e12, 2039e9, 80 * GIB, 108, "nvlink-3", "pcie-4", A100_SHEET),
        # The PCIe cards can be bridged in pairs by NVLink; without a bridge they talk over PCIe.
        GPU("a100-40gb-pcie", 312e12, 1555e9, 40 * GIB, 108, "pcie-4", "pcie-4", A100_SHEET),
        GPU("a100-80gb-pcie", 312e12, 1935e9, 80 * GIB, 108, "pcie-4", "pcie-4", A100_SHEET),
        GPU("h100-sxm", 989.4e12, 3.35e12, 80 * GIB, 132, "nvlink-4", "pcie-5", H100_SHEET),
        # 242 TFLOP/s with sparsity.
        GPU("l4", 121e12, 300e9, 24 * GIB, 58, "pcie-4", "pcie-4", "NVIDIA L4 Tensor Core GPU data sheet"),
        # 46 SMs x 512 dense bf16 FLOP (float32 accumulation) a cycle x 2.475 GHz boost.
        GPU(
            "rtx-4070",
            46 * 512 * 2.475e9,
            504e9,
            12 * GIB,
            46,
            "pcie-4",
            "pcie-4",
            "NVIDIA Ada GPU architecture white paper; GeForce RTX 4070 product page",
        ),  # fmt: skip
    )
}

T = TypeVar("T")


def _find(kind: str, name: str, known: dict[str, T]) -> T:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    raise KeyError(f"no {kind} {name!r}; nearest: {', '.join(near or sorted(known))}")


def gpu(name: str) -> GPU:
    """The device called `name` in GPUS; KeyError with the nearest names otherwise."""
    return _find("GPU", name, GPUS)


def link(name: str) -> Link:
    """The link called `name` in LINKS; KeyError with the nearest names otherwise."""
    return _find("link", name, LINKS)
