"""The truth: every pair whose schemas allow containment, checked row by row by polars, which no stage uses."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from papers.r2d2.schema_graph import Edge, Schema

if TYPE_CHECKING:
    import polars


def containment_fraction(contained: "polars.DataFrame", container: "polars.DataFrame") -> float:
    """CM(A, B): the share of A's distinct rows that occur in B's projection to A's columns; 1 for an empty A."""
    return _fraction(contained.unique(), container)


def _fraction(distinct: "polars.DataFrame", container: "polars.DataFrame") -> float:
    if distinct.is_empty():
        return 1.0
    missing = distinct.join(container, on=distinct.columns, how="anti", nulls_equal=True).height
    return 1.0 - missing / distinct.height


def fractions(paths: Sequence[Path], schemas: Sequence[Schema]) -> dict[Edge, float]:
    """The containment fraction of every ordered pair (container, contained) where schemas allow one."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")  # read when polars is imported
    import polars

    frames = [_flat(polars.read_parquet(path)).unique() for path in paths]
    return {
        (above, below): _fraction(frames[below], frames[above])
        for above in range(len(paths))
        for below in range(len(paths))
        if above != below and schemas[below] <= schemas[above]
    }


def _flat(frame: "polars.DataFrame") -> "polars.DataFrame":
    """Structs taken apart into columns with dotted names."""
    import polars

    while structs := [name for name, kind in frame.schema.items() if isinstance(kind, polars.Struct)]:
        frame = frame.unnest(structs, separator=".")
    return frame
