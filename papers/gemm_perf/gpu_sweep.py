"""The tile sweep on a GPU of the user's own: the authors' kernel, warmed up, with power while it runs.

Plan, check of the result, timing and energy bookkeeping run on any of devices.py, the CPU among them, where tests cover
them.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from common.lab.runtime import Observations
from papers.gemm_perf.config import Config
from papers.gemm_perf.devices import Device, exact_float32
from papers.gemm_perf.energy_meter import LEAST_SECONDS, Sustained, sustain
from papers.gemm_perf.tile_sweep import BEST, LEAST, Size, TileSweep, observe_shares

WARM_UP, LAUNCHES = 3, 10
BURST_SECONDS = 0.02  # of launches between two looks at the meter: short beside a step of its counter
TOLERANCE = 1e-4  # relative to the largest element: float32 sums of up to 16,384 products in another order
LARGEST = {1: 2048, 2: 4096}  # largest m, n, k of the tiles that would take minutes beyond


@dataclass(frozen=True)
class Row:
    """One size and tile, measured."""

    size: Size
    tile: int
    seconds: float  # median of LAUNCHES single launches
    sustained: Sustained
    relative_error: float  # of a random product against torch, relative to its largest element


@dataclass(frozen=True)
class Measured:
    """All rows, those whose two power instruments disagreed, and those whose counter stood still."""

    rows: list[Row] = field(default_factory=list)
    disagreeing: list[Row] = field(default_factory=list)
    without_energy: list[tuple[Size, int]] = field(default_factory=list)


def plan(sizes: Iterable[int], tiles: Sequence[int]) -> list[tuple[Size, int]]:
    """Square products by tile, smallest first; the slowest tiles only up to LARGEST."""
    chosen = [
        ((side, side, side), tile)
        for side in sorted(sizes)
        for tile in sorted(tiles)
        if side <= LARGEST.get(tile, side)
    ]
    if not chosen:
        raise ValueError("a sweep needs at least one size and tile")
    return chosen


def check(device: Device, size: Size, tile: int, generator: torch.Generator) -> float:
    """Filled with 1 and 2 every element is 2 K, as the authors check; with random numbers it is torch's product.

    Returns the largest error of the second, over the largest element. RuntimeError where either is wrong.
    """
    m, n, k = size
    a, b = device.tensor(m, k).fill_(1.0), device.tensor(k, n).fill_(2.0)
    filled = device.product(a, b, tile)
    device.synchronize()
    if not bool(torch.all(filled == 2.0 * k)):
        raise RuntimeError(f"tile {tile} at {size}: 1s times 2s are not {2 * k} everywhere")
    a.normal_(generator=generator)
    b.normal_(generator=generator)
    found = device.product(a, b, tile)
    device.synchronize()
    with exact_float32():
        truth = a @ b
    error = float((found - truth).abs().max() / truth.abs().max())
    if error > TOLERANCE:
        raise RuntimeError(f"tile {tile} at {size}: off by {error:.1e} of the largest element")
    return error


def measure(
    device: Device,
    size: Size,
    tile: int,
    generator: torch.Generator,
    least_seconds: float = LEAST_SECONDS,
) -> Row:
    """Check, warm up, time single launches, then repeat for `least_seconds` with the meter."""
    error = check(device, size, tile, generator)
    m, n, k = size
    a = device.tensor(m, k).normal_(generator=generator)
    b = device.tensor(k, n).normal_(generator=generator)

    def one() -> torch.Tensor:
        return device.product(a, b, tile)

    for _ in range(WARM_UP):
        one()
    device.synchronize()
    seconds = statistics.median(device.seconds(one) for _ in range(LAUNCHES))
    runs = max(1, round(BURST_SECONDS / seconds))

    def burst() -> int:
        for _ in range(runs):
            one()
        device.synchronize()
        return runs

    return Row(size, tile, seconds, sustain(burst, device.meter, least_seconds), error)


def library_seconds(device: Device, size: Size) -> float:
    """The upper reference: torch's own float32 product without TF32, median of single launches."""
    m, n, k = size
    a, b = device.tensor(m, k).fill_(1.0), device.tensor(k, n).fill_(2.0)
    with exact_float32():
        for _ in range(WARM_UP):
            a @ b
        device.synchronize()
        return statistics.median(device.seconds(lambda: a @ b) for _ in range(LAUNCHES))


