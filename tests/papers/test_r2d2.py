"""The three stages against exhaustive checks, and what must never be pruned."""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.parquet import CountedFile, Footer, footer, write
from common.lab.runtime import Observation, Runtime
from papers.r2d2 import lake, min_max
from papers.r2d2.config import Config
from papers.r2d2.content import Probe, rows_needed, sampled_probes, survivors, whole_probes
from papers.r2d2.duckdb_engine import DuckEngine
from papers.r2d2.experiment import run
from papers.r2d2.pipeline import EVERY_PAIR, Settings, find_containments
from papers.r2d2.schema_graph import schema_graph
from papers.r2d2.survival import Survival, survivals

pa = pytest.importorskip("pyarrow")
polars = pytest.importorskip("polars")
pytest.importorskip("duckdb")

from papers.r2d2.brute_force import containment_fraction, fractions  # noqa: E402


def files(folder: Path, *tables: Any) -> tuple[list[Path], list[Footer]]:
    """Tables on disk, and their footers."""
    paths = [write(table, folder / f"{n}.parquet", 2) for n, table in enumerate(tables)]
    return paths, [footer(path) for path in paths]


def all_found(container: Any, contained: Any, folder: Path, **engine: Any) -> bool:
    """Whether every row of `contained` is in `container`, by the engine."""
    paths, footers = files(folder, container, contained)
    with DuckEngine(**engine) as duck:
        return duck.matched([Probe(paths[0], paths[1], footers[1].columns)])[0]


# --- stage 1 ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.frozensets(st.integers(0, 7), min_size=1), max_size=14))
def test_clustering_misses_no_pair_of_schemas(drawn: list[frozenset[int]]) -> None:
    schemas = [frozenset((f"c{n}", "int64") for n in names) for names in drawn]
    expected = [
        (above, below)
        for above, larger in enumerate(schemas)
        for below, smaller in enumerate(schemas)
        if above != below and smaller <= larger
    ]
    graph, every = schema_graph(schemas), schema_graph(schemas, clustered=False)
    assert list(graph.edges) == list(every.edges) == expected
    assert every.comparisons == len(schemas) * (len(schemas) - 1) // 2
    assert graph.comparisons <= len(schemas) * len(graph.centres) + every.comparisons
    assert set(schema_graph(schemas, every_centre=False).edges) <= set(expected)


def test_a_table_must_join_all_its_centres() -> None:
    ab, cb, b = (frozenset((n, "int64") for n in names) for names in ("ab", "cb", "b"))
    assert (1, 2) in schema_graph([ab, cb, b]).edges
    assert (1, 2) not in schema_graph([ab, cb, b], every_centre=False).edges


def test_equal_names_of_different_types_are_different_columns(tmp_path: Path) -> None:
    wide, narrow = (pa.table({"x": pa.array([1, 2], kind)}) for kind in (pa.int64(), pa.int32()))
    _, footers = files(tmp_path, wide, narrow)
    assert schema_graph([min_max.schema(told) for told in footers]).edges == ()


# --- stage 2 ----------------------------------------------------------------------------------------------------

cells = {
    "int64": st.none() | st.integers(-5, 5),
    "double": st.none() | st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf]),
    "string": st.none() | st.sampled_from(["", "a", "b" * 70, "b" * 70 + "c"]),
    "date32": st.none() | st.dates(datetime.date(2024, 1, 1), datetime.date(2024, 1, 5)),
}
TYPES = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "date32": pa.date32()}


@st.composite
def tables(draw: st.DrawFn, most: int = 8) -> Any:
    """A table of one to three columns of any of the types, in which values repeat."""
    rows = draw(st.integers(0, most))
    kinds = draw(st.lists(st.sampled_from(sorted(cells)), min_size=1, max_size=3))
    return pa.table(
        {
            f"{kind}_{n}": pa.array(draw(st.lists(cells[kind], min_size=rows, max_size=rows)), TYPES[kind])
            for n, kind in enumerate(kinds)
        }
    )


@settings(max_examples=60, deadline=None)
@given(tables(), st.data(), st.booleans())
def test_bounds_never_rule_out_a_containment(
    tmp_path_factory: pytest.TempPathFactory, container: Any, data: st.DataObject, cut: bool
) -> None:
    rows = (
        data.draw(st.lists(st.sampled_from(range(container.num_rows)), max_size=9))
        if container.num_rows
        else []
    )
    names = data.draw(st.lists(st.sampled_from(container.schema.names), min_size=1, unique=True))
    contained = container.select(names).take(pa.array(rows, pa.int64()))
    folder = tmp_path_factory.mktemp("bounds")
    paths, footers = files(folder, container, contained)
    if cut:  # by a writer that cuts long bounds of strings
        for path, table in zip(paths, (container, contained), strict=True):
            polars.from_arrow(table).write_parquet(path, row_group_size=3)
        footers = [footer(path) for path in paths]
    assert min_max.may_contain(footers[0], footers[1])
    with DuckEngine() as engine:  # nor does any sample of rows and columns
        for rows_drawn, columns in ((2, None), (3, 1), (9, 2)):
            probes = sampled_probes([(0, 1)], paths, footers, rows_drawn, columns, np.random.default_rng(0))
            assert survivors([(0, 1)], probes, engine) == [(0, 1)]


