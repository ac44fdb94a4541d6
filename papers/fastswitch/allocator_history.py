"""A long history of requests that come, grow and leave, for either allocator."""

from collections.abc import Iterator

import numpy as np

CAPACITY = 28_000  # blocks: the swap space of the LLaMA-8B deployment
MEAN_BLOCKS = 40  # of a new request: 640 tokens


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
