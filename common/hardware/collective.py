"""Seconds of an all-reduce, by NCCL's own cost model for a ring.

Source: NVIDIA/nccl, src/graph/tuning.cc (ncclTopoTuneModel and its default constants). NCCL runs whichever of
its three protocols that model says is fastest; so does this. Trees and NVLink SHARP are left out, which makes
this an upper estimate for many GPUs.
"""

from typing import NamedTuple

from common.hardware.specs import Link


class _Protocol(NamedTuple):
    base_seconds: float  # once a call
    hop_seconds: dict[str, float]  # a step of the ring, by kind of link
    bandwidth: float  # share of the link's usable bandwidth that carries data


_PROTOCOLS = (
    # low latency: every 8 bytes carry 4 bytes of flag
    _Protocol(6.6e-6, {"nvlink": 0.6e-6, "pcie": 1.0e-6, "network": 2.7e-6}, 0.5),
    # 120 of every 128 bytes are data; NCCL counts 0.92
    _Protocol(14.0e-6, {"nvlink": 1.9e-6, "pcie": 2.5e-6, "network": 4.0e-6}, 0.92),
    _Protocol(8.4e-6, {"nvlink": 3.4e-6, "pcie": 5.7e-6, "network": 14.0e-6}, 1.0),
)


def all_reduce_seconds(link: Link, reduce_bytes: float, ranks: int) -> float:
    """Seconds to sum `reduce_bytes` over `ranks` GPUs in a ring; 0 for one GPU.

    2 (ranks - 1) steps, in which each GPU sends 2 (ranks - 1) / ranks of the bytes.
    """
    if ranks < 1:
        raise ValueError(f"an all-reduce needs at least one rank, not {ranks}")
    if ranks == 1:
        return 0.0
    steps = 2 * (ranks - 1)
    moving = link.transfer_seconds(reduce_bytes * steps / ranks)
    return min(p.base_seconds + steps * p.hop_seconds[link.kind] + moving / p.bandwidth for p in _PROTOCOLS)
