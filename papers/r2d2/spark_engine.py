"""Probes on Spark: the same left anti joins, several edges in one job, here or on a cluster as the session says."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papers.r2d2.content import Probe

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

EDGES_PER_JOB = (
    12  # a job costs tenths of a second before it reads a row; a plan much larger than this costs more
)


class SparkEngine:
    """`SparkEngine(session).matched(probes)`. null_safe: False joins with `=`, under which null equals nothing."""

    def __init__(
        self, spark: "SparkSession", null_safe: bool = True, edges_per_job: int = EDGES_PER_JOB
    ) -> None:
        self._spark = spark
        self._null_safe = null_safe
        self._edges_per_job = edges_per_job
        self._schemas: dict[Path, Any] = {}

    def matched(self, probes: Sequence[Probe]) -> list[bool]:
        # edges of one container side by side, so that a job reads it once
        order = sorted(range(len(probes)), key=lambda place: (str(probes[place].container), place))
        found = [True] * len(probes)
        for start in range(0, len(order), self._edges_per_job):
            job = [
                self._unmatched(place, probes[place]) for place in order[start : start + self._edges_per_job]
            ]
            for row in reduce(lambda left, right: left.unionAll(right), job).collect():
                found[row[0]] = False
        return found

    def _unmatched(self, place: int, probe: Probe) -> "DataFrame":
        """One row (place) if any of the probe's rows is missing in its container, else none."""
        from pyspark.sql import functions as F

        contained = self._read(probe.contained)
        if probe.rows is not None:
            contained = contained.filter(F.col("_metadata.row_index").isin(list(probe.rows)))
        names = [column.name for column in probe.columns]
        s = contained.select(*(self._field(c.path).alias(f"s{n}") for n, c in enumerate(probe.columns)))
        c = self._read(probe.container).select(
            *(self._field(c.path).alias(f"c{n}") for n, c in enumerate(probe.columns))
        )
        pairs = [(F.col(f"s{n}"), F.col(f"c{n}")) for n in range(len(names))]
        on = [one.eqNullSafe(other) if self._null_safe else one == other for one, other in pairs]
        return s.join(c, on, "left_anti").limit(1).select(F.lit(place))

    def _read(self, path: Path) -> "DataFrame":
        """The file, with the schema of its footer, so that Spark starts no job to infer it."""
        import pyarrow.parquet as parquet
        from pyspark.sql.pandas.types import from_arrow_schema

        if path not in self._schemas:
            self._schemas[path] = from_arrow_schema(parquet.read_schema(path))
        return self._spark.read.schema(self._schemas[path]).parquet(str(path))

    @staticmethod
    def _field(path: Sequence[str]) -> Any:
        from pyspark.sql import functions as F

        return F.col(".".join(f"`{part}`" for part in path))
