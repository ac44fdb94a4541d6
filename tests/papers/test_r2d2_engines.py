"""Spark against DuckDB, real tables, and the baselines where the answer is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data import DataError, fetch
from common.data.parquet import footer, write
from common.data.spark import JavaMissing, java
from papers.r2d2 import baselines, lake
from papers.r2d2.content import whole_probes
from papers.r2d2.duckdb_engine import DuckEngine
from papers.r2d2.pipeline import Settings, find_containments
from papers.r2d2.real_roots import CLASSICS, FILES, real_roots

pa = pytest.importorskip("pyarrow")
pytest.importorskip("duckdb")
pytest.importorskip("polars")


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    pytest.importorskip("pyspark")
    try:
        java()
    except JavaMissing as missing:
        pytest.skip(str(missing))
    from common.data.spark import session
    from papers.r2d2.spark_engine import SETTINGS

    with session("test", settings=SETTINGS, short=True) as started:
        yield started


def test_spark_finds_the_edges_that_duckdb_finds(spark: Any, tmp_path: Path) -> None:
    from papers.r2d2.spark_engine import SparkEngine

    rng = np.random.default_rng(1)
    paths = [m.path for m in lake.grow([lake.pool_root(rng, 60) for _ in range(2)], 5, rng, tmp_path)]
    with DuckEngine() as duck:
        found = [
            find_containments(paths, engine, Settings(rows=3), np.random.default_rng(0))
            for engine in (duck, SparkEngine(spark))
        ]
    assert [stage.edges for stage in found[0].stages.values()] == [s.edges for s in found[1].stages.values()]
    assert len(found[0].stages["content"].edges) > len(found[0].stages["verified"].edges) > 0


def test_null_nan_and_structs_are_the_same_to_spark(spark: Any, tmp_path: Path) -> None:
    from papers.r2d2.spark_engine import SparkEngine

    x = pa.array([1.0, None, float("nan"), -0.0])
    nested = [{"a": n, "b": f"v{n}"} for n in range(4)]
    container = pa.table({"x": x, "s": nested})
    inside = pa.table({"s": nested[1:], "x": pa.array([None, float("nan"), 0.0])})
    outside = pa.table({"s": nested[:1], "x": pa.array([None], pa.float64())})
    empty = container.slice(0, 0)
    paths = [write(t, tmp_path / f"{n}") for n, t in enumerate((container, inside, outside, empty))]
    edges = [(0, 1), (0, 2), (0, 3), (1, 0)]
    probes = whole_probes(edges, paths, [footer(path) for path in paths])
    with DuckEngine() as duck:
        assert duck.matched(probes) == [True, False, True, False]
    assert SparkEngine(spark).matched(probes) == [True, False, True, False]
    assert SparkEngine(spark, null_safe=False).matched(probes) == [False, False, True, False]
    (tmp_path / "other").mkdir()
    twin = write(container, tmp_path / "other" / "0")
    with pytest.raises(ValueError, match="same file name"):
        SparkEngine(spark).matched(whole_probes([(0, 1)], [paths[0], twin], [footer(twin)] * 2))


def test_real_tables_become_roots(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    files = {}
    for name in FILES:
        try:
            files[name] = fetch(name)
        except DataError:
            continue
    roots = real_roots(files, 50, np.random.default_rng(0))
    assert len(roots) == len(files) + len(CLASSICS)
    assert roots["iris"].num_rows == 50 and roots["iris"].num_columns == 5
    assert roots["linnerud"].num_rows == 20
    if "ml-100k-films" in files:
        assert roots["ml-100k-films"].schema.names == ["item_id", "movie_title", "release_year", "class"]
    members = lake.grow(list(roots.values()), 2, np.random.default_rng(0), tmp_path)
    assert len(members) == 3 * len(roots)


def test_scores_of_predicted_edges() -> None:
    truth = np.array([True, True, False, False])
    found = baselines.score(np.array([True, False, True, False]), truth)
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)
    assert baselines.score(np.zeros(4, bool), truth) == baselines.Score(1.0, 0.0)
    assert found.loss(baselines.Score(0.9, 1.0)) == 0.5
    best = baselines.best_threshold(np.array([0.9, 0.8, 0.7, 0.1]), truth)
    assert best == baselines.Score(1.0, 1.0)


def test_baselines_see_all_copies_and_not_swapped_cells(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    roots = [lake.pool_root(rng, 100) for _ in range(3)]
    paths = [m.path for m in lake.grow(roots, 3, rng, tmp_path, lake.COPIES)]
    footers = [footer(path) for path in paths]
    tables = baselines.profiles(paths, footers)
    pairs = [(u, v) for u in range(12) for v in range(12) if u != v]
    truth = np.array([u // 4 == v // 4 for u, v in pairs])
    signatures, sizes = baselines.sketches(paths, footers)
    assert baselines.lsh_ensemble(signatures, sizes, pairs, truth).f1 == 1.0
    assert baselines.k_means(tables, pairs, truth, [2, 3, 5], 0).f1 == 1.0
    # every cell in place, every row wrong: a sketch of cells can't tell
    x = np.arange(200)
    (tmp_path / "cells").mkdir()
    swapped = [
        write(pa.table({"x": x, "y": np.roll(x, shift)}), tmp_path / "cells" / f"{shift}") for shift in (0, 1)
    ]
    signatures, sizes = baselines.sketches(swapped, [footer(path) for path in swapped])
    assert signatures[0].jaccard(signatures[1]) == 1.0
