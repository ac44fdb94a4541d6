"""Probes on DuckDB: the container's columns loaded once, then one anti join a probe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.parquet import Column
from papers.r2d2.content import Probe


class DuckEngine:
    """One connection in memory. `with DuckEngine() as engine: engine.matched(probes)`.

    combinations: False looks each column up on its own, the mistake that the survival law's control makes.
    """

    def __init__(self, threads: int = 1, memory: str = "1GB", combinations: bool = True) -> None:
        import duckdb

        self.combinations = combinations
        self._connection = duckdb.connect(
            config={
                "threads": threads,
                "memory_limit": memory,
                "temp_directory": "",
                "enable_external_file_cache": False,  # or bytes and seconds would depend on what ran before
            }
        )

    def __enter__(self) -> "DuckEngine":
        return self

    def __exit__(self, *ended: object) -> None:
        self._connection.close()

    def matched(self, probes: Sequence[Probe]) -> list[bool]:
        found = [False] * len(probes)
        by_container: dict[Path, list[int]] = {}
        for place, probe in enumerate(probes):
            by_container.setdefault(probe.container, []).append(place)
        samples: dict[tuple[object, ...], str] = {}
        for container, places in by_container.items():
            needed = {column.path: column for place in places for column in probes[place].columns}
            self._connection.execute(
                f"CREATE OR REPLACE TEMP TABLE container AS SELECT {_listed(list(needed.values()))} "
                f"FROM read_parquet({_text(container)})"
            )
            for place in places:
                probe = probes[place]
                nested = any(len(column.path) > 1 for column in probe.columns)
                key = (probe.contained, probe.rows, probe.columns if nested else ())
                if key not in samples:
                    samples[key] = self._sample(probe, len(samples))
                found[place] = not any(
                    self._unmatched(samples[key], columns)
                    for columns in ([probe.columns] if self.combinations else [(c,) for c in probe.columns])
                )
        for name in samples.values():
            self._connection.execute(
                f"DROP VIEW {name}" if name.startswith("whole") else f"DROP TABLE {name}"
            )
        return found

    def _sample(self, probe: Probe, number: int) -> str:
        """The contained table's rows by name: a table of its own, or a view where it is the whole file."""
        if probe.rows is None:
            name, make, rows = f"whole{number}", "TEMP VIEW", ""
        else:
            name, make = f"sample{number}", "TEMP TABLE"
            rows = (
                f"WHERE file_row_number IN ({','.join(map(str, probe.rows))})"
                if probe.rows
                else "WHERE false"
            )
        # with all columns, since another probe may need others of them
        every = (
            "*" if all(len(column.path) == 1 for column in probe.columns) else f"*, {_listed(probe.columns)}"
        )
        self._connection.execute(
            f"CREATE {make} {name} AS SELECT {every} "
            f"FROM read_parquet({_text(probe.contained)}, file_row_number = true) {rows}"
        )
        return name

    def _unmatched(self, sample: str, columns: Sequence[Column]) -> bool:
        on = " AND ".join(
            f"s.{_name(column.name)} IS NOT DISTINCT FROM c.{_name(column.name)}" for column in columns
        )
        answer: Any = self._connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM {sample} s ANTI JOIN container c ON {on})"
        ).fetchone()
        return bool(answer[0])


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _listed(columns: Sequence[Column]) -> str:
    """Columns by their dotted names; a struct's field is reached through the struct."""
    return ", ".join(
        f"{'.'.join(_name(part) for part in column.path)} AS {_name(column.name)}" for column in columns
    )
