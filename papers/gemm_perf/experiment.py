"""What the claims of the paper read: tile sweeps of three sources that stay apart, and forests under several splits."""

from functools import partial
from pathlib import Path
from typing import Any

from common.hardware.float32 import board
from common.hardware.gemm_tables import ENERGY, GENERAL, TILED, digest, tiled_gemm
from common.lab.runtime import Observations, Runtime
from papers.gemm_perf import forest_study
from papers.gemm_perf.config import Config
from papers.gemm_perf.tile_sweep import (
    BEST,
    LARGE,
    Size,
    TileSweep,
    authors_sweep,
    measured_sweep,
    modelled_sweep,
    observe_shares,
)

AUTHORS_DATA = ("gemm-tile-times-rtx4070", "gemm-tile-power-rtx4070")
ADA_TILES = (1, 4, 8, 16, 32)
ADA_SIZES = tuple(  # of the authors' table, also where it can't be had
    (m, n, k) for m in (LARGE, 2 * LARGE) for n in (LARGE, 2 * LARGE) for k in (1024, LARGE, 2 * LARGE)
)


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read; what chance plays a part in has one row a seed."""
    seen = Observations()
    if config.tables:
        ada(config, lab, seen)
        hopper(config, lab, seen)
    if config.forests:
        forests(config, lab, seen)
    if lab.device.startswith("cuda"):
        own_gpu(config, lab, seen)
    return seen


def ada(config: Config, lab: Runtime, seen: Observations) -> None:
    """The authors' RTX 4070 tables where they can be had, and the model of that board in any case."""
    sizes: tuple[Size, ...] = ADA_SIZES
    tiles: tuple[int, ...] = ADA_TILES
    if lab.wants("best_tile", "tile_speedup", "tile_power_gain"):
        paths = [authors_table(lab, name) for name in AUTHORS_DATA]
        if paths[0] is not None and paths[1] is not None:
            measured = authors_sweep(paths[0], paths[1])
            sizes, tiles = measured.sizes, measured.tiles
            observe(measured, "measured", seen)
            seen.add("authors_sizes", len(sizes))
            for seed, used in as_told(measured, config, lab):
                seen.add("best_tile", used.modal_best(), seed)
                observe_shares(used, "rtx-4070", seen, seed)
                for row, at in places(used):
                    seen.add("tile_speedup", used.speedup(BEST, config.baseline_tile)[row], seed, **at)
                    seen.add("tile_power_gain", used.power_gain(BEST, config.baseline_tile)[row], seed, **at)
    if lab.wants("best_tile_simulated"):
        modelled = modelled_sweep(board("rtx-4070"), sizes, tiles, config.one_tile)
        observe(modelled, "modelled", seen)
        seen.add("best_tile_simulated", modelled.modal_best())
        seen.add("modelled_sizes", len(sizes))


def as_told(sweep: TileSweep, config: Config, lab: Runtime) -> list[tuple[int | None, TileSweep]]:
    """The sweep, once; under the control by one code path; under the placebo shuffled, once a seed."""
    if config.shuffled_tiles:
        return [(seed, sweep.shuffled(lab.rng(seed, "gemm_perf", "tiles"))) for seed in lab.seeds]
    return [(None, sweep.with_one_code_path(config.one_tile) if config.one_tile else sweep)]


def places(sweep: TileSweep) -> list[tuple[int, dict[str, int]]]:
    """Row and coordinates of each size."""
    return [(row, dict(zip("mnk", size, strict=True))) for row, size in enumerate(sweep.sizes)]


def authors_table(lab: Runtime, name: str) -> Path | None:
    """The path of a data set, downloaded if need be; None where it can't be had."""
    from common.data import DataError, fetch

    try:
        fetch(name)
    except DataError:
        return None
    return lab.data(name)


def observe(sweep: TileSweep, kind: str, seen: Observations) -> None:
    """The times and powers behind the figures."""
    for row, (m, n, k) in enumerate(sweep.sizes):
        for column, tile in enumerate(sweep.tiles):
            at: dict[str, Any] = {"card": sweep.card, "kind": kind, "m": m, "n": n, "k": k, "tile": tile}
            seen.add("tile_seconds", sweep.seconds[row, column], **at)
            if sweep.watts[row, column] == sweep.watts[row, column]:
                seen.add("tile_watts", sweep.watts[row, column], **at)


def hopper(config: Config, lab: Runtime, seen: Observations) -> None:
    """The H100 sweep: sustained runs with power from the energy counter. A size takes a seed's place."""
    if not lab.wants("tile_lead_h100", "tile_speedup_h100", "tile_power_gain_h100"):
        return
    table = tiled_gemm()
    lab.used("h100-tiled-gemm", digest(TILED))
    seen.add("zero_energy_rows", table.dropped, table=TILED)
    measured = measured_sweep(table, tuple(config.h100_tiles))
    observe(measured, "measured", seen)
    observe(
        modelled_sweep(board("h100-sxm"), measured.sizes, measured.tiles, config.one_tile), "modelled", seen
    )
    used = measured
    if config.one_tile:
        used = measured.with_one_code_path(config.one_tile)
    elif config.shuffled_tiles:
        used = measured.shuffled(lab.rng(0, "gemm_perf", "h100 tiles"))
    observe_shares(used, "h100", seen)
    for row, at in places(used):
        seen.add("tile_lead_h100", used.lead(BEST)[row], row, **at)
        seen.add("tile_speedup_h100", used.speedup(BEST, config.baseline_tile)[row], row, **at)
        seen.add("tile_power_gain_h100", used.power_gain(BEST, config.baseline_tile)[row], row, **at)


def forests(config: Config, lab: Runtime, seen: Observations) -> None:
    """One task a table, way to split and seed, in parallel."""
    tasks = [
        forest_study.Task(kind, seed, lab.rng(seed, "gemm_perf", forest_study.STREAM[kind]))
        for seed in lab.seeds
        for kind, metrics in forest_study.METRICS.items()
        if lab.wants(*metrics)
    ]
    if any(task.kind.startswith("h100") for task in tasks):
        lab.used("h100-gemm-general", digest(GENERAL))
        lab.used("h100-gemm-energy", digest(ENERGY))
    for rows in lab.map(partial(forest_study.observe, config), tasks, "forests"):
        seen.extend(rows)


def own_gpu(config: Config, lab: Runtime, seen: Observations) -> None:
    """The same kernel on this machine's GPU, warmed up, with power while it runs."""
    if not lab.wants("tile_lead_gpu", "tile_speedup_gpu", "tile_power_gain_gpu"):
        return
    from papers.gemm_perf import devices, gpu_sweep

    device = devices.CudaDevice(lab.device, config.one_tile)
    chosen = gpu_sweep.plan(config.gpu_sides, config.gpu_tiles)
    for seed in lab.seeds:
        gpu_sweep.observe(device, chosen, config, lab.torch_generator(seed, "matrices"), seed, seen)
