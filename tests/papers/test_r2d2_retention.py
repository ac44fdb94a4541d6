"""The integer program against exhaustive search and CP-SAT, the dynamic program against both, and real rebuilding."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.parquet import footer, write
from papers.r2d2 import lake
from papers.r2d2.recipes import Between, Sample, Select, equal_rows, read, rebuild, recover
from papers.r2d2.retention import (
    Plan,
    Prices,
    Problem,
    at_random,
    check,
    greedy,
    keep_everything,
    optimum,
    problem,
)
from papers.r2d2.retention_study import random_program
from papers.r2d2.retention_tree import (
    Forest,
    forest_of,
    forest_optimum,
    plan_cost,
    random_forest,
    with_second_parents,
    without_memory,
)

pa = pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
money = st.integers(0, 20)


def made(keep: list[int], edges: list[tuple[int, int]], rebuild_: list[int]) -> Problem:
    return Problem(np.array(keep), tuple(edges), np.array(rebuild_, dtype=np.int64))


@st.composite
def programs(draw: st.DrawFn) -> Problem:
    tables = draw(st.integers(1, 6))
    pairs = [(u, v) for u in range(tables) for v in range(tables) if u != v]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=10)) if pairs else []
    return made(
        draw(st.lists(money, min_size=tables, max_size=tables)),
        edges,
        draw(st.lists(money, min_size=len(edges), max_size=len(edges))),
    )


def exhaustive(given_: Problem) -> int:
    """The cheapest of all sets of deleted tables, each rebuilt from its cheapest kept container."""
    best = math.inf
    for kept in itertools.product((True, False), repeat=len(given_.keep)):
        total = sum(int(price) for price, stays in zip(given_.keep, kept, strict=True) if stays)
        for table in (place for place, stays in enumerate(kept) if not stays):
            ways = [
                int(price)
                for (above, below), price in zip(given_.edges, given_.rebuild, strict=True)
                if below == table and kept[above]
            ]
            total += min(ways, default=math.inf)  # type: ignore[type-var]
        best = min(best, total)
    return int(best)


@settings(max_examples=60, deadline=None)
@given(programs())
def test_the_integer_program_finds_what_exhaustive_search_finds(given_: Problem) -> None:
    plan = optimum(given_)
    check(given_, plan)
    assert plan.cost == exhaustive(given_)
    for other in (greedy(given_), at_random(given_, np.random.default_rng(0)), keep_everything(given_)):
        check(given_, other)
        assert plan.cost <= other.cost


def test_another_solver_finds_the_same_optimum() -> None:
    model_of = pytest.importorskip("ortools.sat.python.cp_model")
    given_ = random_program(60, np.random.default_rng(4))
    model = model_of.CpModel()
    x = [model.new_bool_var(f"x{v}") for v in range(60)]
    y = [model.new_bool_var(f"y{u}_{v}") for u, v in given_.edges]
    for v in range(60):
        model.add(x[v] + sum(y[e] for e, (_, below) in enumerate(given_.edges) if below == v) == 1)
    for e, (above, _) in enumerate(given_.edges):
        model.add_implication(y[e], x[above])
    model.minimize(
        sum(int(k) * each for k, each in zip(given_.keep, x, strict=True))
        + sum(int(r) * each for r, each in zip(given_.rebuild, y, strict=True))
    )
    solver = model_of.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model) == model_of.OPTIMAL
    assert round(solver.objective_value) == optimum(given_).cost < greedy(given_).cost


def test_of_equal_tables_one_stays_and_no_table_is_rebuilt_from_a_deleted_one() -> None:
    circle = made([10] * 4, [(u, v) for u in range(4) for v in range(4) if u != v], [1] * 12)
    plan = optimum(circle)
    assert sum(plan.kept) == 1 and plan.cost == 13
    chain = made([10, 10, 10], [(0, 1), (1, 2)], [1, 1])
    assert optimum(chain).cost == 21  # the middle stays for the last, or goes and the last stays


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan((True, False, False), {1: 0, 2: 1}, 12), "which is deleted"),
        (Plan((True, True, False), {2: 0}, 21), "can't be rebuilt"),
        (Plan((True, False, True), {}, 20), "neither"),
        (Plan((True, False, True), {1: 0}, 22), "costs 21"),
    ],
)
def test_a_plan_that_can_not_be_carried_out_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(made([10, 10, 10], [(0, 1), (1, 2)], [1, 1]), plan)


def test_nothing_is_deleted_that_no_one_may_wait_for_or_that_is_read_too_often() -> None:
    gb, edges, prices = np.array([10.0, 5.0]), [(0, 1)], Prices()
    often, rarely, patient = np.array([0.0, 1000.0]), np.array([0.0, 1.0]), np.array([60.0, 60.0])
    assert optimum(problem(gb, rarely, patient, edges, prices)).source == {1: 0}
    assert optimum(problem(gb, often, patient, edges, prices)).source == {}
    at_once = problem(gb, rarely, 0 * patient, edges, prices)
    assert at_once.edges == () and optimum(at_once).source == {}
    # 15 GB at 1.6 GB/s take 9.4 s
    assert problem(gb, rarely, np.array([0.0, 9.3]), edges, prices).edges == ()
    assert problem(gb, rarely, np.array([0.0, 9.4]), edges, prices).edges == ((0, 1),)


def test_prices_are_those_of_a_gigabyte() -> None:
    one = np.array([1.0])
    read = 0.05 / 360 + 0.0004 / 128  # ten core-seconds, and 7.8 reads
    assert Prices().read(one)[0] == pytest.approx(read)
    assert Prices().keep(one)[0] == pytest.approx(0.023 + 4 * read)


# --- forests ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 7))
def test_the_dynamic_program_is_optimal_on_forests(data: st.DataObject, tables: int) -> None:
    parent = np.array([data.draw(st.integers(-1, v - 1)) for v in range(tables)])
    order = np.array(data.draw(st.permutations(range(tables))))  # parents need not come first
    renamed = np.full(tables, -1)
    renamed[order] = np.where(parent >= 0, order[parent], -1)
    keep, again = (np.array(data.draw(st.lists(money, min_size=tables, max_size=tables))) for _ in range(2))
    forest = Forest(renamed, keep, again)
    plan = forest_optimum(forest)
    check(forest.problem(), plan)
    assert plan.cost == exhaustive(forest.problem()) == without_memory(forest)[0]
    assert forest_optimum(forest_of(forest.problem())).cost == plan.cost


def test_it_agrees_with_the_integer_program_on_a_thousand_tables() -> None:
    forest = random_forest(1000, np.random.default_rng(0))
    assert (
        forest_optimum(forest).cost == optimum(forest.problem()).cost < keep_everything(forest.problem()).cost
    )


def test_without_memory_a_chain_takes_fibonacci_many_evaluations() -> None:
    chain = Forest(np.arange(-1, 11), np.ones(12, dtype=int), np.ones(12, dtype=int))
    fibonacci = [1, 1]
    while len(fibonacci) < 13:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    # f(v, kept) is asked fib(depth) times and f(v, deleted) as often as f(parent, kept)
    assert without_memory(chain)[1] == sum(fibonacci[:12]) + sum(fibonacci[:11])


def test_a_second_container_makes_it_no_forest() -> None:
    rng = np.random.default_rng(2)
    forest = random_forest(300, rng)
    given_ = with_second_parents(forest, 0.5, rng)
    with pytest.raises(ValueError, match="no forest"):
        forest_of(given_)
    assert plan_cost(given_, forest_optimum(forest)) > optimum(given_).cost
    with pytest.raises(ValueError, match="cycle"):
        Forest(np.array([1, 0]), np.ones(2), np.ones(2))


# --- rebuilding -------------------------------------------------------------------------------------------------


def test_each_recorded_recipe_rebuilds_its_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    members = lake.grow([lake.pool_root(rng, 150) for _ in range(2)], 12, rng, tmp_path)
    checked = 0
    for below, member in enumerate(members):
        above = member.source
        while above is not None:
            recipe = lake.recorded(members, above, below)
            if recipe is not None:
                made_again = rebuild(read(members[above].path), recipe)
                assert equal_rows(made_again, read(member.path))
                checked += 1
            above = members[above].source
    assert checked > 10


def test_a_range_is_recovered_from_the_data_and_a_sample_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    container = pa.table({"x": rng.integers(0, 1000, 300), "y": rng.random(300), "z": ["a", "b", "c"] * 100})
    kept = rebuild(container, (Between("x", 200, 700), Select(("z", "x"))))
    told = footer(write(kept, tmp_path / "kept"))
    recipe = recover(container, kept, told)
    assert recipe is not None and equal_rows(rebuild(container, recipe), kept)
    sampled = rebuild(container, (Sample(1, 150),))
    assert sampled.num_rows == 150
    assert recover(container, sampled, footer(write(sampled, tmp_path / "sampled"))) is None
    with pytest.raises(KeyError):
        rebuild(container, (Select(("q",)),))


def test_equal_rows_are_bags_in_any_order() -> None:
    def table(*rows: object) -> object:
        return pa.table({"x": pa.array(list(rows), pa.float64()), "y": pa.array([1] * len(rows))})

    one = table(1.0, None, math.nan, 1.0)
    assert equal_rows(one, table(math.nan, 1.0, 1.0, None))
    assert equal_rows(one, table(math.nan, 1.0, 1.0, None).select(["y", "x"]))
    assert not equal_rows(one, table(1.0, None, None, 1.0))
    assert not equal_rows(one, table(1.0, None, math.nan, math.nan))
    assert not equal_rows(one, table(1.0, None, math.nan))
    assert not equal_rows(one, one.cast(pa.schema({"x": pa.float32(), "y": pa.int64()})))
