"""A sweep over tiles: which tile is fastest at each size, by how much, and what power it draws.

One `TileSweep` holds one card's measurements (or the model's times for it); sweeps of different cards stay apart.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.hardware.float32 import Float32Board
from common.hardware.gemm_tables import TiledGemm
from common.hardware.operators import read_table
from common.lab.runtime import Observations
from papers.gemm_perf.tile_model import tile_time

BEST = 16  # the tile that the paper recommends
LEAST = 4  # the smallest tile of the claims: below it a warp is nearly empty


Size = tuple[int, int, int]  # m, n, k
LARGE = 8192  # least m and n of the authors' sizes whose time is the kernel's and not the launch's


@dataclass(frozen=True, eq=False)
class TileSweep:
    """Seconds and watts by size and tile, both of shape (sizes, tiles); watts are NaN where nothing was measured."""

    card: str
    sizes: tuple[Size, ...]
    tiles: tuple[int, ...]
    seconds: np.ndarray
    watts: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.sizes), len(self.tiles))
        if self.seconds.shape != shape or self.watts.shape != shape or 0 in shape:
            raise ValueError(
                f"a sweep of {shape[0]} sizes and {shape[1]} tiles needs two tables of that shape"
            )

    def column(self, tile: int) -> int:
        """ValueError naming the tiles there are."""
        if tile not in self.tiles:
            raise ValueError(f"{self.card} was not swept with tile {tile}; tiles: {self.tiles}")
        return self.tiles.index(tile)

    def speedup(self, tile: int, over: int) -> np.ndarray:
        """Time with tile `over` divided by the time with `tile`, of each size."""
        return self.seconds[:, self.column(over)] / self.seconds[:, self.column(tile)]

    def power_gain(self, tile: int, over: int) -> np.ndarray:
        """Power with tile `over` divided by the power with `tile`, of each size."""
        return self.watts[:, self.column(over)] / self.watts[:, self.column(tile)]

    def best(self) -> np.ndarray:
        """The fastest tile of each size; 0 where none is faster than all others."""
        order = np.sort(self.seconds, axis=1)
        alone = order[:, 0] < order[:, 1]
        return np.where(alone, np.array(self.tiles)[np.argmin(self.seconds, axis=1)], 0)

    def modal_best(self) -> int:
        """The tile that is fastest at most sizes; 0 where there is none."""
        tiles, counts = np.unique(self.best(), return_counts=True)
        return int(tiles[np.argmax(counts)])

    def lead(self, tile: int) -> np.ndarray:
        """Time of the best other tile over that of `tile`, of each size; above 1: `tile` is best."""
        others = np.delete(self.seconds, self.column(tile), axis=1).min(axis=1)
        return others / self.seconds[:, self.column(tile)]

    def with_one_code_path(self, tile: int) -> "TileSweep":
        """The control: whatever tile is asked for, the kernel runs with `tile`; that tile's measurement is read."""
        same = np.full(len(self.tiles), self.column(tile))
        return TileSweep(self.card, self.sizes, self.tiles, self.seconds[:, same], self.watts[:, same])

    def shuffled(self, rng: np.random.Generator) -> "TileSweep":
        """The placebo: the measurements of each size change tiles at random, time and power together."""
        order = np.array([rng.permutation(len(self.tiles)) for _ in self.sizes])
        seconds, watts = (np.take_along_axis(table, order, axis=1) for table in (self.seconds, self.watts))
        return TileSweep(self.card, self.sizes, self.tiles, seconds, watts)


def authors_sweep(times: Path, power: Path) -> TileSweep:
    """The large sizes of the authors' RTX 4070 tables: one cold launch each, and the mean power of the whole process.

    ValueError where a size lacks a tile.
    """
    seconds = _by_size(times, "Execution Time", 1e-3)
    watts = _by_size(power, "Average Power Usage (W)", 1.0)
    sizes = tuple(sorted(size for size in seconds if min(size[:2]) >= LARGE))
    tiles = tuple(sorted(set().union(*(seconds[size] for size in sizes))))
    for size in sizes:
        if missing := [
            tile for tile in tiles if tile not in seconds[size] or tile not in watts.get(size, {})
        ]:
            raise ValueError(f"{times.name}, {power.name}: size {size} lacks tiles {missing}")
    return TileSweep(
        "RTX 4070",
        sizes,
        tiles,
        np.array([[seconds[size][tile] for tile in tiles] for size in sizes]),
        np.array([[watts[size][tile] for tile in tiles] for size in sizes]),
    )


def _by_size(path: Path, column: str, unit: float) -> dict[Size, dict[int, float]]:
    found: dict[Size, dict[int, float]] = {}
    for row in read_table(path):
        size = (int(row["M"]), int(row["N"]), int(row["K"]))
        found.setdefault(size, {})[int(row["Tile Size"])] = unit * float(row[column])
    return found


def measured_sweep(table: TiledGemm, tiles: tuple[int, ...], card: str = "H100") -> TileSweep:
    """The sizes of the H100 table that hold all `tiles`; seconds and watts of sustained runs."""
    rows: dict[Size, dict[int, int]] = {}
    for row in range(len(table)):
        size = (int(table.m[row]), int(table.n[row]), int(table.k[row]))
        rows.setdefault(size, {})[int(table.tile[row])] = row
    sizes = tuple(size for size in sorted(rows) if all(tile in rows[size] for tile in tiles))
    if not sizes:
        raise ValueError(f"no size of the table was measured with all of the tiles {tiles}")
    index = np.array([[rows[size][tile] for tile in tiles] for size in sizes])
    return TileSweep(card, sizes, tiles, table.sustained_seconds[index], table.power_watt[index])


def modelled_sweep(
    board: Float32Board, sizes: tuple[Size, ...], tiles: tuple[int, ...], code_tile: int = 0
) -> TileSweep:
    """The model's seconds; it says nothing of power. code_tile: as of tile_time."""
    seconds = [[tile_time(board, *size, tile, code_tile).seconds for tile in tiles] for size in sizes]
    return TileSweep(
        f"{board.gpu.name}, modelled", sizes, tiles, np.array(seconds), np.full(np.shape(seconds), np.nan)
    )


def observe_shares(used: TileSweep, card: str, seen: Observations, seed: int | None = None) -> None:
    """At which share of the sizes each tile is the fastest."""
    best = used.best()
    for tile in used.tiles:
        seen.add("best_tile_share", float((best == tile).mean()), seed, card=card, tile=tile)
