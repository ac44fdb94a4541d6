"""Lakes whose redundancy is known: families of tables that descend from roots by random transformations.

Each descendant comes from a random earlier member of its family by a filter, a row sample, a projection (all of them
contained in it), noise in a column, appended rows, or a shift of a column by one (not contained). The mix is ours; the
paper derives contained tables from open data by transformations as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.parquet import write
from papers.r2d2.recipes import Between, Recipe, Sample, Select, rebuild

if TYPE_CHECKING:
    import pyarrow

MIX = {"filter": 0.25, "sample": 0.20, "project": 0.20, "noise": 0.15, "append": 0.10, "shift": 0.10}
COPIES = {"copy": 1.0}
POOL = 60  # names that roots share, so that schemas of strangers may contain each other
KINDS = ("int64", "int64", "int64", "double", "string", "date")  # of names in turn
DAY_ZERO = np.datetime64("2015-01-01")


@dataclass(frozen=True)
class Member:
    """A table of the lake: its file, and how it came from another member; a root has no source.

    steps: the recorded recipe from the source, None where contents were changed.
    """

    path: Path
    family: int
    source: int | None = None
    change: str = "root"
    steps: Recipe | None = None


def pool_root(rng: np.random.Generator, rows: int) -> "pyarrow.Table":
    """A root of 5 to 12 columns out of the pool; a third of its columns have some nulls."""
    import pyarrow

    names = np.sort(rng.choice(POOL, int(rng.integers(5, 13)), replace=False))
    return pyarrow.table(
        {f"{KINDS[n % len(KINDS)]}_{n}": _values(rng, KINDS[n % len(KINDS)], rows) for n in names}
    )


def _values(rng: np.random.Generator, kind: str, rows: int) -> "pyarrow.Array":
    """Integers and floats of random scale and offset, strings of random cardinality, dates of a random span."""
    import pyarrow

    if kind == "int64":
        low, width = int(10 ** rng.uniform(0, 6)), int(10 ** rng.uniform(1, 6))
        values: Any = rng.integers(low, low + width, rows)
    elif kind == "double":
        values = np.round(rng.normal(10 ** rng.uniform(-1, 3), 10 ** rng.uniform(-1, 2), rows), 4)
        values[rng.random(rows) < 0.01] = np.nan
    elif kind == "string":
        prefix = "".join(rng.choice(list("abcdefghij"), 3))
        values = np.char.add(f"{prefix}-", rng.integers(0, int(10 ** rng.uniform(1, 4)), rows).astype(str))
    else:
        days = rng.integers(0, 3000) + rng.integers(0, int(10 ** rng.uniform(1, 3)), rows)
        values = DAY_ZERO + days
    mask = rng.random(rows) < 0.05 if rng.random() < 1 / 3 else np.zeros(rows, bool)
    return pyarrow.array(values, mask=mask)


def grow(
    roots: Sequence["pyarrow.Table"],
    descendants: int,
    rng: np.random.Generator,
    folder: Path,
    mix: dict[str, float] | None = None,
) -> list[Member]:
    """Write the roots' families as Parquet files; members in order, a family's root first.

    descendants: of each root. Raises ValueError for a root without rows or columns.
    """
    mix = MIX if mix is None else mix
    members: list[Member] = []
    for family, root in enumerate(roots):
        if not root.num_rows or not root.num_columns:
            raise ValueError(f"root {family} has {root.num_rows} rows and {root.num_columns} columns")
        first, tables = len(members), [root]
        members.append(Member(_file(folder, len(members), root), family))
        for _ in range(descendants):
            source = int(rng.integers(len(tables)))
            change = str(rng.choice(list(mix), p=list(mix.values())))
            table, steps = derive(tables[source], change, rng)
            tables.append(table)
            members.append(Member(_file(folder, len(members), table), family, first + source, change, steps))
    return members


def _file(folder: Path, number: int, table: "pyarrow.Table") -> Path:
    return write(table, folder / f"t{number:05d}.parquet")


def derive(
    source: "pyarrow.Table", change: str, rng: np.random.Generator
) -> tuple["pyarrow.Table", Recipe | None]:
    """A descendant of a table, and its recipe where nothing but rows and columns was left out.

    A change that a table has no room for (no ordered column, one column only) becomes a row sample.
    """
    ordered = [field.name for field in source.schema if _ordered(field.type)]
    counted = [field.name for field in source.schema if _counted(field.type)]
    if change == "filter" and ordered and source.num_rows > 4:
        recipe: Recipe = (_quantile(source, str(rng.choice(ordered)), rng),)
    elif change == "project" and source.num_columns > 1:
        kept = np.sort(
            rng.choice(source.num_columns, int(rng.integers(1, source.num_columns)), replace=False)
        )
        recipe = (Select(tuple(source.schema.names[place] for place in kept)),)
    elif change == "noise":
        return _noisy(source, str(rng.choice(source.schema.names)), rng), None
    elif change == "append":
        return _appended(source, rng), None
    elif change == "shift" and counted:
        return _shifted(source, str(rng.choice(counted))), None
    elif change == "copy":
        return source, ()
    else:
        rows = max(1, int(source.num_rows * rng.uniform(0.1, 0.9)))
        recipe = (Sample(int(rng.integers(2**31)), rows),)
    return rebuild(source, recipe), recipe


def _ordered(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(kind) or types.is_date(kind) or types.is_string(kind)


def _counted(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(kind) or types.is_floating(kind)


def _quantile(source: "pyarrow.Table", column: str, rng: np.random.Generator) -> Between:
    """A range that keeps 30 to 90% of the rows, from below or above."""
    values = sorted(value for value in source[column].to_pylist() if value is not None)
    keep = rng.uniform(0.3, 0.9)
    if not values:
        return Between(column)
    if rng.random() < 0.5:
        return Between(column, high=values[int(keep * (len(values) - 1))])
    return Between(column, low=values[int((1 - keep) * (len(values) - 1))])


def _noisy(source: "pyarrow.Table", column: str, rng: np.random.Generator) -> "pyarrow.Table":
    """1 to 50% of a column's values replaced by those of other rows: every value still occurs in the source."""
    import pyarrow

    share = rng.uniform(0.01, 0.5)
    count = max(1, int(share * source.num_rows))
    places = rng.choice(source.num_rows, count, replace=False)
    order = np.arange(source.num_rows)
    order[places] = rng.integers(0, source.num_rows, count)
    place = source.schema.get_field_index(column)
    return source.set_column(place, source.field(place), source[column].take(pyarrow.array(order)))


def _appended(source: "pyarrow.Table", rng: np.random.Generator) -> "pyarrow.Table":
    """10% more rows, each column's values drawn from the source's on their own, so that combinations are new."""
    import pyarrow

    more = max(1, source.num_rows // 10)
    drawn = {
        name: source[name].take(pyarrow.array(rng.integers(0, source.num_rows, more)))
        for name in source.schema.names
    }
    return pyarrow.concat_tables([source, pyarrow.table(drawn, schema=source.schema)])


def _shifted(source: "pyarrow.Table", column: str) -> "pyarrow.Table":
    """One added to a column of numbers."""
    import pyarrow
    import pyarrow.compute as compute

    place = source.schema.get_field_index(column)
    one = pyarrow.scalar(1, source.field(place).type)
    return source.set_column(place, source.field(place), compute.add(source[column], one))


def recorded(members: Sequence[Member], container: int, contained: int) -> Recipe | None:
    """The recorded recipe that makes `contained` of its ancestor `container`; None where contents were changed."""
    steps: Recipe = ()
    place: int | None = contained
    while place is not None and place != container:
        member = members[place]
        if member.steps is None:
            return None
        steps = member.steps + steps
        place = member.source
    return steps if place == container else None
