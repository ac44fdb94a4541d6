"""How long a training state in host memory survives, counted by node sets.

Nodes fail independently; nothing is repaired within the window looked at (the time until a disk checkpoint, or until a
replacement has joined and decoded). R = exp(-rate t) is one node's chance to see t:

    plain memory, in the trainer             nothing fails at all, software neither
    snapshot process                         R^N of hardware failures: any lost node takes its shard with it
    snapshot process and erasure coding      [R^m + m R^(m-1) (1 - R)]^(N/m): every group of m loses at most one

Groups of tensor-parallel ranks that share nodes fail together, so a set of m nodes counts once however many it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Llama 3 405B (arXiv 2407.21783, Section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 GPUs, 78% of them
# hardware. Nodes of 8 GPUs: one failure in about 6,300 node-hours. Public data, not the paper's.
NODE_HOURS_PER_FAILURE = 54 * 24 * (16384 / 8) / 419
HARDWARE_SHARE = 0.78
GPUS = 8  # of a node: so many sharding groups share the same nodes, one a tensor rank

Hours = np.ndarray | float


@dataclass(frozen=True)
class Fleet:
    """Nodes in sharding groups of `group`. Failures per node and hour, of hardware and of software.

    rack: nodes that fail together, neighbours within one sharding group (1: every node alone). ValueError for what does
    not divide.
    """

    nodes: int = 384
    group: int = 4
    hardware: float = HARDWARE_SHARE / NODE_HOURS_PER_FAILURE
    software: float = (1 - HARDWARE_SHARE) / NODE_HOURS_PER_FAILURE
    rack: int = 1

    def __post_init__(self) -> None:
        if min(self.nodes, self.group, self.rack) < 1 or self.nodes % self.group or self.group % self.rack:
            raise ValueError(f"{self.nodes} nodes, groups of {self.group}, racks of {self.rack}: must divide")
        if not (self.hardware > 0 and self.software > 0):
            raise ValueError(f"failures have positive rates, not {self.hardware} and {self.software}")

    @property
    def sets(self) -> int:
        """Sets of nodes that fail or survive by themselves."""
        return self.nodes // self.group


def plain_memory(fleet: Fleet, hours: Hours) -> np.ndarray:
    """Survival of state in the trainers' own memory: no failure of any kind."""
    return np.exp(-(fleet.hardware + fleet.software) * fleet.nodes * np.asarray(hours, float))


def snapshot_processes(fleet: Fleet, hours: Hours) -> np.ndarray:
    """Survival with snapshot processes alone: no node of any set lost."""
    return np.exp(-fleet.hardware * fleet.nodes / fleet.rack * np.asarray(hours, float))


def erasure_coded(fleet: Fleet, hours: Hours) -> np.ndarray:
    """Survival with parity too: in each set of m nodes at most one lost. Racks of more than one node: none at all."""
    if fleet.rack > 1 or fleet.group == 1:
        return snapshot_processes(fleet, hours)
    m, one = fleet.group, np.exp(-fleet.hardware * np.asarray(hours, float))
    return (one**m + m * one ** (m - 1) * (1 - one)) ** fleet.sets


def hours_at(curve: Callable[[Fleet, float], np.ndarray], fleet: Fleet, probability: float) -> float:
    """Hours for which the state survives with this probability; bisection. ValueError outside (0, 1)."""
    if not 0 < probability < 1:
        raise ValueError(f"a probability between 0 and 1, not {probability}")
    low, high = 0.0, 1.0
    while curve(fleet, high) > probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if curve(fleet, middle) > probability else (low, middle)
    return low


def node_sets(fleet: Fleet, rng: np.random.Generator | None = None) -> np.ndarray:
    """The nodes of every sharding group, int of shape (sets, m).

    As the method places them, the groups of all tensor ranks lie on the same m nodes, and such a set counts once. Given
    a generator, every group's m members sit on GPUs drawn at random instead: of any nodes, also twice of one.
    """
    if rng is None:
        return np.arange(fleet.nodes).reshape(fleet.sets, fleet.group)
    return rng.permutation(np.repeat(np.arange(fleet.nodes), GPUS)).reshape(-1, fleet.group)


def histories(
    fleet: Fleet,
    count: int,
    rng: np.random.Generator,
    parity: bool = True,
    apart: bool = True,
    sets: np.ndarray | None = None,
) -> np.ndarray:
    """Hours until the state is lost in `count` simulated histories, sorted; shape (count,).

    Lifetimes of single nodes (or racks) are drawn one by one and lost nodes counted in each set: nothing of the closed
    form is used. Without parity the first lost node is the end, with it the second one of the same set; apart: False
    where snapshots live in the trainers, so that the first failure of software is the end too. ValueError for no count.
    """
    if count < 1:
        raise ValueError(f"at least one history, not {count}")
    sets = node_sets(fleet) if sets is None else sets
    ends = np.empty(count)
    for start in range(0, count, 500):  # so many at a time keep the memory small
        some = min(500, count - start)
        lives = rng.exponential(1 / fleet.hardware, (some, fleet.nodes // fleet.rack))
        lives = np.repeat(lives, fleet.rack, axis=1)  # a rack takes all its nodes at once
        if parity and fleet.group > 1:
            fatal = np.partition(lives[:, sets], 1, axis=2)[:, :, 1].min(axis=1)
        else:
            fatal = lives.min(axis=1)
        crashed = rng.exponential(1 / (fleet.software * fleet.nodes), some)
        ends[start : start + some] = fatal if apart else np.minimum(fatal, crashed)
    return np.sort(ends)
