"""Stage 2, MMP: edges that bounds, nulls and row counts rule out, from Parquet footers alone.

If every row of A is in B, then on each column of A: min(B) <= min(A), max(A) <= max(B), and B has a null if A has one.
What a footer does not say never prunes: missing statistics, NaN (in no bound), bounds of strings that were cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.data.parquet import Column, CountedFile, Footer
from papers.r2d2.schema_graph import Edge, Schema


def schema(footer: Footer) -> Schema:
    """A table's columns as (name, type): an int32 and an int64 of the same name are different columns."""
    return frozenset((column.name, column.type) for column in footer.columns)


def may_contain(container: Footer, contained: Footer) -> bool:
    """Whether the footers leave it possible that every row of `contained` is in `container`, whose schema allows it."""
    if contained.rows == 0:
        return True
    if container.rows == 0:
        return False
    above = {column.name: column for column in container.columns}
    return all(_possible(above[column.name], column) for column in contained.columns)


def _possible(above: Column, below: Column) -> bool:
    if below.nulls and above.nulls == 0:
        return False
    if not (above.exact and below.exact):
        return True
    return bool(above.low <= below.low and below.high <= above.high)


def prune(edges: Iterable[Edge], footers: Sequence[Footer]) -> list[Edge]:
    """The edges that the footers do not rule out."""
    return [(above, below) for above, below in edges if may_contain(footers[above], footers[below])]


def sampled(path: Path, known: Footer, rows: int, rng: np.random.Generator, file: CountedFile) -> Footer:
    """The footer with bounds from `rows` sampled rows in place of its own: approximate, as the control needs them.

    Reads data pages, through `file`.
    """
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(pyarrow.PythonFile(file, mode="r")).read()
    drawn = table.take(
        pyarrow.array(rng.choice(table.num_rows, min(rows, table.num_rows), replace=False), pyarrow.int64())
    )

    def approximate(column: Column) -> Column:
        if column.low is None or len(column.path) > 1:
            return column
        values = drawn[column.name]
        if pyarrow.types.is_floating(values.type):
            values = values.filter(compute.invert(compute.is_nan(values)))
        bounds = compute.min_max(values).as_py()
        return replace(column, low=bounds["min"], high=bounds["max"], exact=bounds["min"] is not None)

    return replace(known, columns=tuple(approximate(column) for column in known.columns))
