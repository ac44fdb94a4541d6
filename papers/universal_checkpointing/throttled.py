"""Seconds of saving, converting and loading on storage of a set rate, in real processes.

Files pass through throttled devices, so that the page cache of one machine does not stand in for storage: one device
for each node that has its own way to storage, or one that all share. Sides of a comparison run in turn (A B B A), and
nothing but the clock is chance: one group of processes repeats them, a repetition a seed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.distributed.fleet import Fleet
from common.distributed.rooms import Room
from common.distributed.tensor_files import Storage
from common.distributed.throttled import Device
from common.distributed.turns import in_turn
from common.lab.runtime import Observations
from common.training.sharded.job import LETTERS, Job
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from papers.universal_checkpointing.config import Config
from papers.universal_checkpointing.conversion import Sharing, convert
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.loading import load_universal
from papers.universal_checkpointing.native import Described, Progress, load_native, save, save_consolidated

MB = 1e6
STORED = Layout(2, 1, 2, 3)  # of the state that is saved and converted
SAVES = 6  # turns of a repetition, since a save is short
Devices = tuple[Device, ...]
Seconds = list[dict[str, float]]  # of each side, a repetition an item


# on the ranks


@dataclass(frozen=True)
class Rank:
    """A rank with a trainer as it begins (bytes are bytes; None: without one), and its way to storage."""

    rank: int
    world: int
    trainer: Any
    storage: Storage


Sides = dict[str, Callable[[Rank], None]]


def timed(
    rank: int, world: int, job: Job | None, sides: Sides, devices: Devices, times: int, turns: int = 1
) -> tuple[Seconds, dict[str, float]]:
    """Seconds of each side, and the bytes that this rank reads in it once; a device for each rank, or one for all."""
    import torch._dynamo  # noqa: F401  see training.py

    trainer = None if job is None else Trainer(job.shape, form_groups(job.layout, rank), job.recipe)
    own = {side: Rank(rank, world, trainer, Storage(devices[rank % len(devices)])) for side in sides}
    seconds = in_turn(world, {side: partial(do, own[side]) for side, do in sides.items()}, times, turns)
    return seconds, {side: one.storage.read_bytes / (1 + times * turns) for side, one in own.items()}


def saving(own: Rank, folder: str, rules: bool, gathered: bool = False) -> None:
    """A save with the decoder's rules in it or without; gathered: on one rank, which writes it."""
    trainer = own.trainer
    stated = decoder_rules(trainer.shape) if rules else None
    described = Described(trainer.groups.layout, Progress(0, 0, trainer.recipe.adam), stated)
    (save_consolidated if gathered else save)(Path(folder), trainer, described, own.storage)


def converting(own: Rank, source: str, target: str, sharing: Sharing) -> None:
    convert(Path(source), Path(target), own.rank, own.world, 1, own.storage, sharing)


def loading(own: Rank, folder: str, reading: str, around: bool = True) -> None:
    """reading: "direct" of the layout's own files, or a way of reading atomic ones."""
    if reading == "direct":
        load_native(Path(folder), own.trainer, own.storage)
    else:
        load_universal(Path(folder), own.trainer, own.storage, reading, handed_around=around)


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


def devices_of(room: Path, n: int, rate_mb: float) -> Devices:
    return tuple(Device.make(room / f"device{i}", rate_mb * MB) for i in range(n))


