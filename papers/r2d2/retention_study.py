"""Retention on the containments found, with deleted tables really rebuilt; the dynamic program on forests."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from common.lab.runtime import Observations
from papers.r2d2 import recipes
from papers.r2d2.config import Config
from papers.r2d2.growth_study import exponent, no_collection
from papers.r2d2.lake import Member, recorded
from papers.r2d2.pipeline import Found
from papers.r2d2.retention import (
    Prices,
    Problem,
    at_random,
    greedy,
    keep_everything,
    optimum,
    problem,
)
from papers.r2d2.retention_tree import (
    Forest,
    forest_optimum,
    plan_cost,
    random_forest,
    with_second_parents,
    without_memory,
)
from papers.r2d2.schema_graph import Edge

LAKE = ("saving", "rebuilt_share")
TREES = ("dp_gap", "dp_exponent")
TIMED_SECONDS = 0.1  # repeat a measurement until it has taken this long
LIMITS = (
    1.0,
    3600.0,
)  # seconds that a table's users would wait, log-uniform between a query and a nightly job (ours)


def known_recipes(
    members: Sequence[Member], edges: Sequence[Edge], found: Found
) -> dict[Edge, recipes.Recipe]:
    """The recipe of every edge for which one was recorded or can be recovered from the data."""
    tables = {}
    known: dict[Edge, recipes.Recipe] = {}
    for above, below in edges:
        recipe = recorded(members, above, below)
        if recipe is None:
            for place in (above, below):
                if place not in tables:
                    tables[place] = recipes.read(members[place].path)
            recipe = recipes.recover(tables[above], tables[below], found.footers[below])
        if recipe is not None:
            known[above, below] = recipe
    return known


def lake_plan(
    config: Config,
    members: Sequence[Member],
    found: Found,
    rng: np.random.Generator,
    seen: Observations,
    seed: int,
) -> None:
    """The cheapest plan for the containments found, against baselines, and each of its deleted tables rebuilt."""
    edges = found.stages["verified"].edges
    known = known_recipes(members, edges, found)
    seen.add("usable_edges", len(known), seed)
    if not config.known_recipes:  # as if each container's projection were the table
        for edge in edges:
            known[edge] = (recipes.Select(tuple(column.name for column in found.footers[edge[1]].columns)),)
    stored = np.array([told.file_bytes for told in found.footers], dtype=float)
    gb = stored * config.lake_gb / stored.sum()
    accesses = zipf(len(gb), config.accesses, rng)
    limits = np.exp(rng.uniform(np.log(LIMITS[0]), np.log(LIMITS[1]), len(gb)))

    def program(access: float = 1.0, latency: float = 1.0) -> Problem:
        return problem(
            gb, access * accesses, config.latency_limits * latency * limits, tuple(known), Prices()
        )

    given = program()
    plan, nothing = optimum(given), keep_everything(given).cost
    costs = {
        "optimal": plan.cost,
        "greedy": greedy(given).cost,
        "random": at_random(given, rng).cost,
        "keep everything": nothing,
    }
    for name, spent in costs.items():
        seen.add("month_dollars", spent / 1e6, seed, plan=name)
    seen.add("saving", 1 - plan.cost / nothing, seed)
    seen.add("deleted", len(plan.source), seed)
    seen.add("stored_share", gb[list(plan.kept)].sum() / gb.sum(), seed)
    for access in (0.0, 0.1, 1.0, 10.0, 100.0):
        seen.add("saving_by", saving(program(access=access)), seed, knob="accesses", times=access)
    for latency in (0.0, 0.1, 1.0, 10.0):
        seen.add("saving_by", saving(program(latency=latency)), seed, knob="latency", times=latency)
    same = 0
    for below, above in plan.source.items():
        container, original = (recipes.read(members[place].path) for place in (above, below))
        same += recipes.equal_rows(recipes.rebuild(container, known[above, below]), original)
    # a plan that deletes nothing has rebuilt all that it deleted
    seen.add("rebuilt_share", same / len(plan.source) if plan.source else 1.0, seed)


def saving(given: Problem) -> float:
    """The optimum's share of the cost of keeping everything that is saved."""
    return 1 - optimum(given).cost / keep_everything(given).cost


def zipf(tables: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Accesses in a month: the table of rank r gets a share of 1/r, ranks at random."""
    weights = 1.0 / (1 + rng.permutation(tables))
    return mean * weights / weights.mean()


def trees(config: Config, seed: int, rng: np.random.Generator) -> Observations:
    """The dynamic program against the integer program on random forests; seconds of both, and of programs on DAGs."""
    seen = Observations()
    gaps, seconds = [], []
    for tables in config.forests:
        forest = random_forest(tables, rng)
        spent, took = solved(forest, config.memory)
        seconds.append(took)
        seen.add("solve_seconds", took, seed, tables=tables, method="dynamic program")
        given = forest.problem()
        if config.second_parents:
            given = with_second_parents(forest, config.second_parents, rng)
            spent = plan_cost(given, forest_optimum(forest))
        begun = time.thread_time()
        exact = optimum(given).cost
        seen.add("solve_seconds", time.thread_time() - begun, seed, tables=tables, method="integer program")
        gaps.append(abs(spent - exact) / exact)
    seen.add("dp_gap", max(gaps), seed)
    seen.add("dp_exponent", exponent(config.forests, seconds), seed)
    for tables in config.programs:
        given = random_program(tables, rng)
        begun = time.thread_time()
        exact = optimum(given).cost
        at: dict[str, str | int] = {"tables": tables, "method": "integer program on DAGs"}
        seen.add("solve_seconds", time.thread_time() - begun, seed, **at)
        seen.add("greedy_excess", greedy(given).cost / exact - 1, seed, tables=tables)
    return seen


def solved(forest: Forest, memory: bool) -> tuple[int, float]:
    """The dynamic program's cost and its seconds of processor time, the fastest of some runs."""
    best, total, cost = np.inf, 0.0, 0
    with no_collection():
        while total < TIMED_SECONDS:
            begun = time.thread_time()
            cost = forest_optimum(forest).cost if memory else without_memory(forest)[0]
            took = time.thread_time() - begun
            best, total = min(best, took), total + max(took, 1e-6)
    return cost, float(best)


def random_program(tables: int, rng: np.random.Generator, containers: float = 2.0) -> Problem:
    """An Erdos-Renyi DAG with so many containers a table on average; sizes log-uniform from 0.1 to 100 GB."""
    share = min(1.0, 2 * containers / max(1, tables - 1))
    edges: list[Edge] = []
    for below in range(1, tables):
        edges.extend((int(above), below) for above in np.flatnonzero(rng.random(below) < share))
    gb = 10 ** rng.uniform(-1, 2, tables)
    prices = Prices()
    accesses = rng.integers(0, 31, tables).astype(float)
    return problem(gb, accesses, np.full(tables, np.inf), edges, prices)
