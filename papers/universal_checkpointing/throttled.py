"""Seconds of saving, converting and loading on storage of a set rate, in real processes.

Files pass through throttled devices, so that the page cache of one machine does not stand in for storage: one device
for each node that has its own way to storage, or one that all share. Sides of a comparison run in turn (A B B A), and
nothing but the clock is chance: one group of processes repeats them, a repetition a seed.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common.distributed.fleet import Fleet
from common.distributed.rooms import Room
from common.distributed.tensor_files import Storage
from common.distributed.throttled import Device
from common.distributed.turns import in_turn
from common.lab.runtime import Observations, Runtime
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
SAVES = 10  # turns of a repetition, since a save is short; of one that gathers, which is not, there is one
Devices = tuple[Device, ...]
Seconds = list[dict[str, float]]  # of each side, a repetition an item


# on the ranks


# what is timed, of a rank's trainer (None: without one) and its way to storage
Sides = Mapping[str, Callable[[Any, Storage], None]]


def timed(
    rank: int, world: int, job: Job | None, sides: Sides, devices: Devices, times: int, turns: int = 1
) -> Seconds:
    """Seconds of each side, of a trainer as it begins (bytes are bytes); a device for each rank, or one for all."""
    import torch._dynamo  # noqa: F401  see training.py

    trainer = None if job is None else Trainer(job.shape, form_groups(job.layout, rank), job.recipe)
    storage = Storage(devices[rank % len(devices)])
    return in_turn(world, {side: partial(do, trainer, storage) for side, do in sides.items()}, times, turns)


def saving(trainer: Trainer, storage: Storage, folder: Path, rules: bool, gathered: bool = False) -> None:
    """A save with the decoder's rules in it or without; gathered: on one rank, which writes it."""
    stated = decoder_rules(trainer.shape) if rules else None
    described = Described(trainer.groups.layout, Progress(0, 0, trainer.recipe.adam), stated)
    (save_consolidated if gathered else save)(folder, trainer, described, storage)


def converting(_: None, storage: Storage, source: Path, target: Path, sharing: Sharing) -> None:
    convert(source, target, dist.get_rank(), dist.get_world_size(), 1, storage, sharing)


def loading(trainer: Trainer, storage: Storage, folder: Path, reading: str, around: bool = True) -> None:
    """reading: "direct" of the layout's own files, or a way of reading atomic ones."""
    if reading == "direct":
        load_native(folder, trainer, storage)
    else:
        load_universal(folder, trainer, storage, reading, handed_around=around)


