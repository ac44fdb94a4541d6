"""Run one function in several real processes that form a gloo process group on this machine.

    results = launch(work, world=2, arguments=(config,), seconds=60)   # work(rank, world, *arguments)

A fleet (common/distributed/fleet.py) with nothing in it but this one group.
"""

from collections.abc import Callable
from typing import Any

from common.distributed.fleet import Fleet, RankFailed

__all__ = ["RankFailed", "launch"]


def launch(
    function: Callable[..., Any],
    world: int,
    arguments: tuple[Any, ...] = (),
    seconds: float = 300.0,
    threads: int = 1,
) -> list[Any]:
    """What function(rank, world, *arguments) returned on each rank, in the order of ranks; see Fleet.run."""
    with Fleet() as fleet:
        return fleet.run(function, world, arguments, seconds, threads)
