"""Probes on Spark, here or on a cluster as the session says: one anti join for all probes of equal columns.

A job costs tenths of a second before it reads a row, so that a job an edge would spend its time on starting jobs. All
contained files of a set of columns are one scan, all their containers another, and the container's name is part of the
key on which they are joined.
"""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papers.r2d2.content import Probe

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SETTINGS = {  # for a session that runs many small joins: what plans and compiles them costs more than they do
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
JOINS_PER_JOB = 8


class SparkEngine:
    """`SparkEngine(session).matched(probes)`. null_safe: False joins with `=`, under which null equals nothing."""

    def __init__(self, spark: "SparkSession", null_safe: bool = True) -> None:
        self._spark = spark
        self._null_safe = null_safe

    def matched(self, probes: Sequence[Probe]) -> list[bool]:
        """See `content.Engine`. ValueError where two files have the same name, by which Spark tells rows apart."""
        files = {path for probe in probes for path in (probe.container, probe.contained)}
        if len({path.name for path in files}) < len(files):
            raise ValueError("two tables have the same file name")
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, probe in enumerate(probes):
            key = (tuple((column.path, column.type) for column in probe.columns), probe.rows is None)
            groups.setdefault(key, []).append(place)
        joins = [self._unmatched(places, [probes[place] for place in places]) for places in groups.values()]
        found = [True] * len(probes)
        for start in range(0, len(joins), JOINS_PER_JOB):
            job = reduce(lambda left, right: left.unionAll(right), joins[start : start + JOINS_PER_JOB])
            for row in job.collect():
                found[row[0]] = False
        return found

    def _unmatched(self, places: Sequence[int], probes: Sequence[Probe]) -> "DataFrame":
        """The places of those probes (of equal columns) of which a row has no match in its container."""
        import pyarrow
        from pyspark.sql import functions as F

        columns, sampled = probes[0].columns, probes[0].rows is not None
        looked_up = self._spark.createDataFrame(
            pyarrow.table(
                {
                    "place": pyarrow.array(places, pyarrow.int64()),
                    "contained": [probe.contained.name for probe in probes],
                    "container": [probe.container.name for probe in probes],
                }
            )
        )
        rows = self._scan([probe.contained for probe in probes], columns, "s", "contained")
        if sampled:
            drawn = {probe.contained.name: probe.rows or () for probe in probes}
            numbers = pyarrow.table(
                {
                    "file": pyarrow.array(
                        [name for name, taken in drawn.items() for _ in taken], pyarrow.string()
                    ),
                    "number": pyarrow.array(
                        [number for taken in drawn.values() for number in taken], pyarrow.int64()
                    ),
                }
            )
            chosen = self._spark.createDataFrame(numbers)
            rows = rows.join(
                F.broadcast(chosen),
                (F.col("contained") == F.col("file")) & (F.col("row") == F.col("number")),
                "left_semi",
            )
        rows = rows.join(F.broadcast(looked_up), "contained")
        there = self._scan([probe.container for probe in probes], columns, "c", "in_container")
        on = F.col("container") == F.col("in_container")
        for n in range(len(columns)):
            one, other = F.col(f"s{n}"), F.col(f"c{n}")
            on = on & (one.eqNullSafe(other) if self._null_safe else one == other)
        return rows.join(there, on, "left_anti").select("place").distinct()

    def _scan(self, paths: Sequence[Path], columns: Sequence[Any], prefix: str, file: str) -> "DataFrame":
        """The rows of some files on these columns, with the file's name and the row's number in it.

        The schema comes from the first file's footer, so that Spark starts no job to infer it.
        """
        import pyarrow
        import pyarrow.parquet as parquet
        from pyspark.sql import functions as F
        from pyspark.sql.pandas.types import from_arrow_schema

        known = parquet.read_schema(paths[0])
        fields = dict.fromkeys(column.path[0] for column in columns)
        schema = from_arrow_schema(pyarrow.schema([known.field(name) for name in fields]))
        read = self._spark.read.schema(schema).parquet(*dict.fromkeys(str(path) for path in paths))
        return read.select(
            F.col("_metadata.file_name").alias(file),
            F.col("_metadata.row_index").alias("row" if prefix == "s" else "row_in_container"),
            *(
                F.col(".".join(f"`{part}`" for part in column.path)).alias(f"{prefix}{n}")
                for n, column in enumerate(columns)
            ),
        )
