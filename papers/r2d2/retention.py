"""Stage 4, OPT-RET: which tables to delete and from which kept container to rebuild each (an integer program).

    min  sum_v x_v K_v + sum_(u,v) y_uv A_v C_uv
    s.t. sum_u y_uv = 1 - x_v,   y_uv <= x_u,   y_uv = 0 where L_uv > Th_v,   x, y binary

x_v keeps v, y_uv rebuilds v from u; K_v is storage and maintenance of v for the period, A_v its accesses, C_uv the cost
and L_uv the latency of rebuilding it from u. y_uv <= x_u allows no chain of rebuilding, and keeps one of equal tables.
Costs are whole millionths of a dollar, so that costs of two plans are equal or not, and nothing in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from papers.r2d2.schema_graph import Edge

MICRO = 1e6


@dataclass(frozen=True)
class Prices:
    """Public list prices (AWS, us-east-1, 2024): S3 Standard 0.023 $/GB-month, GET 0.0004 and PUT 0.005 $ a thousand;
    about 0.05 $/core-hour of general-purpose machines. Objects of 128 MB, and 100 MB/s a core (our assumptions).
    """

    storage: float = 0.023  # $/GB-month
    core_hour: float = 0.05  # $
    read_thousand: float = 0.0004  # $/1,000 reads
    write_thousand: float = 0.005  # $/1,000 writes
    object_gb: float = 0.128
    gb_per_core_s: float = 0.1
    scans: float = 4.0  # of every kept table in a month, for privacy requests: one a week
    cores: int = 16  # that rebuild one table together

    def read(self, gb: np.ndarray) -> np.ndarray:
        """$ to read so many GB once."""
        return gb * (self.core_hour / 3600 / self.gb_per_core_s + self.read_thousand / 1000 / self.object_gb)

    def write(self, gb: np.ndarray) -> np.ndarray:
        """$ to write so many GB once."""
        return gb * (self.core_hour / 3600 / self.gb_per_core_s + self.write_thousand / 1000 / self.object_gb)

    def keep(self, gb: np.ndarray) -> np.ndarray:
        """$ to keep so many GB for a month: storage, and scans for maintenance."""
        return gb * self.storage + self.scans * self.read(gb)

    def seconds(self, gb: np.ndarray) -> np.ndarray:
        """Seconds to read so many GB on the rebuilding cores."""
        return gb / (self.cores * self.gb_per_core_s)


@dataclass(frozen=True, eq=False)
class Problem:
    """keep: micro-dollars of keeping each table, shape (tables,). edges: the allowed (container, contained).

    rebuild: micro-dollars of all rebuilding of the contained table over each edge, shape (edges,).
    """

    keep: np.ndarray
    edges: tuple[Edge, ...]
    rebuild: np.ndarray


@dataclass(frozen=True)
class Plan:
    """kept: by table. source: the container of each deleted table. cost: micro-dollars."""

    kept: tuple[bool, ...]
    source: dict[int, int]
    cost: int


def problem(
    gb: np.ndarray,
    accesses: np.ndarray,
    limits: np.ndarray,
    edges: Sequence[Edge],
    prices: Prices,
) -> Problem:
    """The program of a lake: sizes in GB, accesses in a month, latency limits in seconds, each of shape (tables,)."""
    above = np.array([u for u, _ in edges], dtype=np.int64)
    below = np.array([v for _, v in edges], dtype=np.int64)
    in_time = prices.seconds(gb[above]) + prices.seconds(gb[below]) <= limits[below]
    cost = accesses[below] * (prices.read(gb[above]) + prices.write(gb[below]))
    allowed = tuple(edge for edge, ok in zip(edges, in_time, strict=True) if ok)
    return Problem(_micro(prices.keep(gb)), allowed, _micro(cost[in_time]))


def _micro(dollars: np.ndarray) -> np.ndarray:
    return np.rint(MICRO * dollars).astype(np.int64)


def keep_everything(given: Problem) -> Plan:
    """The plan that deletes nothing."""
    return Plan((True,) * len(given.keep), {}, int(given.keep.sum()))


def optimum(given: Problem, seconds: float = 60.0) -> Plan:
    """The cheapest plan, by HiGHS with no gap allowed. RuntimeError where `seconds` do not suffice to prove it."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    tables, rows = len(given.keep), len(given.edges)
    if not rows:
        return keep_everything(given)
    above = np.array([u for u, _ in given.edges])
    below = np.array([v for _, v in given.edges])
    places = tables + np.arange(rows)
    # one row a table: x_v + sum_u y_uv = 1; one row an edge: y_uv - x_u <= 0
    once = coo_array(
        (
            np.ones(tables + rows),
            (np.concatenate([np.arange(tables), below]), np.concatenate([np.arange(tables), places])),
        ),
        shape=(tables, tables + rows),
    )
    kept_source = coo_array(
        (
            np.concatenate([np.ones(rows), -np.ones(rows)]),
            (np.tile(np.arange(rows), 2), np.concatenate([places, above])),
        ),
        shape=(rows, tables + rows),
    )
    solved = milp(
        np.concatenate([given.keep, given.rebuild]).astype(float),
        constraints=[LinearConstraint(once.tocsr(), 1, 1), LinearConstraint(kept_source.tocsr(), -np.inf, 0)],
        integrality=np.ones(tables + rows),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0, "time_limit": seconds},
    )
    if solved.status != 0:
        raise RuntimeError(f"no proven optimum of {tables} tables and {rows} edges: {solved.message}")
    chosen = np.rint(solved.x).astype(bool)
    source = {int(below[e]): int(above[e]) for e in np.flatnonzero(chosen[tables:])}
    plan = Plan(tuple(bool(kept) for kept in chosen[:tables]), source, cost(given, source))
    check(given, plan)
    return plan


