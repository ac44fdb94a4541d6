"""A real copy engine on the CPU: a worker thread copies KV blocks while a decode loop computes.

Two tensors stand for the GPU's memory and the host's. Copying a block releases Python's lock, so that the loop goes on;
a worker without a processor of its own would not help.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from papers.fastswitch.block_groups import Piece

BLOCK_ELEMENTS = 256 << 10  # float32: 1 MiB a block, all layers together
STEPS = 200  # decode iterations, about a tenth of a second


@dataclass(frozen=True)
class DecodeLoop:
    """Seconds between the ends of consecutive iterations while a swap is under way, and how many there were."""

    longest: float  # s
    iterations: int  # that ended before the copy had


def copy_pieces(source: Tensor, target: Tensor, moved: list[Piece]) -> None:
    """Copy the rows of each piece; tensors of shape (blocks, BLOCK_ELEMENTS)."""
    for start, to, length in moved:
        target[to : to + length] = source[start : start + length]


def decode_beside(
    source: Tensor, target: Tensor, moved: list[Piece], weights: Tensor, asynchronous: bool
) -> DecodeLoop:
    """Decode STEPS iterations, each a product with `weights`, with a swap ordered before the first.

    asynchronous: a worker thread copies; else the loop copies itself and waits. The copy has ended on return.
    """
    x = torch.ones(4, len(weights))
    with ThreadPoolExecutor(1) as pool:
        last = time.perf_counter()
        copying: Future[None] | None = None
        if asynchronous:
            copying = pool.submit(copy_pieces, source, target, moved)
        else:
            copy_pieces(source, target, moved)
        longest, meanwhile = 0.0, 0
        for _ in range(STEPS):
            x = torch.tanh(x @ weights)
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now
            meanwhile += copying is not None and not copying.done()
        if copying is not None:
            copying.result()
    return DecodeLoop(longest, meanwhile)


@dataclass(frozen=True)
class StallComparison:
    """Of repeats: the shortest of the longest gaps between two iterations, s; median iterations during the copy.

    Other programs on the machine only lengthen gaps, so that the shortest is nearest to what the copy causes.
    """

    waiting: float
    beside: float
    meanwhile: float

    @property
    def gain(self) -> float:
        return self.waiting / self.beside


def compare(
    rng: np.random.Generator, blocks: int, repeats: int, worker: bool, width: int = 1024
) -> StallComparison:
    """A swap of `blocks` blocks with and without a worker thread (worker False: never with one), `repeats` times.

    Raises RuntimeError if a copy arrives damaged.
    """
    source = torch.from_numpy(rng.standard_normal((blocks, BLOCK_ELEMENTS), dtype=np.float32))
    target = torch.zeros_like(source)
    weights = torch.from_numpy(rng.standard_normal((width, width), dtype=np.float32)) / width**0.5
    order = rng.permutation(blocks)
    moved = [Piece(int(block), place, 1) for place, block in enumerate(order)]
    seen: dict[bool, list[DecodeLoop]] = {False: [], True: []}
    decode_beside(source, target, moved, weights, False)
    for _ in range(repeats):
        for asynchronous in (False, True):
            target.zero_()
            seen[asynchronous].append(decode_beside(source, target, moved, weights, asynchronous and worker))
            if not torch.equal(target, source[torch.from_numpy(order)]):
                raise RuntimeError("a copied block differs from its source")
    return StallComparison(
        waiting=float(np.min([one.longest for one in seen[False]])),
        beside=float(np.min([one.longest for one in seen[True]])),
        meanwhile=float(np.median([one.iterations for one in seen[True]])),
    )