@pytest.mark.parametrize(
    ("container", "contained", "possible"),
    [
        ([1, 9], [2, 3], True),
        ([2, 9], [1, 3], False),
        ([1, 2], [1, 3], False),
        ([1, 2], [1, None], False),  # the container has no null
        ([1, None], [1, None], True),
        ([None, None], [1], True),  # no bounds, no pruning
        ([], [1], False),
        ([1], [], True),
        ([1.0, 2.0], [1.0, math.nan], True),  # a NaN is in no bound
        (["b" * 90, "c"], ["a" * 90, "b"], False),
    ],
)
def test_what_bounds_and_nulls_say(
    tmp_path: Path, container: list[Any], contained: list[Any], possible: bool
) -> None:
    kind = pa.array([*container, *contained]).type
    _, footers = files(tmp_path, *(pa.table({"x": pa.array(rows, kind)}) for rows in (container, contained)))
    assert min_max.may_contain(footers[0], footers[1]) == possible


def test_cut_bounds_of_strings_do_not_prune(tmp_path: Path) -> None:
    for name, rows in (("container", ["a" * 100, "b" * 90]), ("contained", ["a" * 99, "b" * 80])):
        polars.DataFrame({"x": rows}).write_parquet(tmp_path / name)
    assert min_max.may_contain(footer(tmp_path / "container"), footer(tmp_path / "contained"))


def test_sampled_bounds_are_too_narrow_and_cost_pages(tmp_path: Path) -> None:
    (path,), (known,) = files(tmp_path, pa.table({"x": np.arange(1000), "y": [math.nan] * 1000}))
    with CountedFile(path) as file:
        told = min_max.sampled(path, known, 10, np.random.default_rng(0), file)
        assert file.bytes_before(known.starts) > 0
    assert (
        0 <= known.columns[0].low < told.columns[0].low < told.columns[0].high < known.columns[0].high <= 999
    )


# --- stage 3 ----------------------------------------------------------------------------------------------------


def canonical(value: Any) -> Any:
    return "NaN" if value != value else value


def rows_of(table: Any, names: Sequence[str]) -> set[tuple[Any, ...]]:
    return {tuple(canonical(row[name]) for name in names) for row in table.to_pylist()}


@settings(max_examples=60, deadline=None)
@given(st.data(), tables(6))
def test_both_engines_say_what_sets_of_rows_say(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, container: Any
) -> None:
    names = data.draw(st.lists(st.sampled_from(container.schema.names), min_size=1, unique=True))
    size = data.draw(st.integers(0, 4))
    contained = pa.table(
        {
            name: pa.array(
                data.draw(st.lists(cells[name.split("_")[0]], min_size=size, max_size=size)),
                TYPES[name.split("_")[0]],
            )
            for name in names
        }
    )
    wanted, there = rows_of(contained, names), rows_of(container, names)
    assert all_found(container, contained, tmp_path_factory.mktemp("rows")) == (wanted <= there)
    share = containment_fraction(polars.from_arrow(contained), polars.from_arrow(container))
    assert share == pytest.approx(len(wanted & there) / len(wanted) if wanted else 1.0)


def test_rows_are_compared_whole(tmp_path: Path) -> None:
    container = pa.table({"x": [1, 2], "y": [1, 2]})
    swapped = pa.table({"x": [1, 2], "y": [2, 1]})
    assert not all_found(container, swapped, tmp_path)
    assert all_found(container, swapped, tmp_path, combinations=False)  # the control's mistake


def test_rows_are_sets_so_that_a_longer_table_may_be_contained(tmp_path: Path) -> None:
    assert all_found(pa.table({"x": [1, 2]}), pa.table({"x": [1, 1, 2, 2, 2]}), tmp_path)


def test_fields_of_structs_are_columns_in_both_engines(tmp_path: Path) -> None:
    rows = [{"a": n, "b": {"c": f"v{n}"}} for n in range(5)]
    container, contained = pa.table({"s": rows, "z": range(5)}), pa.table({"s": rows[:2]})
    other = pa.table({"s": [{"a": 0, "b": {"c": "v1"}}]})
    paths, footers = files(tmp_path, container, contained, other)
    schemas = [min_max.schema(told) for told in footers]
    assert ("s.b.c", "string") in schemas[0]
    edges = schema_graph(schemas).edges
    truth = {edge for edge, share in fractions(paths, schemas).items() if share == 1}
    with DuckEngine() as engine:
        assert set(survivors(edges, whole_probes(edges, paths, footers), engine)) == truth == {(0, 1)}
        probes = sampled_probes(edges, paths, footers, 5, 1, np.random.default_rng(0))
        assert (0, 1) in survivors(edges, probes, engine)


