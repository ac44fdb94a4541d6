"""Stage 3, CLP: a few rows of A looked up in B; an edge with an unmatched row is no containment.

A true containment is never dropped. If a share eps of A's rows has no match on the looked-up columns, the edge survives
t rows with probability (1 - eps)^t, so that t >= ln(1/delta)/eps rows fail with probability at most delta. Rows are
compared whole: column by column every value may exist in B while the row does not.

The rows are chosen here, by their numbers in the file, so that every engine looks up the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from common.data.parquet import Column, Footer
from papers.r2d2.schema_graph import Edge


@dataclass(frozen=True)
class Probe:
    """Are these rows of `contained` (all of them: None), on these columns, all in `container`?"""

    container: Path
    contained: Path
    columns: tuple[Column, ...]
    rows: tuple[int, ...] | None = None


class Engine(Protocol):
    """What looks probes up: `duckdb_engine` or `spark_engine`."""

    def matched(self, probes: Sequence[Probe]) -> list[bool]:
        """For each probe whether every one of its rows was found; null equals null, NaN equals NaN."""


def sampled_probes(
    edges: Sequence[Edge],
    paths: Sequence[Path],
    footers: Sequence[Footer],
    rows: int,
    columns: int | None,
    rng: np.random.Generator,
) -> list[Probe]:
    """A probe an edge: `rows` rows of the contained table, drawn once a table, and `columns` of its columns or all.

    Raises ValueError for less than no rows or less than one column.
    """
    if rows < 0 or (columns is not None and columns < 1):
        raise ValueError(
            f"a sample has at least no rows and one column, not {rows} rows and {columns} columns"
        )
    drawn: dict[int, tuple[int, ...]] = {}
    for below in dict.fromkeys(below for _, below in edges):
        there = footers[below].rows
        numbers = rng.choice(there, min(rows, there), replace=False)
        drawn[below] = tuple(int(number) for number in np.sort(numbers))
    probes = []
    for above, below in edges:
        chosen = footers[below].columns
        if columns is not None and columns < len(chosen):
            places = np.sort(rng.choice(len(chosen), columns, replace=False))
            chosen = tuple(chosen[place] for place in places)
        probes.append(Probe(paths[above], paths[below], chosen, drawn[below]))
    return probes


def whole_probes(edges: Sequence[Edge], paths: Sequence[Path], footers: Sequence[Footer]) -> list[Probe]:
    """A probe an edge of all rows and columns: the full check."""
    return [Probe(paths[above], paths[below], footers[below].columns) for above, below in edges]


def survivors(edges: Sequence[Edge], probes: Sequence[Probe], engine: Engine) -> list[Edge]:
    """The edges whose probe was matched."""
    return [edge for edge, found in zip(edges, engine.matched(probes), strict=True) if found]


def rows_needed(eps: float, delta: float) -> int:
    """Rows after which an edge of which a share eps does not match survives with probability at most delta."""
    if not (0 < eps <= 1 and 0 < delta < 1):
        raise ValueError(f"eps in (0, 1] and delta in (0, 1), not {eps} and {delta}")
    return 1 if eps == 1 else int(np.ceil(np.log(delta) / np.log1p(-eps)))
