"""Seconds of saving, converting and loading on storage of a set rate, in real processes.

Files pass through throttled devices, so that the page cache of one machine does not stand in for storage: one device
for each node that has its own way to storage, or one that all share. Sides of a comparison run in turn (A B B A), and
nothing but the clock is chance: one group of processes repeats them, a repetition a seed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from common.distributed.fleet import Fleet
from common.distributed.rooms import Room
from common.distributed.tensor_files import Storage
from common.distributed.throttled import Device
from common.distributed.turns import in_turn, together
from common.lab.runtime import Observations
from common.training.sharded.job import LETTERS, Job
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from papers.universal_checkpointing.baselines import save_consolidated
from papers.universal_checkpointing.config import Config
from papers.universal_checkpointing.conversion import Converted, Sharing, convert
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.loading import load_universal
from papers.universal_checkpointing.native import Described, Progress, load_native, save

MB = 1e6
STORED = Layout(2, 1, 2, 3)  # of the state that is saved and converted
SAVES = 6  # turns of a repetition, since a save is short


def untrained(job: Job, rank: int) -> Trainer:
    """A trainer as it begins: first values, and moments that are zero. Bytes are bytes."""
    import torch._dynamo  # noqa: F401  see training.py

    return Trainer(job.shape, form_groups(job.layout, rank), job.recipe)


# on the ranks


def time_saves(
    rank: int, world: int, job: Job, folder: str, devices: tuple[Device, ...], distributed: bool, times: int
) -> list[dict[str, float]]:
    """Seconds of a save without rules in it, with them, and gathered on one rank; each rank is a node.

    distributed False: the save with rules gathers; for controls.
    """
    trainer, storage, room = untrained(job, rank), Storage(devices[rank]), Path(folder)
    plain = Described(job.layout, Progress(0, 0, job.recipe.adam), None)
    stated = replace(plain, rules=decoder_rules(job.shape))
    with_rules = save if distributed else save_consolidated
    sides = {
        "plain": lambda: save(room / "plain", trainer, plain, storage),
        "universal": lambda: with_rules(room / "universal", trainer, stated, storage),
    }
    found = in_turn(world, sides, times, SAVES)
    gathered = together(world, lambda: save_consolidated(room / "one", trainer, plain, storage))
    return [*({**seconds, "consolidated": gathered} for seconds in found)]


def make_checkpoint(rank: int, world: int, job: Job, folder: str) -> None:
    """A distributed checkpoint to convert or load, at the machine's own speed."""
    described = Described(job.layout, Progress(0, 0, job.recipe.adam), decoder_rules(job.shape))
    save(Path(folder), untrained(job, rank), described)


def time_conversions(
    rank: int,
    world: int,
    source: str,
    target: str,
    devices: tuple[Device, ...],
    sharings: Mapping[str, Sharing],
    times: int,
) -> tuple[list[dict[str, float]], dict[str, Converted]]:
    """Each rank is a node with its own device; seconds of each way to share the work, and what this rank did in it."""
    done: dict[str, Converted] = {}

    def work(side: str) -> None:
        storage = Storage(devices[rank])
        done[side] = convert(Path(source), Path(target) / side, rank, world, 1, storage, sharings[side])

    return in_turn(world, {side: partial(work, side) for side in sharings}, times), done


@dataclass(frozen=True)
class Loaded:
    """Seconds of each side's loads, one a repetition, and bytes that this rank read in one load."""

    seconds: list[dict[str, float]]
    read_bytes: dict[str, float]


def time_loads(
    rank: int,
    world: int,
    job: Job,
    native: str,
    universal: str,
    device: Device,
    sides: Mapping[str, str],
    times: int,
    handed_around: bool = True,
) -> Loaded:
    """All ranks share a device. sides: names, each with "direct" (the layout's own files) or a way of reading."""
    trainer = untrained(job, rank)
    storages = {side: Storage(device) for side in sides}

    def load(side: str) -> None:
        if sides[side] == "direct":
            load_native(Path(native), trainer, storages[side])
        else:
            load_universal(Path(universal), trainer, storages[side], sides[side], handed_around=handed_around)

    seconds = in_turn(world, {side: partial(load, side) for side in sides}, times)
    return Loaded(seconds, {side: storage.read_bytes / (1 + times) for side, storage in storages.items()})


