"""The distributed checkpoint: every rank writes what its optimiser owns, as it lies in memory.

    checkpoint.json                    layout, steps, data position, optimiser's constants, and the rules of patterns
    rank_s<stage>_t<tensor>_d<data>.safetensors
        fp32, exp_avg, exp_avg_sq      flat partitions, ZeRO's alignment padding included
        rng                            the state of the rank's generator
        about                          where in the partition which stretch of which local tensor lies

Nothing is gathered and nothing is converted: saving costs what it costs without universal checkpoints. Only
checkpoint.json has a few lines more. Without ZeRO data ranks hold the same values, and the first of them writes them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.tensor_files import CheckpointError, Storage, read_json, write_json
from common.training.sharded.job import Schedule
from common.training.sharded.layout import Layout, Place
from common.training.sharded.trainer import RankState, Trainer
from common.training.sharded.zero import MOMENTS, Adam, Fragment
from papers.universal_checkpointing.patterns import Rule, Size

VALUES = ("fp32", *MOMENTS)  # the paper's names of files; values are written in the type they are trained in
DESCRIPTION = "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """What is the same on all ranks: updates taken, rows of data consumed, and how the rate goes on."""

    step: int
    consumed: int
    adam: Adam = Adam()
    schedule: Schedule | None = None

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> "Progress":
        """CheckpointError where something is missing."""
        try:
            adam = dict(stated["adam"], betas=tuple(stated["adam"]["betas"]))
            schedule = None if stated["schedule"] is None else Schedule(**stated["schedule"])
            return cls(int(stated["step"]), int(stated["consumed"]), Adam(**adam), schedule)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this states no progress: {error!r}") from None


@dataclass(frozen=True)
class Described:
    """checkpoint.json: the layout that saved, how far it was, and the rules (None: saved without them)."""

    layout: Layout
    progress: Progress
    rules: tuple[Rule, ...] | None
    everyone: bool = False  # data ranks differ although nothing is split among them (they trained apart)

    @classmethod
    def read(cls, folder: Path) -> "Described":
        """CheckpointError where there is none."""
        stated = read_json(folder / DESCRIPTION)
        try:
            rules = stated["rules"]
            found = None if rules is None else tuple(map(Rule.from_json, rules))
            layout, progress = Layout(**stated["layout"]), Progress.from_json(stated["progress"])
            return cls(layout, progress, found, stated["everyone"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / DESCRIPTION}: {error!r}") from None

    def write(self, folder: Path) -> None:
        rules = None if self.rules is None else [rule.to_json() for rule in self.rules]
        described = {"layout": asdict(self.layout), "progress": asdict(self.progress), "rules": rules}
        write_json(folder / DESCRIPTION, {**described, "everyone": self.everyone})

    def files(self) -> list[str]:
        """The rank files that the checkpoint must have."""
        return [file_of(self.layout.place(rank)) for rank in range(self.layout.world)]

    def marks(self, folder: Path) -> list[list[int]]:
        """What tells these rank files from others of the same step: when they were written, and their sizes."""
        there = [(folder / name).stat() for name in self.files() if (folder / name).is_file()]
        return [[one.st_mtime_ns, one.st_size] for one in there]

    def writes(self, place: Place) -> bool:
        """Whether this rank has values that no other has."""
        return self.layout.zero > 0 or place.data == 0 or self.everyone


@dataclass(frozen=True)
class Stretch:
    """Where a rank file has which elements of a local tensor.

    size: of the local tensor. start, numel: of it flattened. offset: in the file's flat partition. padded: numel with
    ZeRO's alignment padding behind it, which means nothing. place: of the rank, once it is read.
    """

    name: str
    size: Size
    start: int
    numel: int
    offset: int
    padded: int
    place: Place = Place(0, 0, 0)

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> list["Stretch"]:
        """What a rank file states."""
        place = Place(**about["place"])
        return [cls(**{**one, "size": tuple(one["size"]), "place": place}) for one in about["stretches"]]


def file_of(place: Place) -> str:
    return f"rank_s{place.stage}_t{place.tensor}_d{place.data}.safetensors"


def save(
    folder: Path,
    trainer: Trainer,
    described: Described,
    storage: Storage | None = None,
    place: Place | None = None,
) -> None:
    """This rank's part of a checkpoint; rank 0 also describes it. place: under which name (by default its own)."""
    place = place or trainer.groups.place
    if place == Place(0, 0, 0):
        described.write(folder)
    tensors, about = partition(trainer, described.writes(place))
    (storage or Storage()).write(folder / file_of(place), tensors, {**about, "place": asdict(place)})


