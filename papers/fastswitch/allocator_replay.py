"""The allocators under a long history of requests that come, grow and leave: speed, fragmentation, leaks."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from papers.fastswitch.block_groups import BlockTables

CAPACITY = 28_000  # blocks: the swap space of the LLaMA-8B deployment
MEAN_BLOCKS = 40  # of a new request: 640 tokens


@dataclass(frozen=True)
class Replayed:
    """seconds: of one operation, on average. mean_run: blocks, over time. leaked: blocks that never came back."""

    seconds: float
    mean_run: float
    leaked: int


def operations(rng: np.random.Generator, count: int, fill: float = 0.9) -> Iterator[tuple[int, int]]:
    """(request, blocks) that grow a request or begin one; (request, 0) ends it. Usage stays at or below `fill`."""
    held: dict[int, int] = {}
    alive: list[int] = []
    used = fresh = 0
    kind, size, place = rng.random(count), rng.geometric(1 / MEAN_BLOCKS, count), rng.random(count)
    for i in range(count):
        if alive and used + size[i] > fill * CAPACITY:
            index = int(place[i] * len(alive))
            alive[index], alive[-1] = alive[-1], alive[index]
            gone = alive.pop()
            used -= held.pop(gone)
            yield gone, 0
        elif alive and kind[i] < 0.8:
            grown = alive[int(place[i] * len(alive))]
            held[grown] += 1
            used += 1
            yield grown, 1
        else:
            alive.append(fresh)
            held[fresh] = int(size[i])
            used += held[fresh]
            yield fresh, held[fresh]
            fresh += 1


def replay(tables: BlockTables, work: list[tuple[int, int]], looks: int = 20) -> Replayed:
    """Run all operations on fresh tables, looking at the runs now and then, then end every request."""
    alive: set[int] = set()
    lengths: list[int] = []
    seconds = 0.0
    every = max(1, len(work) // looks)
    for begin in range(0, len(work), every):
        part = work[begin : begin + every]
        start = time.perf_counter()
        for owner, blocks in part:
            if blocks:
                tables.allocate(owner, blocks)
            else:
                tables.give_back(tables.detach(owner))
        seconds += time.perf_counter() - start
        for owner, blocks in part:
            (alive.add if blocks else alive.discard)(owner)
        lengths += [run.length for owner in alive for run in tables.runs(owner)]
    for owner in alive:
        tables.give_back(tables.detach(owner))
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    return Replayed(seconds / len(work), mean, tables.capacity - tables.free)