def sweep(
    device: Device,
    chosen: Iterable[tuple[Size, int]],
    generator: torch.Generator,
    least_seconds: float = LEAST_SECONDS,
) -> Measured:
    """Measure all; rows without energy are dropped and listed, rows whose instruments disagree are listed too."""
    found = Measured()
    for size, tile in chosen:
        try:
            row = measure(device, size, tile, generator, least_seconds)
        except RuntimeError as error:
            if "energy counter" not in str(error):
                raise
            found.without_energy.append((size, tile))
            continue
        found.rows.append(row)
        if not row.sustained.agrees:
            found.disagreeing.append(row)
    return found


def observe(
    device: Device,
    chosen: Iterable[tuple[Size, int]],
    config: Config,
    generator: torch.Generator,
    seed: int,
    seen: Observations,
) -> None:
    """Sweep once and add every row, the counts of what was set aside, and what the claims read."""
    chosen = list(chosen)
    for size in dict.fromkeys(size for size, _ in chosen):
        m, n, k = size
        seen.add("gpu_cublas_seconds", library_seconds(device, size), seed, card=device.name, m=m, n=n, k=k)
    found = sweep(device, chosen, generator, config.gpu_seconds)
    for row in found.rows:
        m, n, k = row.size
        at: dict[str, str | int] = {"card": device.name, "m": m, "n": n, "k": k, "tile": row.tile}
        seen.add("gpu_tile_seconds", row.seconds, seed, **at)
        seen.add("gpu_sustained_seconds", row.sustained.seconds, seed, **at)
        seen.add("gpu_joules", row.sustained.joules, seed, **at)
        seen.add("gpu_counted_watts", row.sustained.counted_watts, seed, **at)
        seen.add("gpu_read_watts", row.sustained.read_watts, seed, **at)
        seen.add("gpu_relative_error", row.relative_error, seed, **at)
    seen.add("gpu_rows_without_energy", len(found.without_energy), seed)
    seen.add("gpu_rows_disagreeing", len(found.disagreeing), seed)
    used = as_sweep(found, tuple(tile for tile in config.gpu_tiles if tile >= LEAST), device.name)
    observe_shares(used, "gpu", seen, seed)
    seen.add("tile_lead_gpu", float(used.lead(BEST).mean()), seed)
    for number, (m, n, k) in enumerate(used.sizes):
        seen.add("tile_speedup_gpu", used.speedup(BEST, config.baseline_tile)[number], seed, m=m, n=n, k=k)
    gains = used.power_gain(BEST, config.baseline_tile)
    known = gains[np.isfinite(gains)]  # where both power instruments agreed
    if len(known):
        seen.add("tile_power_gain_gpu", float(np.exp(np.log(known).mean())), seed)


def as_sweep(found: Measured, tiles: tuple[int, ...], card: str) -> TileSweep:
    """The sizes at which all `tiles` were measured: sustained seconds; watts only where both instruments agree."""
    by_size: dict[Size, dict[int, Row]] = {}
    for row in found.rows:
        by_size.setdefault(row.size, {})[row.tile] = row
    sizes = tuple(size for size in sorted(by_size) if all(tile in by_size[size] for tile in tiles))
    rows = [[by_size[size][tile] for tile in tiles] for size in sizes]
    return TileSweep(
        card,
        sizes,
        tiles,
        np.array([[row.sustained.seconds for row in line] for line in rows]),
        np.array(
            [
                [row.sustained.counted_watts if row.sustained.agrees else np.nan for row in line]
                for line in rows
            ]
        ),
    )
