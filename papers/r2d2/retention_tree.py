"""OPT-RET on forests in linear time: every table can be rebuilt from one other at most, its parent.

    f(v, kept)    = K_v + sum over children c of min(f(c, kept), f(c, deleted))
    f(v, deleted) = R_v + sum over children c of f(c, kept)        (its parent is kept; its children's parent is gone)

K_v keeps v, R_v rebuilds it from its parent for the period. A root is kept. Two visits a table; without remembering
f the same table is asked for once a path of choices above it, which grows faster than the forest.
"""

from dataclasses import dataclass

import numpy as np

from papers.r2d2.retention import Plan, Problem, cost


@dataclass(frozen=True, eq=False)
class Forest:
    """parent: of each table, -1 of a root. keep, rebuild: micro-dollars; all of shape (tables,). Refuses a cycle."""

    parent: np.ndarray
    keep: np.ndarray
    rebuild: np.ndarray

    def __post_init__(self) -> None:
        if len(self.order()) != len(self.parent):
            raise ValueError("the parents go round in a cycle, or a parent does not exist")

    def children(self) -> list[list[int]]:
        below: list[list[int]] = [[] for _ in self.parent]
        for table, parent in enumerate(self.parent.tolist()):
            if 0 <= parent < len(below):
                below[parent].append(table)
        return below

    def order(self) -> list[int]:
        """Parents before children."""
        below = self.children()
        ahead = [table for table, parent in enumerate(self.parent.tolist()) if parent < 0]
        for table in ahead:  # grows while it is gone through
            ahead.extend(below[table])
        return ahead

    def problem(self) -> Problem:
        """The same as an integer program's input."""
        edges = tuple((int(p), v) for v, p in enumerate(self.parent.tolist()) if p >= 0)
        return Problem(self.keep, edges, self.rebuild[[v for _, v in edges]])


def forest_of(given: Problem) -> Forest:
    """A program whose tables have one possible container each. ValueError where one has two: no forest, no shortcut."""
    parent = np.full(len(given.keep), -1, dtype=np.int64)
    rebuild = np.zeros(len(given.keep), dtype=np.int64)
    for (above, below), price in zip(given.edges, given.rebuild, strict=True):
        if parent[below] >= 0:
            raise ValueError(
                f"table {below} can be rebuilt from {parent[below]} and from {above}: this is no forest"
            )
        parent[below], rebuild[below] = above, price
    return Forest(parent, given.keep, rebuild)


def forest_optimum(forest: Forest) -> Plan:
    """The cheapest plan, bottom-up and then top-down; O(tables)."""
    keep, rebuild, parent = forest.keep.tolist(), forest.rebuild.tolist(), forest.parent.tolist()
    kept, deleted = list(keep), list(rebuild)
    order = forest.order()
    for table in reversed(order):
        above = parent[table]
        if above >= 0:
            kept[above] += min(kept[table], deleted[table])
            deleted[above] += kept[table]
    stays = [True] * len(parent)
    total = 0
    for table in order:
        above = parent[table]
        if above < 0:
            total += kept[table]
        elif stays[above] and deleted[table] < kept[table]:
            stays[table] = False
    source = {table: parent[table] for table in order if not stays[table]}
    return Plan(tuple(stays), source, total)


def without_memory(forest: Forest) -> tuple[int, int]:
    """(the optimal cost, evaluations of f) by the recursion as written, which computes f(c, kept) at each use."""
    below = forest.children()
    keep, rebuild = forest.keep.tolist(), forest.rebuild.tolist()
    visits = 0

    def kept(table: int) -> int:
        nonlocal visits
        visits += 1
        return keep[table] + sum(min(kept(child), deleted(child)) for child in below[table])

    def deleted(table: int) -> int:
        nonlocal visits
        visits += 1
        return rebuild[table] + sum(kept(child) for child in below[table])

    return sum(kept(root) for root in np.flatnonzero(forest.parent < 0).tolist()), visits


def random_forest(tables: int, rng: np.random.Generator, roots: float = 0.02) -> Forest:
    """Each table descends from a uniformly random earlier one, or is a root; sizes log-uniform from 0.1 to 100 GB.

    Keeping costs as in `Prices` (0.0244 $/GB); rebuilding reads the parent once for each of 0 to 30 accesses.
    """
    parent = np.array([-1] + [int(rng.integers(v)) if rng.random() > roots else -1 for v in range(1, tables)])
    gb = 10 ** rng.uniform(-1, 2, tables)
    keep = np.rint(24_400 * gb).astype(np.int64)
    rebuild = np.rint(142 * (gb[parent] + gb) * rng.integers(0, 31, tables)).astype(np.int64)
    return Forest(parent, keep, rebuild)


def with_second_parents(forest: Forest, share: float, rng: np.random.Generator) -> Problem:
    """The program in which a share of the tables has a second possible container, at half the price of the first."""
    given = forest.problem()
    edges, prices = list(given.edges), given.rebuild.tolist()
    known = set(edges)
    for (_, below), price in zip(given.edges, given.rebuild.tolist(), strict=True):
        other = int(rng.integers(below))  # an earlier table, as every parent is
        if rng.random() < share and (other, below) not in known:
            edges.append((other, below))
            prices.append(price // 2)
    return Problem(given.keep, tuple(edges), np.array(prices, dtype=np.int64))


def plan_cost(given: Problem, plan: Plan) -> int:
    """What a plan made for the first parents costs in the whole program."""
    return cost(given, plan.source)
