"""The distributed checkpoint: every rank writes what its optimiser owns, as it lies in memory.

    checkpoint.json                    layout, steps, data position, optimiser's constants, and the rules of patterns
    rank_s<stage>_t<tensor>_d<data>.safetensors
        fp32, exp_avg, exp_avg_sq      flat partitions, ZeRO's alignment padding included
        rng                            the state of the rank's generator
        about                          where in the partition which stretch of which local tensor lies

Nothing is gathered and nothing is converted: saving costs what it costs without universal checkpoints. Only
checkpoint.json has a few lines more. Without ZeRO data ranks hold the same values, and the first of them writes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.distributed.tensor_files import CheckpointError, Storage, read_json, write_json
from common.training.sharded.job import Schedule
from common.training.sharded.layout import Layout, Place
from common.training.sharded.trainer import RankState, Trainer
from common.training.sharded.zero import MOMENTS, Adam, Fragment, Sliced
from papers.universal_checkpointing.patterns import Rule

VALUES = ("fp32", *MOMENTS)  # the paper's names of files; values are written in the type they are trained in
DESCRIPTION = "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """What is the same on all ranks: updates taken, rows of data consumed, and how the rate goes on."""

    step: int
    consumed: int
    adam: Adam = Adam()
    schedule: Schedule | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

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
        described = {"layout": asdict(self.layout), "progress": self.progress.to_json(), "rules": rules}
        write_json(folder / DESCRIPTION, {**described, "everyone": self.everyone})

    def files(self) -> list[str]:
        """The rank files that the checkpoint must have."""
        return [file_of(self.layout.place(rank)) for rank in range(self.layout.world)]

    def writes(self, place: Place) -> bool:
        """Whether this rank has values that no other has."""
        return self.layout.zero > 0 or place.data == 0 or self.everyone


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


def partition(trainer: Trainer, values: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a rank's optimiser owns, flat, and which stretch of it belongs to which local tensor; without `values`
    the generator alone.
    """
    state, optimiser = trainer.state(), trainer.held.optimiser
    flat = {"rng": state.rng.clone()}
    if not values:
        return flat, {"step": state.step, "stretches": []}
    owned = optimiser.param_groups[0]["params"]
    flat["fp32"] = _flat(owned)
    for moment in MOMENTS:
        flat[moment] = _flat([optimiser.state[one][moment] for one in owned])
    stretches, room, at = [], {}, 0
    if isinstance(trainer.held, Sliced):  # every tensor's slice has its own padding
        for name, own in trainer.held.slices.items():
            room[name] = (at, own.numel())
            at += own.numel()
    at = 0
    for fragment in state.fragments:
        offset, padded = room.get(fragment.name, (at, fragment.weight.numel()))
        stretches.append(
            {
                "name": fragment.name,
                "size": list(fragment.size),
                "start": fragment.start,
                "numel": fragment.weight.numel(),
                "offset": offset,
                "padded": padded,  # elements of the slice with what ZeRO added, which mean nothing
            }
        )
        at += fragment.weight.numel()
    return flat, {"step": state.step, "stretches": stretches}


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
    for one in about["stretches"]:
        part = slice(one["offset"], one["offset"] + one["numel"])
        cut = [values[name][part] for name in VALUES]
        fragments.append(Fragment(one["name"], tuple(one["size"]), one["start"], *cut))
    trainer.load(RankState(described.progress.step, tuple(fragments), rng))
    return described.progress


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