@dataclass(frozen=True)
class Stored:
    """A decoder's state that is saved, converted and loaded in a room; what is seen of it goes to `seen`."""

    config: Config
    processes: Fleet
    room: Path
    seeds: Sequence[int]
    seen: Observations
    curves: bool = True  # whether fewer nodes and data ranks than the most are timed, too; once, for figures

    def studies(self) -> dict[str, Callable[[], None]]:
        """By the metric that each is for."""
        return {
            "save_gain": self.saves,
            "conversion_gain": self.conversions,
            "load_ratio": self.loads,
            "bypass_gain": self.bypasses,
            "packing_gb_per_s": self.packing,
        }

    def job(self, layout: Layout, layers: int) -> Job:
        h = self.config.stored_hidden
        shape = Shape(LETTERS, h, layers, heads=8, kv_heads=4, mlp=3 * h, context=16)
        return Job(shape, layout, Recipe(), self.config.rows)

    def checkpoints(self, job: Job) -> tuple[str, str]:
        """A distributed checkpoint and the atomic one made of it, at the machine's own speed; made once."""
        name = f"{job.shape.layers} {job.layout}"
        native, universal = (self.room / kind / name for kind in ("native", "universal"))
        if not universal.exists():
            side = {"save": partial(saving, folder=str(native), rules=True)}
            self.processes.run(timed, job.layout.world, (job, side, (None,), 1))
            convert(native, universal)
        return str(native), str(universal)

    def saves(self) -> None:
        """Four nodes with a device each; the save without rules once more, which must take as long."""
        config, seen = self.config, self.seen
        job, world = self.job(STORED, config.stored_layers), STORED.world
        with Room("paperlab-ucp-") as room:
            devices = devices_of(room, world, config.node_rate)
            sides: Sides = {
                "plain": partial(saving, folder=str(room / "plain"), rules=False),
                "universal": partial(
                    saving, folder=str(room / "universal"), rules=True, gathered=not config.distributed_save
                ),
            }
            if config.distributed_save:
                sides["again"] = partial(saving, folder=str(room / "again"), rules=False)
                one = {"consolidated": partial(saving, folder=str(room / "one"), rules=False, gathered=True)}
                gathered, _ = self.processes.run(timed, world, (job, one, devices, 1))[0]
                seen.add("save_seconds", gathered[0]["consolidated"], kind="consolidated")
            found, _ = self.processes.run(timed, world, (job, sides, devices, len(self.seeds), SAVES))[0]
            plain = sorted((room / "plain").glob("*.safetensors"))
            if config.distributed_save:
                same = all(p.read_bytes() == (room / "universal" / p.name).read_bytes() for p in plain)
                seen.add("saved_files_identical", int(same))
            seen.add("saved_mb", sum(path.stat().st_size for path in plain) / MB)
        for seed, seconds in zip(self.seeds, found, strict=True):
            for kind, each in seconds.items():
                seen.add("save_seconds", each, seed, kind=kind)
                if kind != "plain":
                    gain = "save_gain" if kind == "universal" else "save_again"
                    seen.add(gain, seconds["plain"] / each, seed)

    def conversions(self) -> None:
        """One node that does all, and as many as `converters` says, each with its device; only the most repeatedly."""
        config, most = self.config, max(self.config.converters)
        sharings = {"one": Sharing("none"), "all": Sharing(config.parallel, config.assignment)}
        native, _ = self.checkpoints(self.job(STORED, config.stored_layers))
        for world in config.converters if self.curves else [most]:
            repeated = self.seeds if world == most else self.seeds[:1]
            with Room("paperlab-ucp-") as room:
                sides = {
                    side: partial(converting, source=native, target=str(room / side), sharing=sharing)
                    for side, sharing in sharings.items()
                }
                devices = devices_of(room, world, config.node_rate)
                found, _ = self.processes.run(timed, world, (None, sides, devices, len(repeated)))[0]
            for seed, seconds in zip(repeated, found, strict=True):
                self.seen.add("conversion_seconds", seconds["all"], seed, workers=world)
                if world == most:
                    self.seen.add("conversion_seconds", seconds["one"], seed, workers=1)
                    self.seen.add("conversion_gain", seconds["one"] / seconds["all"], seed)

    def loads(self) -> None:
        """The same layout from its own files and from atomic ones; four ranks share a device."""
        config, seen, job = self.config, self.seen, self.job(STORED, self.config.stored_layers)
        native, atomic = self.checkpoints(job)
        sides = {
            "direct": partial(loading, folder=native, reading="direct"),
            "ours": partial(loading, folder=atomic, reading="parts" if config.row_reads else "whole"),
            "whole": partial(loading, folder=atomic, reading="whole"),
        }
        arguments = (job, sides, devices_of(self.room, 1, config.shared_rate), len(self.seeds))
        found, _ = self.processes.run(timed, STORED.world, arguments)[0]
        for seed, seconds in zip(self.seeds, found, strict=True):
            seen.add("load_ratio", seconds["ours"] / seconds["direct"], seed)
            seen.add("load_ratio_whole", seconds["whole"] / seconds["direct"], seed)

    def bypasses(self) -> None:
        """What handing files around saves over reading them on every rank; only the most data ranks repeatedly.

        bypass_over_rows: against reading the needed rows, which the paper's files do not allow and safetensors do.
        """
        config, seen, most = self.config, self.seen, max(self.config.data_ranks)
        _, atomic = self.checkpoints(self.job(Layout(), config.loaded_layers))
        sides = {
            reading: partial(loading, folder=atomic, reading=reading, around=config.handed_around)
            for reading in ("whole", "bypass", "parts")
        }
        for data in config.data_ranks if self.curves else [most]:
            repeated = self.seeds if data == most else self.seeds[:1]
            job = self.job(Layout(1, 1, data, 3 if data > 1 else 0), config.loaded_layers)
            arguments = (job, sides, devices_of(self.room, 1, config.bypass_rate), len(repeated))
            ranks = self.processes.run(timed, data, arguments)
            for side in sides:
                mb = sum(read[side] for _, read in ranks) / MB
                seen.add("group_load_mb", mb, reading=side, data=data)
            for seed, seconds in zip(repeated, ranks[0][0], strict=True):
                for side, each in seconds.items():
                    seen.add("group_load_seconds", each, seed, reading=side, data=data)
                if data == most:
                    seen.add("bypass_gain", seconds["whole"] / seconds["bypass"], seed)
                    seen.add("bypass_over_rows", seconds["parts"] / seconds["bypass"], seed)

    def packing(self) -> None:
        self.seen.add("packing_gb_per_s", packing_rate(self.room) / 1e9)
