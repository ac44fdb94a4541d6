"""A device whose free memory changes: what BitStack does with it, and what a set of quantised models would."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from papers.bitstack.resident import Move, Resident
from papers.bitstack.universal_stack import Stack


def free_memory(rng: np.random.Generator, ticks: int, low: float, high: float, step: float) -> np.ndarray:
    """Free bytes at each tick: a random walk with normal steps, reflected at both ends. Synthetic."""
    walk = rng.uniform(low, high) + np.cumsum(rng.normal(0.0, step, ticks))
    folded = np.mod(walk - low, 2 * (high - low))
    return low + np.minimum(folded, 2 * (high - low) - folded)


@dataclass(frozen=True)
class Followed:
    """used: bytes in memory at each tick. moves: what each tick took."""

    used: np.ndarray
    moves: tuple[Move, ...]

    def bytes_read(self) -> int:
        """From storage, over all ticks."""
        return sum(move.bytes_read for move in self.moves)


def follow(resident: Resident, stack: Stack, free: np.ndarray) -> Followed:
    """Load and drop real blocks until, tick by tick, as much of the stack is in memory as fits."""
    used, moves = [], []
    rest = stack.base - sum(stack.nbytes.values())  # what is no block
    resident.follow(stack, float(free[0]))
    for budget in free:
        moves.append(resident.follow(stack, float(budget)))
        used.append(rest + resident.nbytes)
    return Followed(np.array(used), tuple(moves))


def swap(sizes: Sequence[int], fixed: int, free: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest of some quantised models that fits at each tick: bytes used, and bytes read when it changes.

    sizes: whole models; `fixed` bytes of each (embeddings, norms) are the same and stay. Nothing fits: nothing is used.
    """
    ordered = np.sort(np.asarray(sizes))
    place = np.searchsorted(ordered, free, side="right") - 1
    used = np.where(place < 0, 0, ordered[place.clip(0)])
    changed = used[1:][(used[1:] != used[:-1]) & (used[1:] > 0)]
    return used, int((changed - fixed).sum())
