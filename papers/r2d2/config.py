"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


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
