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
    SMALLER,
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
    if lab.wants("best_tile", *readings("tile_speedup"), *readings("tile_power_cut")):
        paths = [authors_table(lab, name) for name in AUTHORS_DATA]
        if paths[0] is not None and paths[1] is not None:
            measured = authors_sweep(paths[0], paths[1])
            sizes, tiles = measured.sizes, measured.tiles
            observe(measured, "measured", config, seen)
            used = through_one_path(measured, config)
            seen.add("best_tile", used.modal_best())
            observe_shares(used, "rtx-4070", seen)
            for over, speedup, cut in zip(
                SMALLER, readings("tile_speedup"), readings("tile_power_cut"), strict=True
            ):
                for row, size in enumerate(used.sizes):
                    at = dict(zip("mnk", size, strict=True))
                    seen.add(speedup, used.speedup(BEST, over)[row], **at)
                    seen.add(cut, used.power_cut(BEST, over)[row], **at)
    if lab.wants("best_tile_simulated", "tile_speedup_simulated"):
        modelled = modelled_sweep(board("rtx-4070"), sizes, tiles, config.one_tile)
        observe(modelled, "modelled", config, seen)
        seen.add("best_tile_simulated", modelled.modal_best())
        for row, size in enumerate(modelled.sizes):
            at = dict(zip("mnk", size, strict=True))
            seen.add("tile_speedup_simulated", modelled.speedup(BEST, SMALLER[0])[row], **at)


def readings(metric: str) -> tuple[str, str]:
    """The metric's names against tile 8 (the next smaller one) and against tile 4."""
    return metric, f"{metric}_vs_4"


def authors_table(lab: Runtime, name: str) -> Path | None:
    """The path of a data set, downloaded if need be; None where it can't be had."""
    from common.data import DataError, fetch

    try:
        fetch(name)
    except DataError:
        return None
    return lab.data(name)


def through_one_path(sweep: TileSweep, config: Config) -> TileSweep:
    """The sweep; under the control every tile reads the one code path's measurement."""
    return sweep.with_one_code_path(config.one_tile) if config.one_tile else sweep


def observe(sweep: TileSweep, kind: str, config: Config, seen: Observations) -> None:
    """The times and powers behind the figures."""
    for row, (m, n, k) in enumerate(sweep.sizes):
        for column, tile in enumerate(sweep.tiles):
            at: dict[str, Any] = {"card": sweep.card, "kind": kind, "m": m, "n": n, "k": k, "tile": tile}
            seen.add("tile_seconds", sweep.seconds[row, column], **at)
            if sweep.watts[row, column] == sweep.watts[row, column]:
                seen.add("tile_watts", sweep.watts[row, column], **at)


def hopper(config: Config, lab: Runtime, seen: Observations) -> None:
    """The H100 sweep: sustained runs with power from the energy counter."""
    if not lab.wants("tile_lead_h100", "tile_speedup_h100", "tile_power_cut_h100"):
        return
    table = tiled_gemm()
    lab.used("h100-tiled-gemm", digest(TILED))
    seen.add("zero_energy_rows", table.dropped, table=TILED)
    measured = measured_sweep(table, tuple(config.h100_tiles))
    observe(measured, "measured", config, seen)
    modelled = modelled_sweep(board("h100-sxm"), measured.sizes, measured.tiles, config.one_tile)
    observe(modelled, "modelled", config, seen)
    used = through_one_path(measured, config)
    observe_shares(used, "h100", seen)
    for row, size in enumerate(used.sizes):  # a size takes a seed's place: the interval is over sizes
        at = dict(zip("mnk", size, strict=True))
        seen.add("tile_lead_h100", used.lead(BEST)[row], row, **at)
        seen.add("tile_power_cut_h100", used.power_cut(BEST, SMALLER[0])[row], row, **at)
        seen.add("tile_speedup_h100", used.speedup(BEST, SMALLER[0])[row], **at)


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
    if not lab.wants("tile_lead_gpu", "tile_speedup_gpu", "tile_power_cut_gpu"):
        return
    from papers.gemm_perf import devices, gpu_sweep

    device = devices.CudaDevice(lab.device, config.one_tile)
    chosen = gpu_sweep.plan(config.gpu_sides, config.gpu_tiles)
    for seed in lab.seeds:
        gpu_sweep.observe(device, chosen, config, lab.torch_generator(seed, "matrices"), seed, seen)