def greedy(given: Problem) -> Plan:
    """Delete the dearest tables first, each where its cheapest kept container saves money and no one depends on it."""
    return _in_order(given, sorted(range(len(given.keep)), key=lambda v: (-given.keep[v], v)))


def at_random(given: Problem, rng: np.random.Generator) -> Plan:
    """The same in random order."""
    return _in_order(given, [int(v) for v in rng.permutation(len(given.keep))])


def _in_order(given: Problem, order: Sequence[int]) -> Plan:
    ways: dict[int, list[tuple[int, int]]] = {}
    for (above, below), price in zip(given.edges, given.rebuild, strict=True):
        ways.setdefault(below, []).append((int(price), above))
    source: dict[int, int] = {}
    needed: set[int] = set()
    for table in order:
        kept = [(price, above) for price, above in ways.get(table, ()) if above not in source]
        if table not in needed and kept and min(kept)[0] < given.keep[table]:
            source[table] = min(kept)[1]
            needed.add(source[table])
    return Plan(tuple(v not in source for v in range(len(given.keep))), source, cost(given, source))


def cost(given: Problem, source: dict[int, int]) -> int:
    """Micro-dollars of deleting `source`'s tables and rebuilding each from its container."""
    price = dict(zip(given.edges, given.rebuild, strict=True))
    kept = sum(int(keep) for table, keep in enumerate(given.keep) if table not in source)
    return kept + sum(int(price[above, below]) for below, above in source.items())


def check(given: Problem, plan: Plan) -> None:
    """ValueError unless each deleted table has a kept container over an allowed edge, and the cost is right."""
    allowed = set(given.edges)
    for table, kept in enumerate(plan.kept):
        if kept == (table in plan.source):
            raise ValueError(f"table {table} is neither kept nor rebuilt, or both")
    for below, above in plan.source.items():
        if (above, below) not in allowed:
            raise ValueError(f"table {below} can't be rebuilt from {above}")
        if not plan.kept[above]:
            raise ValueError(f"table {below} would be rebuilt from {above}, which is deleted")
    if plan.cost != cost(given, plan.source):
        raise ValueError(f"the plan costs {cost(given, plan.source)} and not {plan.cost}")
