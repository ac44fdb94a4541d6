"""Observations of what saving, converting and loading cost: on throttled storage here, and by formula at scale."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from common.distributed.fleet import Fleet
from common.distributed.throttled import Device
from common.lab.runtime import Observations, Runtime
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe
from papers.universal_checkpointing import scale, timings
from papers.universal_checkpointing.config import Config
from papers.universal_checkpointing.conversion import Assignment, assign, convert, straggler
from papers.universal_checkpointing.training import LETTERS, Job

MB = 1e6
STORED = Layout(2, 1, 2, 3)  # of the state that is saved and converted
WORKERS = 64  # to which parameters are assigned: with some three tensors each, as at 1T
MEMORY = Path("/dev/shm")  # Linux's folder in memory
ROOM = 2e9  # bytes


@cache
def _room() -> "tempfile.TemporaryDirectory[str]":
    """Where checkpoints of this process lie, in memory if there is room: throttled devices stand for storage.

    Gone with the process.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    return tempfile.TemporaryDirectory(prefix="paperlab-ucp-", dir=MEMORY if roomy else None)


def _job(config: Config, layout: Layout, layers: int) -> Job:
    h = config.stored_hidden
    shape = Shape(LETTERS, h, layers, heads=8, kv_heads=4, mlp=3 * h, context=16)
    return Job(shape, layout, Recipe(), config.rows)


def _stored(processes: Fleet, job: Job) -> tuple[Path, Path]:
    """A distributed checkpoint and the atomic one made of it; made once a process."""
    name = f"{job.shape.hidden} {job.shape.layers} {job.layout}"
    native, universal = (Path(_room().name) / kind / name for kind in ("native", "universal"))
    if not universal.exists():
        processes.run(timings.make_checkpoint, job.layout.world, (job, str(native)))
        convert(native, universal)
    return native, universal


def _devices(n: int, rate_mb: float) -> tuple[Device, ...]:
    folder = Path(tempfile.mkdtemp(dir=_room().name))
    return tuple(Device.make(folder / f"device{i}", rate_mb * MB) for i in range(n))


def saves(config: Config, processes: Fleet, seed: int, seen: Observations) -> None:
    """Four nodes with a device each."""
    job = _job(config, STORED, config.stored_layers)
    with tempfile.TemporaryDirectory(dir=_room().name) as room:
        devices = _devices(job.layout.world, config.node_rate)
        arguments = (job, room, devices, config.distributed_save)
        found = processes.run(timings.time_saves, job.layout.world, arguments)[0]
        if config.distributed_save:
            same = all(
                path.read_bytes() == (Path(room) / "plain" / path.name).read_bytes()
                for path in (Path(room) / "universal").glob("*.safetensors")
            )
            seen.add("saved_files_identical", int(same), seed)
    for kind in ("universal", "plain", "consolidated"):
        seen.add("save_seconds", getattr(found, kind), seed, kind=kind)
    seen.add("save_ratio", found.universal / found.plain, seed)


def conversions(config: Config, processes: Fleet, seed: int, seen: Observations, every: bool) -> None:
    """One node after another is added, each with its device and a process; every: not only the first and the last."""
    native, _ = _stored(processes, _job(config, STORED, config.stored_layers))
    seconds = {}
    worlds = config.converters if every else [config.converters[0], config.converters[-1]]
    for world in worlds if config.nested else worlds[:1]:
        with tempfile.TemporaryDirectory(dir=_room().name) as room:
            devices = _devices(world, config.node_rate)
            kind = "balanced" if config.balanced else "random"
            arguments = (str(native), f"{room}/universal", devices, kind)
            ranks = processes.run(timings.time_conversion, world, arguments)
        seconds[world] = max(took for took, _ in ranks)
        done = [converted for _, converted in ranks]
        seen.add("conversion_seconds", seconds[world], seed, workers=world)
        seen.add("converted_mb", sum(one.written_bytes for one in done) / MB, seed, workers=world)
        seen.add("most_held_mb", max(one.most_held for one in done) / MB, seed, workers=world)
    first, last = config.converters[0], max(seconds)
    seen.add("conversion_speedup", seconds[first] / seconds[last], seed)


