"""How a table came from another one: steps that can be recorded, replayed, and sometimes recovered from the data.

A recipe is a series of steps; `rebuild` applies it to a container. A container may serve a deleted table only where
the recipe is known: recorded when the table was made, or recovered as a box (`recover`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.parquet import Footer

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Between:
    """Keep the rows with low <= column <= high; None is no bound, and null is in no range."""

    column: str
    low: Any = None
    high: Any = None


@dataclass(frozen=True)
class Sample:
    """Keep `rows` rows drawn without replacement by a generator of this seed, in their order."""

    seed: int
    rows: int


@dataclass(frozen=True)
class Select:
    """Keep these columns."""

    columns: tuple[str, ...]


Step = Between | Sample | Select
Recipe = tuple[Step, ...]


def rebuild(container: "pyarrow.Table", recipe: Sequence[Step]) -> "pyarrow.Table":
    """The table that the recipe makes of a container. Raises KeyError for a column that the container has not."""
    import numpy as np
    import pyarrow
    import pyarrow.compute as compute

    table = container
    for step in recipe:
        if isinstance(step, Select):
            table = table.select(list(step.columns))
        elif isinstance(step, Sample):
            drawn = np.random.default_rng(step.seed).choice(table.num_rows, step.rows, replace=False)
            table = table.take(pyarrow.array(np.sort(drawn)))
        else:
            column = table[step.column]
            for bound, inside in ((step.low, compute.greater_equal), (step.high, compute.less_equal)):
                if bound is not None:
                    table = table.filter(inside(column, pyarrow.scalar(bound, column.type)))
                    column = table[step.column]
    return table


def read(path: Path) -> "pyarrow.Table":
    """A whole Parquet file."""
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path).read()


def equal_rows(left: "pyarrow.Table", right: "pyarrow.Table") -> bool:
    """Whether two tables hold the same rows equally often, in any order, in equally named and typed columns.

    null equals null and NaN equals NaN. Decided by polars, which no other stage uses.
    """
    import polars

    if left.num_rows != right.num_rows or set(left.schema.names) != set(right.schema.names):
        return False
    if any(left.schema.field(name).type != right.schema.field(name).type for name in left.schema.names):
        return False
    names = left.schema.names
    one, other = (polars.from_arrow(table.select(names)) for table in (left, right))
    assert isinstance(one, polars.DataFrame) and isinstance(other, polars.DataFrame)
    counts = [frame.group_by(names).len("copies of a row") for frame in (one, other)]
    matched = counts[0].join(counts[1], on=[*names, "copies of a row"], how="anti", nulls_equal=True)
    return counts[0].height == counts[1].height and matched.is_empty()


def box(contained: Footer) -> Recipe:
    """The range of every column of a table by its footer, then its columns: the filter it would be, if it is one."""
    ranges = [
        Between(column.name, column.low, column.high)
        for column in contained.columns
        if column.exact and column.nulls == 0 and column.type not in ("float", "double", "halffloat")
    ]
    return (*ranges, Select(tuple(column.name for column in contained.columns)))


def recover(container: "pyarrow.Table", contained: "pyarrow.Table", footer: Footer) -> Recipe | None:
    """The recipe of a projection or range filter, or of several of them, found from the data; None where it is neither.

    footer: of the contained table. A floating-point column has no range here, for bounds leave NaN out.
    """
    recipe = box(footer)
    made = rebuild(container, recipe)
    return recipe if made.num_rows == contained.num_rows and equal_rows(made, contained) else None
