"""Seconds of work that all ranks of a group do together, one side of a comparison after the other (A B B A)."""

import time
from collections.abc import Callable

import torch.distributed as dist

TURNS = 2  # of each side


def together(world: int, work: Callable[[], object]) -> float:
    """Seconds from the moment when all ranks begin until the last one is through."""
    if world > 1:
        dist.barrier()
    begun = time.perf_counter()
    work()
    if world > 1:
        dist.barrier()
    return time.perf_counter() - begun


def in_turn(world: int, sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each side, forwards and backwards through all of them, so that a drift hits all alike."""
    seconds = dict.fromkeys(sides, 0.0)
    for turn in range(TURNS):
        for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            seconds[side] += together(world, sides[side]) / TURNS
    return seconds
