"""Products measured on one H100 (tables/h100): times of many sizes, energy of sustained ones, a tile sweep.

Columns are numpy arrays of one length; seconds, joules, watts and hertz. `digest(name)` is what a record names.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.hardware.operators import H100, read_table

GENERAL = "gemm_general.csv"
ENERGY = "gemm_energy.csv"
TILED = "tiled_gemm.csv"


@dataclass(frozen=True, eq=False)
class GemmTimes:
    """[m, k] @ [k, n] of cuBLAS, one launch with its overhead; the median and the 5th and 95th percentiles."""

    dtype: np.ndarray  # fp32, tf32, fp16, bf16
    m: np.ndarray
    n: np.ndarray
    k: np.ndarray
    seconds: np.ndarray
    p05: np.ndarray
    p95: np.ndarray

    def __len__(self) -> int:
        return len(self.m)


@dataclass(frozen=True, eq=False)
class GemmEnergy:
    """Products repeated for about half a second: joules of one from the energy counter, mean and sampled power.

    dropped: rows whose energy or power was zero, because the counter did not advance while they ran.
    """

    dtype: np.ndarray
    m: np.ndarray
    n: np.ndarray
    k: np.ndarray
    seconds: np.ndarray
    energy_joule: np.ndarray
    power_watt: np.ndarray  # energy over time
    power_sample_watt: np.ndarray  # mean of the board's power readings meanwhile
    sm_clock_mhz: np.ndarray
    runs: np.ndarray
    dropped: int

    def __len__(self) -> int:
        return len(self.m)


@dataclass(frozen=True, eq=False)
class TiledGemm:
    """A textbook tiled SGEMM by tile: the median of single launches, and time, power and energy of sustained runs.

    dropped: rows whose energy or power was zero.
    """

    m: np.ndarray
    n: np.ndarray
    k: np.ndarray
    tile: np.ndarray
    seconds: np.ndarray
    min: np.ndarray
    max: np.ndarray
    sustained_seconds: np.ndarray
    power_watt: np.ndarray
    energy_joule: np.ndarray
    relative_error: np.ndarray  # against cuBLAS
    dropped: int

    def __len__(self) -> int:
        return len(self.m)


Table = TypeVar("Table", GemmTimes, GemmEnergy, TiledGemm)
WHOLE = {"m", "n", "k", "tile", "runs"}


def gemm_times(directory: Path = H100) -> GemmTimes:
    """The 2,101 rows of gemm_general.csv."""
    return _read(GemmTimes, directory / GENERAL)


def gemm_energy(directory: Path = H100) -> GemmEnergy:
    """gemm_energy.csv without its zero-energy rows, which `dropped` counts."""
    return _read(GemmEnergy, directory / ENERGY)


def tiled_gemm(directory: Path = H100) -> TiledGemm:
    """tiled_gemm.csv without zero-energy rows, which `dropped` counts."""
    return _read(TiledGemm, directory / TILED)


def digest(name: str, directory: Path = H100) -> str:
    """sha256 of a table, for a run's record."""
    return hashlib.sha256((directory / name).read_bytes()).hexdigest()


def _read(kind: type[Table], path: Path) -> Table:
    """ValueError naming the file and the column where one is missing or not a positive number."""
    rows = read_table(path)
    counts = any(field.name == "dropped" for field in fields(kind))
    kept = [row for row in rows if not (counts and _zero(row))]
    if not kept:
        raise ValueError(f"{path} has no usable row")
    columns: dict[str, Any] = {"dropped": len(rows) - len(kept)} if counts else {}
    for field in fields(kind):
        name = field.name
        if name == "dropped":
            continue
        if name not in kept[0]:
            raise ValueError(f"{path} has no column {name}")
        if name == "dtype":
            columns[name] = np.array([row[name] for row in kept])
            continue
        try:
            column = np.array([float(row[name]) for row in kept])
        except (TypeError, ValueError):
            raise ValueError(f"{path}: column {name} is not all numbers") from None
        if name != "relative_error" and not np.all(column > 0):
            raise ValueError(f"{path}: column {name} has a value that is not positive")
        columns[name] = column.astype(np.int64) if name in WHOLE else column
    return kind(**columns)


def _zero(row: dict[str, Any]) -> bool:
    return float(row["energy_joule"]) == 0.0 or float(row["power_watt"]) == 0.0
