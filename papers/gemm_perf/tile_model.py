"""Seconds of the tiled kernel on a board from its data sheet: the slower of four things, no fitted constant.

A wave of resident blocks (occupancy) goes along K in steps, and a step takes the longer of
  the load-store unit   passes of all resident blocks, one a cycle (tiled_kernel.passes),
  the float32 lanes     multiply-adds of all resident blocks,
  a block's own path    load, barrier, inner loop, barrier: nothing of one block overlaps with itself, so that few
                        resident blocks expose it;
and the whole product takes at least as long as device memory needs for the bytes that L2 does not keep.
"""

from dataclasses import dataclass
from math import ceil

from common.hardware.float32 import Float32Board
from common.hardware.occupancy import WARP, limits, occupancy, warps_of
from papers.gemm_perf.tiled_kernel import BYTES, REGISTERS, launch, passes

LAUNCH_SECONDS = 4e-6  # inferred: what an empty kernel between two events takes


@dataclass(frozen=True)
class Latencies:
    """Cycles from load to use, and of a dependent multiply-add."""

    shared: float
    l2: float
    memory: float
    multiply_add: float = 4.0


# Luo et al. 2024, Benchmarking and Dissecting the Nvidia Hopper GPU Architecture (arXiv 2402.13499), memory latencies:
# RTX 4090, A100 and H100 PCIe stand for their compute capabilities.
LATENCIES = {
    "8.0": Latencies(29.0, 261.5, 466.3),
    "8.9": Latencies(30.1, 273.0, 541.5),
    "9.0": Latencies(29.0, 263.0, 478.8),
}


@dataclass(frozen=True)
class TileTime:
    """Seconds of a product, what bounds it, and the occupancy behind it."""

    seconds: float
    bound: str  # load-store unit | float32 lanes | block path | device memory
    occupancy: float
    memory_bytes: float


def tile_time(board: Float32Board, m: int, n: int, k: int, tile: int, code_tile: int = 0) -> TileTime:
    """The kernel with this tile; code_tile: the tile that the code really uses (a control), 0 for the one asked for."""
    tile = code_tile or tile
    shape = launch(m, n, tile)
    capability = board.compute_capability
    held = occupancy(limits(capability), tile * tile, shape.shared_bytes, REGISTERS[capability])
    blocks = shape.grid[0] * shape.grid[1]
    resident = min(held.blocks, ceil(blocks / board.sms))  # of an SM; a small grid does not fill it
    waves = ceil(blocks / (resident * board.sms))
    steps = ceil(k / tile)
    warps = warps_of(tile * tile)
    step = passes(tile)
    lanes_cycles = warps * WARP * tile / (board.lanes / board.sms)
    wait = LATENCIES[capability]
    fits = (
        k * n * BYTES <= board.l2_bytes
    )  # else the barrier waits for the slowest load, which comes from memory
    path = (
        (wait.l2 if fits else wait.memory)
        + step.global_loads
        + step.shared_stores
        + wait.shared
        + max(step.shared_loads, lanes_cycles, tile * (wait.shared + wait.multiply_add))
    )
    cycles = {
        "load-store unit": resident * step.total,
        "float32 lanes": resident * lanes_cycles,
        "block path": path,
    }
    bound = max(cycles, key=lambda name: cycles[name])
    seconds = waves * steps * cycles[bound] / board.boost_hz
    moved = memory_bytes(board, m, n, k, tile, resident * board.sms)
    if moved / board.bandwidth > seconds:
        seconds, bound = moved / board.bandwidth, "device memory"
    return TileTime(LAUNCH_SECONDS + seconds, bound, held.share, moved)


def memory_bytes(board: Float32Board, m: int, n: int, k: int, tile: int, in_flight: int) -> float:
    """Bytes to and from device memory with `in_flight` blocks at once, taken along the rows of C.

    A row of blocks shares its panel of A, which stays in L2. B is read again for every group of block rows that are in
    flight together, unless the whole of it stays in L2. C is written once.
    """
    along_n, along_m = ceil(n / tile), ceil(m / tile)
    together = max(1, min(along_m, in_flight // along_n))
    times = 1 if k * n * BYTES <= board.l2_bytes else ceil(along_m / together)
    return BYTES * (m * k + times * k * n + m * n)
