"""How work grows with the number of tables, and how false edges die with the number of sampled rows."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.lab.runtime import Observations
from papers.r2d2 import lake, min_max
from papers.r2d2.config import Config
from papers.r2d2.duckdb_engine import DuckEngine
from papers.r2d2.min_max import prune
from papers.r2d2.pipeline import EVERY_PAIR, Settings, find_containments
from papers.r2d2.schema_graph import schema_graph
from papers.r2d2.survival import survivals

TIMED = ("speedup", "growth_gap")
COUNTED = ("comparison_exponent", "content_growth_gap")
ERROR = 0.01  # that a count of the law lies outside by chance, in any setting of any seed
SEEDS = 5


def exponent(sizes: list[int], values: list[float]) -> float:
    """The power of size with which positive values grow: the slope of their logarithms (least squares)."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from searching its whole heap for garbage in the middle of a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(config: Config, seed: int, rng: np.random.Generator) -> Observations:
    """Seconds of processor time of the whole pipeline, and of the same answer without pruning, on growing lakes.

    Both end with the full check of what is left, on the same engine. The smaller lakes are the first families of the
    largest.
    """
    seen = Observations()
    seconds: dict[str, list[float]] = {"pipeline": [], "brute force": []}
    tables = []
    with tempfile.TemporaryDirectory() as folder, DuckEngine() as engine, no_collection():
        families = [lake.pool_root(rng, config.growth_rows) for _ in range(max(config.timed_roots))]
        members = lake.grow(families, config.descendants, rng, Path(folder))
        first = [member.path for member in members if member.family == 0]
        find_containments(
            first, engine, Settings.of(config), np.random.default_rng(seed)
        )  # what a first run loads
        for roots in config.timed_roots:
            paths = [member.path for member in members if member.family < roots]
            tables.append(len(paths))
            for name, settings in (("pipeline", Settings.of(config)), ("brute force", EVERY_PAIR)):
                found = find_containments(paths, engine, settings, np.random.default_rng(seed))
                seconds[name].append(found.seconds)
                seen.add("seconds", found.seconds, seed, tables=len(paths), method=name)
                for stage, done in found.stages.items():
                    at: dict[str, str | int] = {"tables": len(paths), "method": name, "stage": stage}
                    seen.add("timed_stage_seconds", done.seconds, seed, **at)
    growth = {name: exponent(tables, values) for name, values in seconds.items()}
    for name, value in growth.items():
        seen.add("time_exponent", value, seed, method=name)
    seen.add("growth_gap", growth["brute force"] - growth["pipeline"], seed)
    seen.add("speedup", seconds["brute force"][-1] / seconds["pipeline"][-1], seed)
    return seen


def counted(config: Config, seed: int, rng: np.random.Generator) -> Observations:
    """Comparisons of schemas and edges left for the content stage, on larger lakes: footers are all that is read."""
    from common.data.parquet import footer

    seen = Observations()
    tables: list[int] = []
    comparisons: list[float] = []
    candidates: list[float] = []
    left: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        families = [lake.pool_root(rng, config.growth_rows) for _ in range(max(config.counted_roots))]
        members = lake.grow(families, config.descendants, rng, Path(folder))
        footers = [footer(member.path) for member in members]
        for roots in config.counted_roots:
            known = [told for told, member in zip(footers, members, strict=True) if member.family < roots]
            graph = schema_graph(
                [min_max.schema(told) for told in known], config.clustered, config.every_centre
            )
            edges = prune(graph.edges, known) if config.statistics else graph.edges
            tables.append(len(known))
            comparisons.append(graph.comparisons)
            candidates.append(len(graph.edges))
            left.append(len(edges))
            seen.add("counted", graph.comparisons, seed, tables=len(known), what="comparisons")
            seen.add("counted", len(graph.edges), seed, tables=len(known), what="schema edges")
            seen.add("counted", len(edges), seed, tables=len(known), what="edges after min-max")
    seen.add("comparison_exponent", exponent(tables, comparisons), seed)
    seen.add("edge_exponent", exponent(tables, candidates), seed, after="schema")
    seen.add("edge_exponent", exponent(tables, left), seed, after="min-max")
    seen.add("content_growth_gap", exponent(tables, candidates) - exponent(tables, left), seed)
    return seen


def planted(config: Config, seed: int, rng: np.random.Generator) -> Observations:
    """Planted false edges: how many survive, and in how many settings the count is not what the law allows."""
    seen = Observations()
    with tempfile.TemporaryDirectory() as folder, DuckEngine(combinations=config.combinations) as engine:
        found = survivals(
            engine,
            config.planted,
            config.planted_samples,
            config.trials,
            config.planted_rows,
            Path(folder),
            rng,
        )
    error = ERROR / (len(found) * SEEDS)
    for each in found:
        seen.add("survived", each.survived / each.trials, seed, eps=each.eps, rows=each.t)
    seen.add("law_outside", sum(each.outside(error) for each in found), seed)
    return seen
