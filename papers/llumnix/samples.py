"""The cluster's memory at a moment: how full it is, and what of it is free but scattered (Figures 5 and 12)."""

from collections.abc import Sequence as Several
from dataclasses import dataclass

from common.serving.engine import Instance
from papers.llumnix.freeness import Rules, load_of, migration_freeness


@dataclass
class Sample:
    """The cluster at one moment, blocks as shares of its memory.

    demanded: held, or asked for by queued requests. fragmented: free, and enough for queued head requests. queued:
    requests. Of each running instance: freeness, at most 1,000; held; asked for by its queue.
    """

    time: float
    demanded: float
    fragmented: float
    queued: int
    freeness: list[float]
    held: list[float]
    asked: list[float]


def sample(time: float, instances: Several[Instance], rules: Rules) -> Sample:
    """Look at the instances now. time: of the look, seconds."""
    loads = [load_of(one, rules.target is not None) for one in instances]
    blocked = [one.memory.needs(one.waiting[0]) for one in instances if one.waiting]
    free = sum(load.free for load in loads)
    total = sum(load.total for load in loads)
    return Sample(
        time,
        1 - (free - sum(load.queued_blocks for load in loads)) / total,
        fragmented_blocks(free, blocked) / total,
        sum(load.queued for load in loads),
        [min(migration_freeness(load, rules), 1e3) for load in loads],
        [1 - load.free / load.total for load in loads],
        [load.queued_blocks / load.total for load in loads],
    )


def fragmented_blocks(free: int, blocked: list[int]) -> int:
    """Free blocks of the cluster that could hold queued head requests, if they were not scattered over instances.

    free: on all instances together. blocked: demands of the head-of-line requests that wait. As many of them are
    counted as fit together, the smallest first.
    """
    used = 0
    for demand in sorted(blocked):
        if used + demand > free:
            break
        used += demand
    return used
