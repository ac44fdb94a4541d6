"""Load: atomic checkpoints into any layout, one parameter at a time; and resumption, which converts only if it must.

How ranks of a data-parallel group read what they share:

    whole     each rank reads every file of its parameters from end to end (ZeRO ranks too, that need a part of it)
    parts     each rank reads the rows that it needs and nothing else
    bypass    each rank reads every n-th parameter for the group and hands it to the others (Section 4, v3)
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.tensor_files import CheckpointError, Storage
from common.training.sharded.trainer import RankState, Trainer
from common.training.sharded.zero import Fragment
from papers.universal_checkpointing.atomic import TENSOR, Universal, generator_at, is_made_of, path_of
from papers.universal_checkpointing.conversion import convert
from papers.universal_checkpointing.native import VALUES, Described, Progress, load_native
from papers.universal_checkpointing.patterns import PatternError, Rule, Size
from papers.universal_checkpointing.slices import cells, padded_size, rows_of

READINGS = ("whole", "parts", "bypass")


def load_universal(
    folder: Path,
    trainer: Trainer,
    storage: Storage | None = None,
    reading: str = "parts",
    optimiser: bool = True,
    handed_around: bool = True,
) -> Progress:
    """Go on from an atomic checkpoint, whatever layout it came from. Every rank of the trainer's world calls it.

    optimiser False: weights alone, a mistake. handed_around False: in the bypass each rank reads all by itself.
    ValueError for another way of reading, CheckpointError where the folder is not complete or lacks a parameter,
    PatternError where one does not fit the layout.
    """
    if reading not in READINGS:
        raise ValueError(f"files are read by {', '.join(READINGS)}, not by {reading!r}")
    storage, universal = storage or Storage(), Universal.read(folder)
    progress, fragments, groups = universal.progress, trainer.state().fragments, trainer.groups
    missing = {fragment.name for fragment in fragments} - universal.rules.keys()
    if missing:
        raise CheckpointError(f"{folder} has no {', '.join(sorted(missing))}")
    atomic = Atomic(folder, universal.rules, groups.place.tensor, groups.layout.tensor, storage)
    if reading == "bypass" and groups.data is not None:
        _bypass(atomic, trainer, fragments, handed_around)
    else:
        for fragment in fragments:
            rows = rows_of(fragment.size, fragment.start, fragment.weight.numel())
            offset = fragment.start - rows[0] * prod(fragment.size[1:])
            for value, target in zip(VALUES, _tensors(fragment), strict=True):
                piece = atomic.piece(
                    fragment.name, fragment.size, value, target.dtype, rows, reading == "whole"
                )
                target.copy_(piece.flatten()[offset : offset + target.numel()])
    if not optimiser:
        for fragment in fragments:
            fragment.exp_avg.zero_()
            fragment.exp_avg_sq.zero_()
    rng = generator_at(folder, groups.place, storage)
    trainer.load(RankState(progress.step if optimiser else 0, fragments, rng))
    trainer.steps = progress.step
    return progress


def _tensors(fragment: Fragment) -> tuple[Tensor, Tensor, Tensor]:
    return fragment.weight, fragment.exp_avg, fragment.exp_avg_sq


@dataclass(frozen=True)
class Atomic:
    """An atomic checkpoint as one of so many tensor ranks reads it."""

    folder: Path
    rules: dict[str, Rule]
    tensor: int
    ranks: int
    storage: Storage

    def piece(
        self, name: str, size: Size, value: str, dtype: torch.dtype, rows: tuple[int, int], everything: bool
    ) -> Tensor:
        """Rows (first, last and one) of what the tensor rank has of a parameter, which is of this size.

        UcpInfo, and the inverse of Union. everything: read the whole file first. What the file does not have is padding
        of the vocabulary, and zero.
        """
        with self.storage.open(path_of(self.folder, name, value)) as file:
            there, pattern = file.size(TENSOR), self.rules[name].pattern
            try:
                box = pattern.box(padded_size(pattern, there, size, self.ranks), self.tensor, self.ranks)
            except PatternError as error:
                raise PatternError(f"{name}: {error}") from None
            whole = file.part(TENSOR) if everything else None
            piece = torch.zeros((rows[1] - rows[0], *size[1:]), dtype=dtype)
            for own, theirs in cells(box, rows):
                real = max(0, min(theirs[0].stop, there[0]) - theirs[0].start)
                if real:
                    theirs = (slice(theirs[0].start, theirs[0].start + real), *theirs[1:])
                    own = (slice(own[0].start, own[0].start + real), *own[1:])
                    piece[own] = file.part(TENSOR, *theirs) if whole is None else whole[theirs]
        return piece


def _bypass(atomic: Atomic, trainer: Trainer, fragments: tuple[Fragment, ...], handed_around: bool) -> None:
    """Rounds of as many parameters as there are data ranks: each reads one, then all hand theirs around.

    In a round stand parameters of like size, so that nobody waits long.
    """
    groups = trainer.groups
    data, place, dtype = groups.layout.data, groups.place.data, trainer.recipe.dtype
    own = {fragment.name: fragment for fragment in fragments}
    everyone: list[dict[str, Size]] = [{} for _ in range(data)]
    # a rank whose slice has nothing of a parameter still takes its turn to read it
    dist.all_gather_object(everyone, {f.name: f.size for f in fragments}, group=groups.data)
    sizes = {name: size for known in everyone for name, size in known.items()}
    order = sorted(sizes, key=lambda name: (-prod(sizes[name]), name))

    def read(name: str) -> Tensor:
        size = sizes[name]
        pieces = [atomic.piece(name, size, value, dtype, (0, size[0]), False) for value in VALUES]
        return torch.stack([piece.flatten() for piece in pieces])

    for first in range(0, len(order), data):
        turn = order[first : first + data]
        mine = read(turn[place]) if place < len(turn) else torch.empty(0)
        for index, name in enumerate(turn):
            if index == place:
                theirs = mine
            elif handed_around:
                theirs = torch.empty(len(VALUES), prod(sizes[name]), dtype=dtype)
            else:
                theirs = read(name)
            if handed_around:
                dist.broadcast(theirs, dist.get_global_rank(groups.data, index), group=groups.data)
            if name in own:
                fragment = own[name]
                for row, target in zip(theirs, _tensors(fragment), strict=True):
                    target.copy_(row[fragment.start : fragment.start + target.numel()])


@dataclass(frozen=True)
class How:
    """How a checkpoint is resumed. False switches are mistakes, for controls.

    lazy: convert only where the layout is another one. strip_pad: off with what layouts added. optimiser: moments too.
    """

    lazy: bool = True
    strip_pad: bool = True
    optimiser: bool = True
    reading: str = "parts"


AS_MEANT = How()


def resume(source: Path, universal: Path, trainer: Trainer, how: How = AS_MEANT) -> tuple[Progress, bool]:
    """Go on from a distributed checkpoint of any layout: how far it was, and whether it was converted for that.

    Every rank of the trainer's world calls it. Where the layout is the same, each rank reads its own file. Where it is
    another, the ranks convert together, unless `universal` has the atomic checkpoint already, and load that.
    """
    groups, described = trainer.groups, Described.read(source)
    if how.lazy and described.layout == groups.layout:
        return load_native(source, trainer), False
    ready = [how.lazy and is_made_of(universal, source, described)]
    world = groups.layout.world
    if world > 1:  # one sees for all: another job may complete the folder meanwhile
        dist.broadcast_object_list(ready, 0)
    if not ready[0]:
        convert(source, universal, groups.layout.rank(groups.place), world, strip_pad=how.strip_pad)
    return load_universal(universal, trainer, None, how.reading, how.optimiser), not ready[0]