def packing_rate(folder: Path, nbytes: int = 16 << 20) -> float:
    """Bytes/s of torch.save and torch.load together on one core."""
    values, path = torch.rand(nbytes // 4), folder / "values.pt"
    torch.save(values, path)
    begun = time.perf_counter()
    torch.save(values, path)
    torch.load(path)
    return 2 * nbytes / (time.perf_counter() - begun)


# what is observed


def devices_of(room: Path, n: int, rate_mb: float) -> Devices:
    return tuple(Device.make(room / f"device{i}", rate_mb * MB) for i in range(n))


@dataclass(frozen=True)
class Stored:
    """A decoder's state that is saved, converted and loaded in a room; what is seen of it goes to `seen`.

    For figures fewer nodes and fewer data ranks than the most are timed too, once.
    """

    config: Config
    processes: Fleet
    room: Path
    lab: Runtime
    seen: Observations

    def job(self, layout: Layout, layers: int) -> Job:
        h = self.config.stored_hidden
        shape = Shape(LETTERS, h, layers, heads=8, kv_heads=4, mlp=3 * h, context=16)
        return Job(shape, layout, Recipe(), self.config.rows)

    def timed(self, world: int, *arguments: Any) -> Seconds:
        """`timed` on so many ranks: job, sides, devices, times and turns."""
        return self.processes.run(timed, world, arguments)[0]

    def checkpoints(self, job: Job) -> tuple[Path, Path]:
        """A distributed checkpoint and the atomic one made of it, at the machine's own speed; made once."""
        name = f"{job.shape.layers} {job.layout}"
        native, universal = (self.room / kind / name for kind in ("native", "universal"))
        if not universal.exists():
            side = {"save": partial(saving, folder=native, rules=True)}
            self.timed(job.layout.world, job, side, (None,), 1)
            convert(native, universal)
        return native, universal

    def saves(self) -> None:
        """Four nodes with a device each; the save without rules once more, which must take as long."""
        config, seen, job = self.config, self.seen, self.job(STORED, self.config.stored_layers)
        gathered, seeds = not config.distributed_save, self.lab.seeds
        ways = {"plain": (False, False), "universal": (True, gathered), "again": (False, False)}
        with Room("paperlab-ucp-") as room:
            devices = devices_of(room, STORED.world, config.node_rate)
            sides = {
                kind: partial(saving, folder=room / kind, rules=r, gathered=g)
                for kind, (r, g) in ways.items()
            }
            found = self.timed(STORED.world, job, sides, devices, len(seeds), 1 if gathered else SAVES)
            one = {"consolidated": partial(saving, folder=room / "one", rules=False, gathered=True)}
            (alone,) = self.timed(STORED.world, job, one, devices, 1)
            plain = sorted((room / "plain").glob("*.safetensors"))
            same = all(p.read_bytes() == (room / "universal" / p.name).read_bytes() for p in plain)
            seen.add("saved_files_identical", int(same))
            seen.add("saved_mb", sum(path.stat().st_size for path in plain) / MB)
        seen.add("save_seconds", alone["consolidated"], kind="consolidated")
        for seed, seconds in zip(seeds, found, strict=True):
            for kind, each in seconds.items():
                seen.add("save_seconds", each, seed, kind=kind)
            seen.add("save_gain", seconds["plain"] / seconds["universal"], seed)
            seen.add("save_again", seconds["plain"] / seconds["again"], seed)

    def conversions(self) -> None:
        """One node that does all, and as many as `converters` says, each with its device; only the most repeatedly."""
        config, most = self.config, max(self.config.converters)
        sharings = {"one": Sharing("none"), "all": Sharing(config.parallel, config.assignment)}
        native, _ = self.checkpoints(self.job(STORED, config.stored_layers))
        for world in config.converters if self.lab.wants("conversion_seconds") else [most]:
            repeated = self.lab.seeds if world == most else self.lab.seeds[:1]
            with Room("paperlab-ucp-") as room:
                sides = {
                    side: partial(converting, source=native, target=room / side, sharing=sharing)
                    for side, sharing in sharings.items()
                }
                found = self.timed(
                    world, None, sides, devices_of(room, world, config.node_rate), len(repeated)
                )
            for seed, seconds in zip(repeated, found, strict=True):
                self.seen.add("conversion_seconds", seconds["all"], seed, workers=world)
                if world == most:
                    self.seen.add("conversion_seconds", seconds["one"], seed, workers=1)
                    self.seen.add("conversion_gain", seconds["one"] / seconds["all"], seed)

    def loads(self) -> None:
        """The same layout from its own files and from atomic ones; four ranks share a device."""
        config, job, seeds = self.config, self.job(STORED, self.config.stored_layers), self.lab.seeds
        native, atomic = self.checkpoints(job)
        sides = {
            "direct": partial(loading, folder=native, reading="direct"),
            "ours": partial(loading, folder=atomic, reading="parts" if config.row_reads else "whole"),
            "whole": partial(loading, folder=atomic, reading="whole"),
        }
        devices = devices_of(self.room, 1, config.shared_rate)
        found = self.timed(STORED.world, job, sides, devices, len(seeds))
        for seed, seconds in zip(seeds, found, strict=True):
            self.seen.add("load_ratio", seconds["ours"] / seconds["direct"], seed)
            self.seen.add("load_ratio_whole", seconds["whole"] / seconds["direct"], seed)

    def bypasses(self) -> None:
        """What handing files around saves over reading them on every rank; only the most data ranks repeatedly.

        bypass_over_rows: against reading the needed rows, which the paper's files do not allow and safetensors do.
        """
        config, seen, most = self.config, self.seen, max(self.config.data_ranks)
        _, atomic = self.checkpoints(self.job(Layout(), config.loaded_layers))
        figures = self.lab.wants("group_load_seconds")
        sides = {
            reading: partial(loading, folder=atomic, reading=reading, around=config.handed_around)
            for reading in ("whole", "bypass", "parts")[: None if figures else 2]
        }
        for data in config.data_ranks if figures else [most]:
            repeated = self.lab.seeds if data == most else self.lab.seeds[:1]
            job = self.job(Layout(1, 1, data, 3 if data > 1 else 0), config.loaded_layers)
            found = self.timed(data, job, sides, devices_of(self.room, 1, config.bypass_rate), len(repeated))
            for seed, seconds in zip(repeated, found, strict=True):
                for side, each in seconds.items():
                    seen.add("group_load_seconds", each, seed, reading=side, data=data)
                if data == most:
                    seen.add("bypass_gain", seconds["whole"] / seconds["bypass"], seed)
                    if "parts" in seconds:
                        seen.add("bypass_over_rows", seconds["parts"] / seconds["bypass"], seed)

    def packing(self) -> None:
        self.seen.add("packing_gb_per_s", packing_rate(self.room) / 1e9)


STUDIES: dict[str, Callable[[Stored], None]] = {  # by the metric that each is for
    "save_gain": Stored.saves,
    "conversion_gain": Stored.conversions,
    "load_ratio": Stored.loads,
    "bypass_gain": Stored.bypasses,
    "packing_gb_per_s": Stored.packing,
}
