"""What a footer says against the data itself, and that no data page is read for it."""

import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.parquet import CountedFile, ParquetError, footer, write

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def column(path: Path, name: str):  # type: ignore[no-untyped-def]
    (found,) = [known for known in footer(path).columns if known.name == name]
    return found


def test_only_the_footers_bytes_are_read(tmp_path: Path) -> None:
    path = write(pa.table({"x": np.arange(5000), "s": [f"row {i}" for i in range(5000)]}), tmp_path / "t")
    with CountedFile(path) as file:
        known = footer(path, file)
    assert (known.rows, known.row_groups, known.file_bytes) == (5000, 4, path.stat().st_size)
    assert file.bytes_before(known.starts) == 0
    assert 0 < file.bytes_read <= known.file_bytes - known.starts + 8  # the length at the end is read twice
    with CountedFile(path) as file:  # Arrow's own way takes pages along: the last 64 KB
        parquet.read_metadata(pa.PythonFile(file, mode="r"))
    assert file.bytes_before(known.starts) > 0


def test_the_same_is_known_when_every_data_page_is_overwritten(tmp_path: Path) -> None:
    path = write(pa.table({"x": [3, 1, 2], "y": [None, 1.5, -2.5]}), tmp_path / "t", 2)
    before = footer(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * before.starts)
    assert footer(path) == before
    assert (column(path, "x").low, column(path, "y").high) == (1, 1.5)


def test_counted_ranges_are_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    with CountedFile(path) as file:
        file.seek(90)
        assert file.read(5) == bytes(range(90, 95))
        file.seek(10)
        file.read(20)
        file.seek(100)
        assert file.read(1) == b""
    assert (file.ranges, file.bytes_read) == ([(90, 5), (10, 20)], 25)
    assert [file.bytes_before(end) for end in (10, 15, 92, 100)] == [0, 5, 22, 25]


values = {
    "int64": st.integers(-(2**62), 2**62),
    "float64": st.floats(allow_nan=True, allow_infinity=True),
    "string": st.text(max_size=8),
    "date32": st.dates(),
    "bool": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(values)), st.integers(1, 4))
def test_bounds_and_nulls_are_those_of_the_values(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, row_groups: int
) -> None:
    rows = data.draw(st.lists(st.none() | values[kind], max_size=12))
    types = {
        "int64": pa.int64(),
        "float64": pa.float64(),
        "string": pa.string(),
        "date32": pa.date32(),
        "bool": pa.bool_(),
    }
    path = write(pa.table({"x": pa.array(rows, types[kind])}), tmp_path_factory.mktemp("h") / "t", row_groups)
    known = column(path, "x")
    assert footer(path).rows == len(rows)
    assert known.nulls == sum(row is None for row in rows)
    there = [row for row in rows if row is not None and row == row]
    if known.low is not None:
        assert known.exact
        assert (known.low, known.high) == (min(there), max(there))
    else:  # nothing there, or a row group of NaN alone, of which nothing is told
        assert not there or any(row is not None and row != row for row in rows)


def test_bounds_of_strings_that_a_writer_cut_are_not_exact(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    long = ["a" * 300, "b" * 300]
    polars.DataFrame({"s": long, "short": ["x", "y"], "n": [1, 2]}).write_parquet(tmp_path / "cut")
    cut = column(tmp_path / "cut", "s")
    assert not cut.exact and cut.low < long[0]  # a bound all the same
    assert column(tmp_path / "cut", "short").exact and column(tmp_path / "cut", "n").exact
    whole = column(write(pa.table({"s": long}), tmp_path / "whole"), "s")
    assert whole.exact and (whole.low, whole.high) == tuple(long)
    huge = column(write(pa.table({"s": ["a" * 9000, "b" * 9000]}), tmp_path / "huge"), "s")
    assert huge.low is None and not huge.exact  # Arrow leaves such bounds out


def test_types_structs_and_lists_are_named_as_stored(tmp_path: Path) -> None:
    table = pa.table(
        {
            "i": pa.array([1, 2], pa.int32()),
            "d": pa.array([datetime.date(2024, 1, 1), None]),
            "t": pa.array([datetime.datetime(2024, 1, 1), None], pa.timestamp("us")),
            "c": pa.array(["p", "q"]).dictionary_encode(),
            "l": pa.array([[3, 1], []]),
            "s": pa.array([{"a": 1, "b": {"c": "x"}}, {"a": 5, "b": {"c": "y"}}]),
            "big": pa.array(["u", "v"], pa.large_string()),
        }
    )
    known = {c.name: c for c in footer(write(table, tmp_path / "t")).columns}
    assert {name: c.type for name, c in known.items()} == {
        "i": "int32",
        "d": "date32[day]",
        "t": "timestamp[us]",
        "c": "string",
        "l": "list<element: int64>",
        "s.a": "int64",
        "s.b.c": "string",
        "big": "string",
    }
    assert (known["s.a"].low, known["s.b.c"].high, known["s.b.c"].path) == (1, "y", ("s", "b", "c"))
    assert known["l"].low is None  # bounds of elements are no bounds of lists
    assert known["d"].low == datetime.date(2024, 1, 1) and known["d"].nulls == 1


def test_a_table_without_rows_has_columns_without_bounds(tmp_path: Path) -> None:
    known = footer(write(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "t"))
    assert known.rows == 0 and known.columns[0].low is None and known.columns[0].nulls == 0


def test_what_is_no_parquet_file_is_refused_with_its_name(tmp_path: Path) -> None:
    for name, content in (
        ("short", b"PAR1"),
        ("text", b"x" * 100),
        ("lies", b"PAR1" + b"\xff" * 8 + b"PAR1"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ParquetError, match=name):
            footer(tmp_path / name)
    whole = write(pa.table({"x": [1, 2, 3]}), tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-3])
    with pytest.raises(ParquetError, match="cut"):
        footer(tmp_path / "cut")
    (tmp_path / "noise").write_bytes(whole[:4] + b"\x7f" * (len(whole) - 12) + whole[-8:])
    with pytest.raises(ParquetError, match="noise"):
        footer(tmp_path / "noise")
    twice = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(ParquetError, match="'x'"):
        footer(write(twice, tmp_path / "twice"))