def packing_rate(folder: Path, nbytes: int = 16 << 20) -> float:
    """Bytes/s of torch.save and torch.load together on one core."""
    values, path = torch.rand(nbytes // 4), folder / "values.pt"
    torch.save(values, path)
    begun = time.perf_counter()
    torch.save(values, path)
    torch.load(path)
    seconds = time.perf_counter() - begun
    path.unlink()
    return 2 * nbytes / seconds


# what is observed


def stored_job(config: Config, layout: Layout, layers: int) -> Job:
    """The decoder whose state is saved, converted and loaded."""
    h = config.stored_hidden
    shape = Shape(LETTERS, h, layers, heads=8, kv_heads=4, mlp=3 * h, context=16)
    return Job(shape, layout, Recipe(), config.rows)


def stored(processes: Fleet, room: Path, job: Job) -> tuple[Path, Path]:
    """A distributed checkpoint and the atomic one made of it, in a room; made there once."""
    name = f"{job.shape.hidden} {job.shape.layers} {job.layout}"
    native, universal = (room / kind / name for kind in ("native", "universal"))
    if not universal.exists():
        processes.run(make_checkpoint, job.layout.world, (job, str(native)))
        convert(native, universal)
    return native, universal


def devices_of(room: Path, n: int, rate_mb: float) -> tuple[Device, ...]:
    return tuple(Device.make(room / f"device{i}", rate_mb * MB) for i in range(n))


def saves(config: Config, processes: Fleet, seeds: Sequence[int], seen: Observations) -> None:
    """Four nodes with a device each."""
    job = stored_job(config, STORED, config.stored_layers)
    with Room("paperlab-ucp-") as room:
        devices = devices_of(room, job.layout.world, config.node_rate)
        arguments = (job, str(room), devices, config.distributed_save, len(seeds))
        found = processes.run(time_saves, job.layout.world, arguments)[0]
        if config.distributed_save:
            files = list((room / "universal").glob("*.safetensors"))
            same = all(path.read_bytes() == (room / "plain" / path.name).read_bytes() for path in files)
            seen.add("saved_files_identical", int(same))
        saved = sum(path.stat().st_size for path in (room / "plain").glob("*.safetensors"))
        seen.add("saved_mb", saved / MB)
    for seed, seconds in zip(seeds, found, strict=True):
        for kind, each in seconds.items():
            seen.add("save_seconds", each, seed, kind=kind)
        seen.add("save_gain", seconds["plain"] / seconds["universal"], seed)


def conversions(
    config: Config, processes: Fleet, room: Path, seeds: Sequence[int], seen: Observations
) -> None:
    """One node that does all, and as many as `converters` says, each with its device; only the most repeatedly."""
    most = max(config.converters)
    sharings = {"one": Sharing("none"), "all": Sharing(config.parallel, config.assignment)}
    native, _ = stored(processes, room, stored_job(config, STORED, config.stored_layers))
    for world in config.converters:
        repeated = seeds if world == most else seeds[:1]
        with Room("paperlab-ucp-") as target:
            devices = devices_of(target, world, config.node_rate)
            arguments = (str(native), str(target), devices, sharings, len(repeated))
            ranks = processes.run(time_conversions, world, arguments)
        done = [converted["all"] for _, converted in ranks]
        seen.add("converted_mb", sum(one.written_bytes for one in done) / MB, workers=world)
        seen.add("most_held_mb", max(one.most_held for one in done) / MB, workers=world)
        for seed, seconds in zip(repeated, ranks[0][0], strict=True):
            seen.add("conversion_seconds", seconds["all"], seed, workers=world)
            if world == most:
                seen.add("conversion_seconds", seconds["one"], seed, workers=1)
                seen.add("conversion_gain", seconds["one"] / seconds["all"], seed)


def loads(config: Config, processes: Fleet, room: Path, seeds: Sequence[int], seen: Observations) -> None:
    """The same layout from its own files and from atomic ones; four ranks share a device."""
    job = stored_job(config, STORED, config.stored_layers)
    sides = {"direct": "direct", "ours": "parts" if config.row_reads else "whole", "whole": "whole"}
    native, universal = stored(processes, room, job)
    (device,) = devices_of(room, 1, config.shared_rate)
    arguments = (job, str(native), str(universal), device, sides, len(seeds))
    ranks = processes.run(time_loads, job.layout.world, arguments)
    for side in sides:
        seen.add("load_mb", sum(rank.read_bytes[side] for rank in ranks) / MB, reading=side)
    for seed, seconds in zip(seeds, ranks[0].seconds, strict=True):
        for side, each in seconds.items():
            seen.add("load_seconds", each, seed, reading=side)
        seen.add("load_ratio", seconds["ours"] / seconds["direct"], seed)
        seen.add("load_ratio_whole", seconds["whole"] / seconds["direct"], seed)


def bypasses(config: Config, processes: Fleet, room: Path, seeds: Sequence[int], seen: Observations) -> None:
    """What handing files around saves over reading them on every rank; only the most data ranks repeatedly.

    bypass_over_rows: against reading the needed rows, which the paper's files do not allow and safetensors do.
    """
    sides = {"whole": "whole", "bypass": "bypass", "parts": "parts"}
    most = max(config.data_ranks)
    native, universal = stored(processes, room, stored_job(config, Layout(), config.loaded_layers))
    for data in config.data_ranks:
        repeated = seeds if data == most else seeds[:1]
        job = stored_job(config, Layout(1, 1, data, 3 if data > 1 else 0), config.loaded_layers)
        (device,) = devices_of(room, 1, config.bypass_rate)
        arguments = (job, str(native), str(universal), device, sides, len(repeated), config.handed_around)
        ranks = processes.run(time_loads, data, arguments)
        for side in sides:
            mb = sum(rank.read_bytes[side] for rank in ranks) / MB
            seen.add("group_load_mb", mb, reading=side, data=data)
        for seed, seconds in zip(repeated, ranks[0].seconds, strict=True):
            for side, each in seconds.items():
                seen.add("group_load_seconds", each, seed, reading=side, data=data)
            if data == most:
                seen.add("bypass_gain", seconds["whole"] / seconds["bypass"], seed)
                seen.add("bypass_over_rows", seconds["parts"] / seconds["bypass"], seed)