def loads(config: Config, processes: Fleet, seed: int, seen: Observations) -> None:
    """The same layout from its own files and from atomic ones; four ranks share a device."""
    job = _job(config, STORED, config.stored_layers)
    native, universal = _stored(processes, job)
    (device,) = _devices(1, config.shared_rate)
    reading = "whole" if config.whole_reads else "parts"
    arguments = (job, str(native), str(universal), device, ("direct", reading, "bypass"))
    ranks = processes.run(timings.time_loads, job.layout.world, arguments)
    for kind, found in ranks[0].items():
        seen.add("load_seconds", found.seconds, seed, reading=kind)
        seen.add("load_mb", sum(rank[kind].read_bytes for rank in ranks) / MB, seed, reading=kind)
    seen.add("load_ratio", ranks[0][reading].seconds / ranks[0]["direct"].seconds, seed)


def bypasses(config: Config, processes: Fleet, seed: int, seen: Observations, every: bool) -> None:
    """What handing files around saves over reading them on every rank, by the number of data ranks.

    every: not only for the largest number, which is the one that a claim reads.
    """
    gains = {}
    for data in config.data_ranks if every else config.data_ranks[-1:]:
        job = _job(config, Layout(1, 1, data, 3), config.loaded_layers)
        source = _job(config, Layout(1, 1, 1, 0), config.loaded_layers)
        native, universal = _stored(processes, source)
        (device,) = _devices(1, config.bypass_rate)
        arguments = (job, str(native), str(universal), device, ("whole", "bypass", "parts"))
        ranks = processes.run(timings.time_loads, data, arguments)
        for kind, found in ranks[0].items():
            seen.add("group_load_seconds", found.seconds, seed, reading=kind, data=data)
            seen.add(
                "group_load_mb",
                sum(rank[kind].read_bytes for rank in ranks) / MB,
                seed,
                reading=kind,
                data=data,
            )
        gains[data] = ranks[0]["whole"].seconds / ranks[0]["bypass"].seconds
    seen.add("bypass_gain", gains[max(gains)], seed)


def assignments(config: Config, lab: Runtime, seed: int, seen: Observations) -> None:
    """The last worker's time with parameters given out at random, over that with the largest first."""
    work = scale.MODELS[-1].parameters()
    kind: Assignment = "balanced" if config.balanced else "random"
    random = straggler(work, assign(work, WORKERS, "random", lab.rng(seed, "assignment")))
    ours = straggler(work, assign(work, WORKERS, kind, lab.rng(seed, "assignment")))
    seen.add("straggler", random, seed, assignment="random")
    seen.add("straggler", ours, seed, assignment="ours")
    seen.add("straggler_gain", random / ours, seed)


def at_scale(config: Config, seen: Observations) -> None:
    """The five models of Table 3, on storage of either kind, and the gain over one process."""
    totals = []
    for model in scale.MODELS:
        for node in (scale.NODE, 3e9):
            found = scale.times(model, config.nested, node)
            for phase in ("save", "transform", "load", "total"):
                minutes = getattr(found, phase) / 60
                seen.add("minutes", minutes, model=model.name, phase=phase, node_gb_per_s=node / 1e9)
            if node == scale.NODE:
                totals.append(found.total / 60)
                seen.add(f"transform_minutes_{model.name}", found.transform / 60)
    largest = scale.MODELS[-1]
    seconds = scale.times(largest, config.nested).transform
    seen.add("nested_gain", scale.sequential(largest) / seconds)
    seen.add("end_to_end_minutes", float(np.max(totals)))
    if MEMORY.is_dir():
        with tempfile.TemporaryDirectory(dir=MEMORY) as room:
            seen.add("parse_gb_per_s", timings.parse_rate(Path(room)) / 1e9)
