"""The universal stack: all blocks of all matrices in one order, of which a device holds a prefix.

Every matrix always has its first block; the stack orders the rest. An order is a sequence of matrix names: a matrix's
n-th mention is its block n, so that whatever the order, blocks are only ever added to those they were made for.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

Counts = Mapping[str, int]  # blocks of each matrix that are loaded


@dataclass(frozen=True)
class Stack:
    """order: names of matrices. nbytes: of a block of each. base: bytes with one block everywhere, all else included.

    grain: blocks that are only loaded together, 1 in BitStack.
    """

    order: tuple[str, ...]
    nbytes: Mapping[str, int]
    base: int
    grain: int = 1

    def memory(self) -> list[int]:
        """Bytes of every prefix that can be loaded, from none of the stack to all of it."""
        return list(accumulate((self.nbytes[name] for name in self.order), initial=self.base))[:: self.grain]

    def fitting(self, budget: float) -> int:
        """The longest prefix within a budget of bytes. ValueError where not even the first blocks fit."""
        sizes = self.memory()
        if budget < sizes[0]:
            raise ValueError(f"{budget:.0f} bytes do not hold one block everywhere, which takes {sizes[0]}")
        return self.grain * (int(np.searchsorted(sizes, budget, side="right")) - 1)

    def counts(self, prefix: int) -> dict[str, int]:
        """Blocks of each matrix with the first `prefix` blocks of the stack loaded."""
        found = dict.fromkeys(self.nbytes, 1)
        for name in self.order[:prefix]:
            found[name] += 1
        return found


def average_order(perplexities: Sequence[Mapping[tuple[str, ...], float]]) -> tuple[str, ...]:
    """Level by level, within a level by what one more block of a group alone brings: the paper's "average".

    perplexities[b - 1][group]: with one more block in the matrices of a group, b blocks everywhere else. Where that is
    no number, the next level's plus the level's largest stands for it, as in the repository.
    """
    filled: list[dict[tuple[str, ...], float]] = []
    for level in reversed(perplexities):
        largest = max((p for p in level.values() if math.isfinite(p)), default=0.0)
        behind = filled[-1] if filled else dict.fromkeys(level, math.inf)
        filled.append({g: p if math.isfinite(p) else behind[g] + largest for g, p in level.items()})
    return tuple(
        name for level in reversed(filled) for group in sorted(level, key=level.__getitem__) for name in group
    )


def greedy_order(
    groups: Sequence[tuple[str, ...]], blocks: int, perplexity: Callable[[Counts], float]
) -> tuple[str, ...]:
    """After each choice every group is tried anew: the one that lowers perplexity most comes next."""
    counts = {name: 1 for group in groups for name in group}
    order: list[str] = []
    while left := [group for group in groups if counts[group[0]] < blocks]:
        tried = {g: perplexity(counts | {name: counts[name] + 1 for name in g}) for g in left}
        best = min(left, key=tried.__getitem__)
        counts |= {name: counts[name] + 1 for name in best}
        order += best
    return tuple(order)


def random_order(
    groups: Sequence[tuple[str, ...]], blocks: int, rng: np.random.Generator, within_levels: bool = False
) -> tuple[str, ...]:
    """All blocks shuffled; or the levels in order, and each of them shuffled."""
    levels = [[*groups] for _ in range(blocks - 1)]
    if not within_levels:
        levels = [[group for level in levels for group in level]]
    return tuple(name for level in levels for place in rng.permutation(len(level)) for name in level[place])


def from_the_bottom(order: Sequence[str]) -> tuple[str, ...]:
    """A stack loaded from its wrong end, a negative control: the last block first, with all that it rests on.

    A block can only be loaded on top of those of its matrix that come before it, so that this takes one matrix after
    another, whole, the least important first.
    """
    total = Counter(order)
    return tuple(name for last in dict.fromkeys(reversed(order)) for name in [last] * total[last])