def save_consolidated(folder: Path, trainer: Trainer, described: Described, storage: Storage) -> None:
    """What is slower: gather all that the ranks own on rank 0, and have it write; every rank of the world calls it."""
    tensors, about = partition(trainer, described.writes(trainer.groups.place))
    world, rank = dist.get_world_size(), dist.get_rank()
    if rank:
        dist.send_object_list([{name: tuple(t.shape) for name, t in tensors.items()}, about], 0)
        for tensor in tensors.values():
            dist.send(tensor, 0)
        return
    described.write(folder)
    storage.write(folder / file_of(described.layout.place(0)), tensors, about)
    for other in range(1, world):
        message: list[Any] = [None, None]
        dist.recv_object_list(message, other)
        theirs = {}
        for name, size in message[0].items():
            dtype = torch.uint8 if name == "rng" else trainer.recipe.dtype
            theirs[name] = torch.empty(size, dtype=dtype)
            dist.recv(theirs[name], other)
        storage.write(folder / file_of(described.layout.place(other)), theirs, message[1])


def partition(trainer: Trainer, values: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a rank's optimiser owns, flat, and which stretch of it belongs to which local tensor; without `values`
    the generator alone.
    """
    state, optimiser = trainer.state(), trainer.held.optimiser
    flat = {"rng": state.rng.clone()}
    if not values:
        return flat, {"step": state.step, "stretches": []}
    owned = optimiser.param_groups[0]["params"]
    parts = {"fp32": owned, **{m: [optimiser.state[one][m] for one in owned] for m in MOMENTS}}
    flat |= {name: torch.cat([one.detach().flatten() for one in each]) for name, each in parts.items()}
    slices, at, found = getattr(trainer.held, "slices", {}), 0, []
    own = {fragment.name: fragment for fragment in state.fragments}
    for name in (
        slices or own
    ):  # with ZeRO-3 every tensor's slice has padding of its own, and may have nothing else
        padded = slices[name].numel() if slices else own[name].weight.numel()
        if name in own:
            size, start, numel = own[name].size, own[name].start, own[name].weight.numel()
            found.append(asdict(Stretch(name, size, start, numel, at, padded)))
        at += padded
    return flat, {"step": state.step, "stretches": found}


def load_native(folder: Path, trainer: Trainer, storage: Storage | None = None) -> Progress:
    """Go on with the layout that saved: each rank reads its own file. CheckpointError for another layout."""
    described, groups = Described.read(folder), trainer.groups
    if described.layout != groups.layout:
        raise CheckpointError(
            f"{folder} was saved by {described.layout} and does not load into {groups.layout}: convert it first"
        )
    place, storage = groups.place, storage or Storage()
    with storage.open(folder / file_of(place)) as file:
        rng = file.part("rng")
    writer = place if described.writes(place) else Place(place.tensor, 0, place.stage)
    with storage.open(folder / file_of(writer)) as file:
        values, about = {name: file.part(name) for name in VALUES}, file.about
    fragments = []
    for one in Stretch.of(about):
        cut = [values[name][one.offset : one.offset + one.numel] for name in VALUES]
        fragments.append(Fragment(one.name, one.size, one.start, *cut))
    trainer.load(RankState(described.progress.step, tuple(fragments), rng))
    return described.progress
