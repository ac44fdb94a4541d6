"""Seconds of work that all ranks of a group do together, one side of a comparison after the other (A B B A).

The first time is the dearest (folders and files are made, pages are found), and what it costs falls from time to time
rather than steadily, so that no order of turns cancels it: each side goes once before the clock runs. Of a side's turns
the shortest counts, since whatever else the machine does only adds.
"""

import time
from collections.abc import Callable, Mapping

import torch.distributed as dist


def together(world: int, work: Callable[[], object]) -> float:
    """Seconds from the moment when all ranks begin until the last one is through."""
    if world > 1:
        dist.barrier()
    begun = time.perf_counter()
    work()
    if world > 1:
        dist.barrier()
    return time.perf_counter() - begun


def in_turn(
    world: int, sides: Mapping[str, Callable[[], object]], repetitions: int = 1, turns: int = 1
) -> list[dict[str, float]]:
    """For each repetition the least seconds of each side: forwards and backwards through all of them, in `turns`.

    Each side is worked 1 + repetitions * turns times. ValueError where nothing would be timed.
    """
    if repetitions < 1 or turns < 1:
        raise ValueError(f"{repetitions} repetitions of {turns} turns time nothing")
    for work in sides.values():
        together(world, work)
    found = []
    for repetition in range(repetitions):
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(repetition * turns, (repetition + 1) * turns):
            for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                seconds[side].append(together(world, sides[side]))
        found.append({side: min(each) for side, each in seconds.items()})
    return found
