"""A real swap on the device at hand: KV blocks to pinned host memory, a call a block or a call a group, beside GEMMs.

On a GPU copies run on a stream of their own, as the swap manager's do. Calls are issued from Python, so that each costs
more than the 2 us of common/hardware/copies.py; on a CPU the same code copies memory, for tests.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from papers.fastswitch.block_groups import BlockGroups, BlockTables, Piece, SingleBlocks, pieces

GROWTHS, REQUESTS = 40, 24  # blocks that each of so many requests grows by, in turns, beyond its prompt
WARM_UP, REPEATS = 2, 7


@dataclass(frozen=True)
class PinnedSwap:
    """Median seconds of the same swap by calls of a block and by calls of a group, and of both with GEMMs beside."""

    by_block: float
    by_group: float
    products: float  # the GEMMs alone
    beside: float  # the GEMMs with the swap by groups on its own stream

    @property
    def gain(self) -> float:
        return self.by_block / self.by_group

    @property
    def hidden(self) -> float:
        """Share of the swap by groups that runs in the shadow of the GEMMs."""
        return (self.products + self.by_group - self.beside) / self.by_group


def swapped_pieces(
    rng: np.random.Generator, blocks: int, longest: int | None
) -> tuple[list[Piece], list[Piece]]:
    """The pieces of one swap of the most important half of REQUESTS requests, from vLLM's tables and from groups."""
    found = []
    seed = int(rng.integers(2**32))
    both: list[tuple[BlockTables, BlockTables]] = [
        (SingleBlocks(blocks), SingleBlocks(blocks)),
        (BlockGroups(blocks, longest=longest), BlockGroups(blocks, longest=longest)),
    ]
    for tables, host in both:
        order = np.random.default_rng(seed)  # the same history for both
        for owner in range(REQUESTS):
            tables.allocate(owner, int(order.integers(5, blocks // REQUESTS - GROWTHS)))
        for _ in range(GROWTHS):
            for owner in order.permutation(REQUESTS).tolist():
                tables.allocate(owner, 1)
        moved: list[Piece] = []
        for owner in range(0, REQUESTS, 2):
            host.allocate(owner, tables.used(owner))
            moved += pieces(tables.runs(owner), host.runs(owner))
        found.append(moved)
    return found[0], found[1]


def copy_out(pool: Tensor, host: Tensor, moved: list[Piece]) -> None:
    """Order the copies of all pieces; tensors of shape (layers * 2, blocks, elements of a block)."""
    for unit, kept in zip(pool.unbind(), host.unbind(), strict=True):
        for source, target, length in moved:
            kept[target : target + length].copy_(unit[source : source + length], non_blocking=True)


def time_swap(
    rng: np.random.Generator, device: str, blocks: int, layers: int = 32, elements: int = 16384,
    longest: int | None = None,
) -> PinnedSwap:  # fmt: skip
    """Swap for real on `device`; elements: 16-bit ones of a block, for K or V of a layer (16384: 32 KiB).

    Raises RuntimeError if a block arrives damaged.
    """
    pool = torch.randint(0, 30_000, (2 * layers, blocks, elements), dtype=torch.int16, device=device)
    host = torch.zeros(pool.shape, dtype=torch.int16, pin_memory=device != "cpu")
    by_block, by_group = swapped_pieces(rng, blocks, longest)
    x = torch.randn(1024 if device != "cpu" else 8, 4096, device=device)
    weights = torch.randn(4096, 4096, device=device) / 64
    side = torch.cuda.Stream() if device != "cpu" else None

    def products() -> None:
        y = x
        for _ in range(20):
            y = y @ weights

    def beside() -> None:
        if side is None:
            products()
            copy_out(pool, host, by_group)
            return
        side.wait_stream(torch.cuda.current_stream())
        products()
        with torch.cuda.stream(side):
            copy_out(pool, host, by_group)

    block_seconds = _median_seconds(device, lambda: copy_out(pool, host, by_block))
    group_seconds = _median_seconds(device, lambda: copy_out(pool, host, by_group))
    for source, target, length in by_group:
        if not torch.equal(host[:, target : target + length], pool[:, source : source + length].cpu()):
            raise RuntimeError("a swapped block differs from its source")
    return PinnedSwap(
        block_seconds, group_seconds, _median_seconds(device, products), _median_seconds(device, beside)
    )


def _median_seconds(device: str, work: Callable[[], None]) -> float:
    taken = []
    for _ in range(WARM_UP + REPEATS):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[WARM_UP:]))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