def test_rows_that_are_needed_for_an_error() -> None:
    assert rows_needed(0.05, 0.01) == 90  # ln 0.01 / ln 0.95 = 89.8
    assert 0.95**90 <= 0.01 < 0.95**89
    assert rows_needed(1.0, 0.5) == 1
    for eps, delta in ((0.0, 0.1), (0.1, 0.0), (0.1, 1.0)):
        with pytest.raises(ValueError, match="eps"):
            rows_needed(eps, delta)
    with pytest.raises(ValueError, match="at least"):
        sampled_probes([], [], [], -1, None, np.random.default_rng(0))


def test_planted_edges_survive_as_the_law_says_and_always_by_columns_alone(tmp_path: Path) -> None:
    with DuckEngine() as engine:
        found = survivals(engine, [0.1], [5, 20], 60, 500, tmp_path, np.random.default_rng(1))
    assert not any(each.outside(1e-4) for each in found)
    assert found[0].law == pytest.approx(0.9**5)
    with DuckEngine(combinations=False) as engine:
        (blind,) = survivals(engine, [0.1], [20], 30, 500, tmp_path, np.random.default_rng(1))
    assert blind.survived == 30 and blind.outside(1e-4)
    assert Survival(0.5, 1, 50, 100).outside(0.01) is False
    with pytest.raises(ValueError, match="too few"):
        survivals(engine, [0.001], [5], 1, 100, tmp_path, np.random.default_rng(0))


# --- whole lakes ------------------------------------------------------------------------------------------------


def pipeline(members: list[lake.Member], chosen: Settings = Settings()) -> Any:  # noqa: B008 -- frozen
    with DuckEngine() as engine:
        return find_containments([m.path for m in members], engine, chosen, np.random.default_rng(0))


def test_every_stage_keeps_all_containments_and_the_full_check_leaves_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    members = lake.grow([lake.pool_root(rng, 120) for _ in range(4)], 9, rng, tmp_path)
    found = pipeline(members)
    paths = [member.path for member in members]
    shares = fractions(paths, [min_max.schema(told) for told in found.footers])
    truth = {edge for edge, share in shares.items() if share == 1}
    edges = [set(found.stages[stage].edges) for stage in ("schema", "min-max", "content", "verified")]
    assert all(truth <= kept for kept in edges) and edges[-1] == truth
    assert edges[0] > edges[1] > edges[2]
    assert set(pipeline(members, EVERY_PAIR).stages["verified"].edges) == truth
    assert found.page_bytes == 0 and found.metadata_bytes > 0
    recorded = [
        (above, below)
        for above in range(len(members))
        for below in range(len(members))
        if above != below and lake.recorded(members, above, below) is not None
    ]
    assert recorded and set(recorded) <= truth  # what was left out of a table is contained in it


def test_strangers_of_equal_schema_lose_every_edge_and_copies_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    strangers = [
        pa.table({"x": rng.integers(0, 10**6, 200), "y": rng.integers(0, 10**6, 200)}) for _ in range(8)
    ]
    (tmp_path / "strangers").mkdir()
    found = pipeline(lake.grow(strangers, 0, rng, tmp_path / "strangers"))
    assert len(found.stages["schema"].edges) == 56 and not found.stages["content"].edges
    (tmp_path / "copies").mkdir()
    found = pipeline(lake.grow(strangers[:1], 5, rng, tmp_path / "copies", lake.COPIES))
    assert all(len(stage.edges) == 30 for stage in found.stages.values())


def test_a_root_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="root 0"):
        lake.grow([pa.table({"x": pa.array([], pa.int64())})], 1, np.random.default_rng(0), tmp_path)


TINY = Config(
    roots=3,
    descendants=5,
    rows=80,
    real_descendants=1,
    real_rows=40,
    planted_rows=200,
    planted=[0.1],
    planted_samples=[5],
    trials=5,
    timed_roots=[1, 2],
    counted_roots=[2, 4],
    growth_rows=40,
    spark_roots=0,
    forests=[50, 100],
    programs=[30],
)
CLOCKS = ("seconds", "exponent", "speedup", "growth_gap", "stage_bytes")


def test_two_runs_of_the_experiment_see_the_same() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("datasketch")

    def observed() -> list[Observation]:
        seen = run(TINY, Runtime([0, 1], workers=1))
        kept = ("content_growth_gap", "comparison_exponent", "edge_exponent")
        return [row for row in seen if row.metric in kept or not any(clock in row.metric for clock in CLOCKS)]

    first = observed()
    assert first == observed()
    assert {row.metric for row in first} >= {"content_recall", "saving", "lsh_loss", "real_recall", "dp_gap"}
