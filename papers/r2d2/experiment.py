"""What the claims of R2D2 read: lakes with known truth on DuckDB and Spark, growth, the sampling law, and retention."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.lab.runtime import Observations, Runtime
from papers.r2d2 import growth_study, lake_study, retention_study
from papers.r2d2.pipeline import Settings
from papers.r2d2.real_roots import FILES


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    # switches of the mechanism
    clustered: bool = True  # False: compare all pairs of schemas
    every_centre: bool = True  # False: a table joins the first cluster that takes it, and no other
    statistics: bool = True  # False: footers prune nothing
    sampled_statistics: int = 0  # bounds from so many sampled rows in place of the footers'
    sample_rows: int = 20  # looked up of each contained table; 0: the stage prunes nothing
    combinations: bool = True  # False: look each sampled column up on its own
    copies: bool = False  # True: every table is an exact copy of its family's root
    labelled_share: float = (
        0.2  # of the pairs, for the learned baseline; 1: all, and they are scored themselves
    )
    spark_null_safe: bool = True  # False: Spark joins with `=`
    latency_limits: float = 1.0  # times the limits of the tables; 0: no table may be waited for
    known_recipes: bool = True  # False: take every containment for a projection
    memory: bool = True  # False: the dynamic program computes each table's value again for each use
    second_parents: float = 0.0  # share of the forests' tables with a second possible container
    # sizes
    roots: int = 25
    descendants: int = 10
    rows: int = 1000
    real_descendants: int = 4  # of each real table; 0 leaves that lake out
    real_rows: int = 1000  # at most
    planted: list[float] = field(default_factory=lambda: [0.01, 0.05, 0.2])
    planted_samples: list[int] = field(default_factory=lambda: [5, 20, 50])
    planted_rows: int = 4000
    trials: int = 50
    timed_roots: list[int] = field(default_factory=lambda: [2, 4, 8])  # each with its descendants
    counted_roots: list[int] = field(default_factory=lambda: [7, 21, 63])
    growth_rows: int = 300
    spark_roots: int = 2  # 0 leaves Spark out
    spark_rows: int = 300
    lake_gb: float = 1000.0  # that retention takes the lake for: its files' sizes are scaled to it
    accesses: float = 5.0  # of a table in a month on average, by Zipf's law
    forests: list[int] = field(default_factory=lambda: [300, 1000, 3000, 10000])
    programs: list[int] = field(default_factory=lambda: [100, 300, 1000])

    def settings(self, verify: bool = True) -> Settings:
        """The pipeline's."""
        return Settings(
            clustered=self.clustered,
            every_centre=self.every_centre,
            statistics=self.statistics,
            sampled_statistics=self.sampled_statistics,
            rows=self.sample_rows,
            verify=verify,
        )


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
