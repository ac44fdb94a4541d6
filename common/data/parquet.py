"""Parquet files: written in several row groups, and judged by their footer alone.

    write(table, path)                     # several row groups, as a large file has them
    known = footer(path)                   # rows, and of each column its type, bounds and nulls: no data page is read
    with CountedFile(path) as file:        # which bytes were read is noted, so that "no page was read" can be shown
        known = footer(path, file)
        assert file.bytes_before(known.starts) == 0

A footer lies at the end of a Parquet file: [pages][footer][its length, 4 bytes]["PAR1"]. Arrow's own reader fetches the
last 64 KB at once, which takes data pages along; here the length is read first, and then the footer and nothing else.
pyarrow is imported inside the functions.
"""

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"PAR1"
TAIL = 8  # the footer's length and the magic
WHOLE_BOUNDS = "parquet-cpp-arrow"  # a writer that leaves out long bounds of strings and never cuts them
SURELY_WHOLE = 32  # bytes; bounds of strings from this length on may have been cut (polars 64, DuckDB 256)


class ParquetError(ValueError):
    """A file that is no Parquet file, or one that can't be described; the message names it."""


@dataclass(frozen=True)
class Column:
    """One column over all row groups, a field of a struct under the struct's name and a dot.

    low, high: smallest and largest value that is neither null nor NaN, as Python values; None where the footer does not
    say. exact: both are values of the column; a cut bound of a string only lies below or above them.
    nulls: None where unknown. page_bytes: as stored.
    """

    path: tuple[str, ...]
    type: str
    low: Any = None
    high: Any = None
    exact: bool = False
    nulls: int | None = None
    page_bytes: int = 0

    @property
    def name(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Footer:
    """What a footer tells of its file. starts: the footer's first byte, which is the end of the data pages."""

    rows: int
    columns: tuple[Column, ...]
    row_groups: int
    file_bytes: int
    starts: int


class CountedFile(io.RawIOBase):
    """A file that notes every range of bytes (offset, length) that is read from it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 -- closed by close()
        self.ranges: list[tuple[int, int]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        offset = self._file.tell()
        count = self._file.readinto(buffer) or 0
        if count:
            self.ranges.append((offset, count))
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def bytes_read(self) -> int:
        return sum(count for _, count in self.ranges)

    def bytes_before(self, offset: int) -> int:
        """Bytes read from before this offset, such as from data pages with `Footer.starts`."""
        return sum(max(0, min(start + count, offset) - start) for start, count in self.ranges)


def write(table: "pyarrow.Table", path: Path, row_groups: int = 4) -> Path:
    """Write a table in (at most) this many row groups of equal size; the path."""
    import pyarrow.parquet as parquet

    parquet.write_table(table, path, row_group_size=max(1, math.ceil(table.num_rows / row_groups)))
    return path


def footer(path: Path, file: CountedFile | None = None) -> Footer:
    """Read a file's footer and nothing else, through `file` where given. ParquetError where it is no Parquet file."""
    if file is None:
        with CountedFile(path) as opened:
            return footer(path, opened)
    import pyarrow
    import pyarrow.parquet as parquet

    file_bytes = file.seek(0, io.SEEK_END)
    if file_bytes < len(MAGIC) + TAIL:
        raise ParquetError(f"{path}: {file_bytes} bytes are no Parquet file")
    file.seek(file_bytes - TAIL)
    tail = _all(file, TAIL)
    (length,) = struct.unpack("<I", tail[:4])
    starts = file_bytes - TAIL - length
    if tail[4:] != MAGIC or starts < len(MAGIC):
        raise ParquetError(f"{path}: no Parquet file, or one that was cut off")
    file.seek(starts)
    raw = MAGIC + _all(file, length) + tail  # a file without any page, which Arrow reads as one
    try:
        metadata = parquet.read_metadata(pyarrow.BufferReader(raw))
        schema = metadata.schema.to_arrow_schema()
    except (pyarrow.ArrowException, OSError) as error:
        raise ParquetError(f"{path}: the footer can't be read: {error}") from None
    leaves = _leaves(metadata)
    columns = tuple(
        Column(names, kind, **leaves.get(".".join(names), {})) for names, kind in _flat(schema, path)
    )
    return Footer(metadata.num_rows, columns, metadata.num_row_groups, file_bytes, starts)


def _all(file: CountedFile, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = file.read(count - len(parts))
        if not part:
            raise ParquetError("the file ended early")
        parts += part
    return parts


def _flat(schema: "pyarrow.Schema", path: Path) -> list[tuple[tuple[str, ...], str]]:
    """Columns with structs taken apart, as (path, type); how strings are held in memory makes no difference."""

    def fields(names: tuple[str, ...], kind: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        import pyarrow.types as types

        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            for place in range(kind.num_fields):
                yield from fields((*names, kind.field(place).name), kind.field(place).type)
        else:
            name = str(kind)
            yield names, name.removeprefix("large_").removesuffix("_view")

    flat = [column for field in schema for column in fields((field.name,), field.type)]
    seen = [".".join(names) for names, _ in flat]
    for twice in {name for name in seen if seen.count(name) > 1}:
        raise ParquetError(f"{path}: two columns are named {twice!r}")
    return flat


def _leaves(metadata: Any) -> dict[str, dict[str, Any]]:
    """Bounds, nulls and bytes of every column that is no list, over all row groups, by dotted name."""
    found: dict[str, dict[str, Any]] = {}
    whole = (metadata.created_by or "").startswith(WHOLE_BOUNDS)
    for place in range(metadata.num_columns):
        leaf = metadata.schema.column(place)
        chunks = [metadata.row_group(group).column(place) for group in range(metadata.num_row_groups)]
        if leaf.max_repetition_level == 0:
            found[leaf.path] = {
                **_bounds(chunks, whole),
                "page_bytes": sum(chunk.total_compressed_size for chunk in chunks),
            }
    return found


def _bounds(chunks: list[Any], whole: bool) -> dict[str, Any]:
    nulls: int | None = 0
    lows, highs = [], []
    known = True
    for chunk in chunks:
        told = chunk.statistics
        count = told.null_count if told is not None and told.has_null_count else None
        if chunk.num_values == 0:  # an empty row group has no statistics
            count = 0
        nulls = None if nulls is None or count is None else nulls + count
        bounds = _values(told) if told is not None and told.has_min_max else None
        if bounds is not None:
            lows.append(bounds[0])
            highs.append(bounds[1])
        elif count != chunk.num_values:  # not all null, so there are values that nothing is known of
            known = False
    if not known or not lows:
        return {"nulls": nulls}
    low, high = min(lows), max(highs)
    return {"low": low, "high": high, "exact": whole or (_short(low) and _short(high)), "nulls": nulls}


def _values(told: Any) -> tuple[Any, Any] | None:
    """Smallest and largest value as Python values; None of a NaN, and of a type that Arrow can't convert."""
    import pyarrow

    try:
        low, high = told.min, told.max
    except (pyarrow.ArrowNotImplementedError, NotImplementedError, ValueError, OverflowError):
        return None
    return None if low is None or high is None or low != low or high != high else (low, high)


def _short(bound: Any) -> bool:
    if isinstance(bound, str):
        bound = bound.encode()
    return not isinstance(bound, bytes) or len(bound) < SURELY_WHOLE
