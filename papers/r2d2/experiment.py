"""What the claims of R2D2 read: lakes with known truth on DuckDB and Spark, growth, the sampling law, and retention."""

from functools import partial
from pathlib import Path
from typing import Any

from common.lab.runtime import Observations, Runtime
from papers.r2d2 import growth_study, lake_study, retention_study
from papers.r2d2.config import Config
from papers.r2d2.real_roots import FILES


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed (of Spark: one)."""
    seen = Observations()
    files = data_files(lab) if config.real_descendants and lab.wants(*lake_study.REAL) else {}
    tasks: list[tuple[str, int, Any]] = []
    for seed in lab.seeds:
        wanted = frozenset(metric for metric in lake_study.METRICS if lab.wants(metric))
        if wanted:
            tasks.append(("lake", seed, (lab.rng(seed, "lake"), wanted)))
        if config.real_descendants and lab.wants(*lake_study.REAL):
            tasks.append(("real", seed, (lab.rng(seed, "real"), files)))
        if config.counted_roots and lab.wants(*growth_study.COUNTED):
            tasks.append(("counted", seed, lab.rng(seed, "counted")))
        if config.planted and lab.wants("law_outside"):
            tasks.append(("planted", seed, lab.rng(seed, "planted")))
        if config.forests and lab.wants(*retention_study.TREES):
            tasks.append(("trees", seed, lab.rng(seed, "trees")))
    for rows in lab.map(partial(perform, config), tasks, "lakes") if tasks else ():
        seen.extend(rows)
    if config.timed_roots and lab.wants(*growth_study.TIMED):  # one by one, beside nothing else
        for seed in lab.progress(lab.seeds, "times"):
            seen.extend(growth_study.timed(config, seed, lab.rng(seed, "timed")))
    if config.spark_roots and lab.wants("differing_edges"):
        lake_study.on_spark(config, lab, seen)
    return seen


def perform(config: Config, task: tuple[str, int, Any]) -> Observations:
    """One task in a worker process."""
    kind, seed, given = task
    if kind == "lake":
        return lake_study.generated(config, seed, *given)
    if kind == "real":
        return lake_study.real(config, seed, *given)
    if kind == "counted":
        return growth_study.counted(config, seed, given)
    if kind == "planted":
        return growth_study.planted(config, seed, given)
    return retention_study.trees(config, seed, given)


def data_files(lab: Runtime) -> dict[str, Path]:
    """The real tables that can be had."""
    from common.data import DataError, fetch

    files = {}
    for name in FILES:
        try:
            fetch(name)
        except DataError:
            continue
        path = lab.data(name)
        if path is not None:
            files[name] = path
    return files
