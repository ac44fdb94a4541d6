"""Group parameter sharing: which neighbours run the same matrices, and whose.

The retained blocks, in order, are cut into groups of neighbours; all blocks of a group run one parent's matrices.
`folded` picks the groups whose members' outputs are most alike, in all ways to cut the row at once (the abstract names
groups of neighbours; the choice by mutual similarity, the size of two or three and the parent are inferred).
"""

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np

from papers.foldgpt.virtual_blocks import Fold, without

Groups = tuple[tuple[int, ...], ...]
PARENTS = ("first", "closest")


def folded(
    blocks: int,
    removed: Collection[int],
    children: int,
    similarity: Sequence[Sequence[float]],
    *,
    size: int = 2,
    alone: Collection[int] = (),
    parent: str = "first",
) -> Fold:
    """Remove blocks, then let `children` of the others run a neighbour's matrices.

    similarity: of the outputs of every two blocks, from `mutual`. size: of the largest group. alone: blocks that stay
    outside every group. parent: the first of a group, or the one closest to all others. ValueError where no cut of the
    row has so many children.
    """
    if parent not in PARENTS:
        raise ValueError(f"the parent of a group is one of {', '.join(PARENTS)}, not {parent!r}")
    kept = without(removed, blocks).kept
    parents = {block: block for block in kept}
    for group in best_groups(kept, children, similarity, size, frozenset(alone)):
        chosen = group[0] if parent == "first" else max(group, key=lambda p: _alike(p, group, similarity))
        parents |= dict.fromkeys(group, chosen)
    return Fold(blocks, kept, tuple(parents[block] for block in kept))


def best_groups(
    kept: Sequence[int],
    children: int,
    similarity: Sequence[Sequence[float]],
    size: int,
    alone: frozenset[int] = frozenset(),
) -> Groups:
    """The cut of a row into groups with exactly `children` members beyond the first of each, by dynamic programming.

    It maximises the summed similarity of each member to the first of its group.
    """
    if size < 2 or children < 0:
        raise ValueError(
            f"groups have two blocks or more and children are counted, not {size} and {children}"
        )

    @cache
    def best(end: int, left: int) -> tuple[float, Groups]:
        if left < 0 or end < 0 or (end == 0 and left):
            return -np.inf, ()
        if end == 0:
            return 0.0, ()
        found = best(end - 1, left)
        for length in range(2, min(size, end) + 1):
            group = tuple(kept[end - length : end])
            if alone.isdisjoint(group):
                score, groups = best(end - length, left - length + 1)
                score += _alike(group[0], group[1:], similarity)
                if score > found[0]:
                    found = (score, (*groups, group))
        return found

    score, groups = best(len(kept), children)
    if score == -np.inf:
        raise ValueError(
            f"{len(kept)} blocks, {len(alone)} of them alone, have no groups of at most {size} with {children} children"
        )
    return groups


def scattered(plan: Fold, rng: np.random.Generator, alone: Collection[int] = ()) -> Fold:
    """As many children as in `plan`, each running the matrices of a random block that is no neighbour of it.

    The negative control of grouping by similarity. Blocks of `alone` are neither child nor parent.
    """
    count = len(plan.kept) - len(set(plan.parents))
    free = [block for block in plan.kept if block not in alone]
    parents = dict(zip(plan.kept, plan.kept, strict=True))
    children = sorted(rng.choice(free, count, replace=False).tolist())
    for child in children:
        others = [block for block in free if block not in children and abs(block - child) > 2]
        parents[child] = int(rng.choice(others))
    return Fold(plan.blocks, plan.kept, tuple(parents[block] for block in plan.kept))


def _alike(parent: int, members: Sequence[int], similarity: Sequence[Sequence[float]]) -> float:
    return sum(float(similarity[parent][member]) for member in members)
