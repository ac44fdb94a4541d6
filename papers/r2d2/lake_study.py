"""Lakes against the brute-force truth: edges after each stage, baselines, retention; and DuckDB against Spark."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.lab.runtime import Observations, Runtime
from papers.r2d2 import baselines, lake, min_max, retention_study
from papers.r2d2.brute_force import fractions
from papers.r2d2.config import Config
from papers.r2d2.duckdb_engine import DuckEngine
from papers.r2d2.pipeline import Found, Settings, find_containments
from papers.r2d2.real_roots import real_roots
from papers.r2d2.schema_graph import Edge

SCHEMA = ("schema_recall", "comparison_share", "page_bytes")  # need no truth and no data page
BOUNDS = ("min_max_recall", "min_max_removed")  # need no data page
ROWS = ("content_recall", "content_removed")
LOSSES = ("forest_loss", "k_means_loss", "lsh_loss")
METRICS = (*SCHEMA, *BOUNDS, *ROWS, *LOSSES, *retention_study.LAKE)
SMALL = 10_000  # rows of a table; below, Spark's time goes into planning and not into joining
REAL = ("real_recall", "real_min_max_removed", "real_content_removed")


def generated(config: Config, seed: int, rng: np.random.Generator, wanted: frozenset[str]) -> Observations:
    """One generated lake. wanted: of METRICS; what none of them needs is left out."""
    seen = Observations()
    with tempfile.TemporaryDirectory() as folder:
        roots = [lake.pool_root(rng, config.rows) for _ in range(config.roots)]
        members = lake.grow(
            roots, config.descendants, rng, Path(folder), lake.COPIES if config.copies else None
        )
        paths = [member.path for member in members]
        chosen = np.random.default_rng(rng.integers(2**31))  # the same samples whatever else is wanted
        planned = bool(wanted & {*retention_study.LAKE})
        looked_up = planned or bool(wanted & {*ROWS, *LOSSES})
        with DuckEngine() as engine:
            found = find_containments(
                paths, engine if looked_up else Nothing(), Settings.of(config, verify=planned), chosen
            )
        observe_schema(found, seen, seed)
        if wanted & {*BOUNDS, *ROWS, *LOSSES}:
            true = truth(paths, found)
            observe_stages(found, true, seen, seed, "", lake="generated")
            if wanted & {*LOSSES}:
                observe_baselines(config, found, true, paths, wanted, chosen, seen, seed)
        if planned:
            retention_study.lake_plan(config, members, found, chosen, seen, seed)
    return seen


class Nothing:
    """An engine that is asked only where the answer is not wanted."""

    def matched(self, probes: Sequence[object]) -> list[bool]:
        return [True] * len(probes)


def real(config: Config, seed: int, rng: np.random.Generator, files: dict[str, Path]) -> Observations:
    """A lake whose roots are real tables, other rows of them and other descendants with each seed."""
    seen = Observations()
    with tempfile.TemporaryDirectory() as folder:
        roots = real_roots(files, config.real_rows, rng)
        members = lake.grow(list(roots.values()), config.real_descendants, rng, Path(folder))
        paths = [member.path for member in members]
        with DuckEngine() as engine:
            found = find_containments(paths, engine, Settings.of(config), rng)
        observe_stages(found, truth(paths, found), seen, seed, "real_", lake="real")
        seen.add("tables", len(paths), seed, lake="real")
    return seen


def truth(paths: Sequence[Path], found: Found) -> set[Edge]:
    """All containments, by brute force in another engine."""
    schemas = [min_max.schema(told) for told in found.footers]
    return {edge for edge, share in fractions(paths, schemas).items() if share == 1.0}


def observe_schema(found: Found, seen: Observations, seed: int) -> None:
    """What the first two stages did, which read footers only; the truth of schemas compares all pairs of sets."""
    schemas = [min_max.schema(told) for told in found.footers]
    tables = len(schemas)
    every = {
        (above, below)
        for above in range(tables)
        for below in range(tables)
        if above != below and schemas[below] <= schemas[above]
    }
    seen.add("schema_recall", len(every & set(found.graph.edges)) / len(every), seed)
    seen.add("comparison_share", found.graph.comparisons / (tables * (tables - 1) / 2), seed)
    seen.add("centres", len(found.graph.centres), seed)
    seen.add("page_bytes", found.page_bytes, seed)
    seen.add("tables", tables, seed, lake="generated")


def observe_stages(
    found: Found, true: set[Edge], seen: Observations, seed: int, prefix: str, **at: str
) -> None:
    """Edges after each stage, true and false, its bytes and seconds; recall, and shares of false ones removed."""
    false: dict[str, int] = {}
    recall: dict[str, float] = {}
    for name, stage in found.stages.items():
        kept = len(true & set(stage.edges))
        false[name], recall[name] = len(stage.edges) - kept, kept / len(true)
        seen.add("edges", kept, seed, stage=name, kind="true", **at)
        seen.add("edges", false[name], seed, stage=name, kind="false", **at)
        seen.add("stage_seconds", stage.seconds, seed, stage=name, **at)
        if stage.bytes_read is not None:
            seen.add("stage_bytes", stage.bytes_read, seed, stage=name, **at)
    seen.add("lake_bytes", sum(told.file_bytes for told in found.footers), seed, **at)
    seen.add("true_edges", len(true), seed, **at)
    if prefix:
        seen.add(f"{prefix}recall", recall["content"], seed)
    else:
        seen.add("min_max_recall", recall["min-max"], seed)
        seen.add("content_recall", recall["content"], seed)
    seen.add(f"{prefix}min_max_removed", removed(false["schema"], false["min-max"]), seed)
    seen.add(f"{prefix}content_removed", removed(false["min-max"], false["content"]), seed)


def removed(before: int, after: int) -> float:
    """The share that is gone; 0 of nothing."""
    return (before - after) / before if before else 0.0


def observe_baselines(
    config: Config,
    found: Found,
    true: set[Edge],
    paths: Sequence[Path],
    wanted: frozenset[str],
    rng: np.random.Generator,
    seen: Observations,
    seed: int,
) -> None:
    """Precision and recall of what R2D2 is compared with, on the pairs whose schemas allow containment."""
    pairs = list(found.graph.edges)
    facts = np.array([pair in true for pair in pairs])
    survived = set(found.stages["content"].edges)
    ours = baselines.score(np.array([pair in survived for pair in pairs]), facts)
    scores = {"r2d2": ours}
    if wanted & {"forest_loss", "k_means_loss"}:
        tables = baselines.profiles(paths, found.footers)
        if "forest_loss" in wanted:
            features = baselines.pair_features(pairs, tables)
            scores["forest"] = baselines.forest(features, facts, config.labelled_share, rng)
        if "k_means_loss" in wanted:
            numbers = [max(1, round(config.roots * times)) for times in (0.5, 1, 2, 4)]
            scores["k_means"] = baselines.k_means(tables, pairs, facts, numbers, seed)
    if "lsh_loss" in wanted:
        signatures, sizes = baselines.sketches(paths, found.footers)
        scores["lsh"] = baselines.lsh_ensemble(signatures, sizes, pairs, facts)
    for name, found_score in scores.items():
        seen.add("precision", found_score.precision, seed, method=name)
        seen.add("recall", found_score.recall, seed, method=name)
        if name != "r2d2":
            seen.add(f"{name}_loss", found_score.loss(ours), seed)


def on_spark(config: Config, lab: Runtime, seen: Observations) -> None:
    """The same small lake and sampled rows on DuckDB and on Spark; nothing is observed where Java is missing."""
    from common.data.spark import JavaMissing, java, session
    from papers.r2d2.spark_engine import SETTINGS, SparkEngine

    try:
        java()
    except JavaMissing:
        return
    seed = lab.seeds[0]
    with tempfile.TemporaryDirectory() as folder:
        rng = lab.rng(seed, "spark")
        roots = [lake.pool_root(rng, config.spark_rows) for _ in range(config.spark_roots)]
        members = lake.grow(roots, config.descendants, rng, Path(folder))
        paths = [member.path for member in members]
        with DuckEngine() as engine:
            duck = find_containments(paths, engine, Settings.of(config), lab.rng(seed, "rows"))
        small = config.spark_rows < SMALL
        settings = SETTINGS if small else None
        with lab.stopwatch() as started, session("r2d2", settings=settings, short=small) as spark:
            begun = started.seconds
            there = find_containments(
                paths, SparkEngine(spark, config.spark_null_safe), Settings.of(config), lab.rng(seed, "rows")
            )
            seen.add("spark_seconds", started.seconds - begun, part="stages")
            seen.add("spark_seconds", begun, part="start")
    differing = union = 0
    for stage in duck.stages:
        one, other = set(duck.stages[stage].edges), set(there.stages[stage].edges)
        differing, union = differing + len(one ^ other), union + len(one | other)
        seen.add("engine_edges", len(one), engine="duckdb", stage=stage)
        seen.add("engine_edges", len(other), engine="spark", stage=stage)
    seen.add("differing_edges", differing / union)
