"""Load: atomic checkpoints into any layout, one parameter at a time; and resumption, which converts only if it must.

How ranks of a data-parallel group read what they share:

    whole     each rank reads every file of its parameters from end to end (ZeRO ranks too, that need a part of it)
    parts     each rank reads the rows that it needs and nothing else
    bypass    each rank reads every n-th parameter for the group and hands it to the others (Section 4, v3)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.tensor_files import CheckpointError, Storage
from common.training.sharded.layout import Groups
from common.training.sharded.trainer import RankState, Trainer
from common.training.sharded.zero import Fragment
from papers.universal_checkpointing.atomic import TENSOR, Universal, generator_at, is_made_of, path_of
from papers.universal_checkpointing.conversion import convert
from papers.universal_checkpointing.native import VALUES, Described, Progress, load_native
from papers.universal_checkpointing.patterns import PatternError, Rule, match
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

    optimiser False leaves Adam's moments at zero and its count at 0; handed_around False has each data rank read the
    others' turns itself: mistakes, for controls. ValueError for another way of reading, CheckpointError where
    the folder is not complete or lacks a parameter, PatternError where one does not fit the layout.
    """
    if reading not in READINGS:
        raise ValueError(f"files are read by {', '.join(READINGS)}, not by {reading!r}")
    storage = storage or Storage()
    universal = Universal.read(folder)
    progress, state = universal.progress, trainer.state()
    names = {fragment.name for fragment in state.fragments}
    missing = names - set(universal.names)
    if missing:
        raise CheckpointError(f"{folder} has no {', '.join(sorted(missing))}")
    rules = match(universal.rules, universal.names)
    groups = trainer.groups
    if reading == "bypass" and groups.data is not None:
        _bypass(folder, state.fragments, rules, groups, storage, handed_around)
    else:
        for fragment in state.fragments:
            for value, target in zip(VALUES, _tensors(fragment), strict=True):
                _fill(
                    folder, fragment, rules[fragment.name], value, target, groups, storage, reading == "whole"
                )
    if not optimiser:
        for fragment in state.fragments:
            fragment.exp_avg.zero_()
            fragment.exp_avg_sq.zero_()
    rng = generator_at(folder, groups.place, storage)
    trainer.load(RankState(progress.step if optimiser else 0, state.fragments, rng))
    trainer.steps = progress.step
    return progress


def _tensors(fragment: Fragment) -> tuple[Tensor, Tensor, Tensor]:
    return fragment.weight, fragment.exp_avg, fragment.exp_avg_sq


def _fill(
    folder: Path,
    fragment: Fragment,
    rule: Rule,
    value: str,
    target: Tensor,
    groups: Groups,
    storage: Storage,
    everything: bool,
) -> None:
    """A fragment's values from the file of its parameter."""
    rows = rows_of(fragment.size, fragment.start, target.numel())
    wanted = Wanted(fragment.name, fragment.size, rows, target.dtype)
    piece = read_piece(folder, wanted, rule, value, groups, storage, everything)
    offset = fragment.start - rows[0] * prod(fragment.size[1:])
    with storage.holding(piece.nbytes):
        target.copy_(piece.reshape(-1)[offset : offset + target.numel()])


@dataclass(frozen=True)
class Wanted:
    """Rows (first, last) of a tensor rank's piece, which has the given size as a whole."""

    name: str
    size: tuple[int, ...]
    rows: tuple[int, int]
    dtype: torch.dtype


def read_piece(
    folder: Path,
    wanted: Wanted,
    rule: Rule,
    value: str,
    groups: Groups,
    storage: Storage,
    everything: bool = False,
) -> Tensor:
    """What a tensor rank has of a parameter (UcpInfo, and the inverse of Union).

    everything: read the whole file first. What the file does not have is padding of the vocabulary, and zero.
    """
    place, ranks = groups.place, groups.layout.tensor
    with storage.open(path_of(folder, wanted.name, value)) as file:
        size = file.size(TENSOR)
        try:
            box = rule.pattern.box(padded_size(rule.pattern, size, wanted.size, ranks), place.tensor, ranks)
        except PatternError as error:
            raise PatternError(f"{wanted.name}: {error}") from None
        source = file.part(TENSOR) if everything else None
        piece = torch.zeros((wanted.rows[1] - wanted.rows[0], *wanted.size[1:]), dtype=wanted.dtype)
        for own, theirs in cells(box, wanted.rows):
            real = max(0, min(theirs[0].stop, size[0]) - theirs[0].start)
            if real:
                theirs = (slice(theirs[0].start, theirs[0].start + real), *theirs[1:])
                own = (slice(own[0].start, own[0].start + real), *own[1:])
                piece[own] = file.part(TENSOR, *theirs) if source is None else source[theirs]
    return piece


def _bypass(
    folder: Path,
    fragments: Sequence[Fragment],
    rules: dict[str, Rule],
    groups: Groups,
    storage: Storage,
    handed_around: bool,
) -> None:
    """Rounds of as many parameters as there are data ranks: each reads one, then all hand theirs around.

    In a round stand parameters of like size, so that nobody waits long.
    """
    data = groups.layout.data
    own = {fragment.name: fragment for fragment in fragments}
    everyone: list[dict[str, tuple[int, ...]]] = [{} for _ in range(data)]
    # a rank whose slice has nothing of a parameter still takes its turn to read it
    dist.all_gather_object(everyone, {f.name: f.size for f in fragments}, group=groups.data)
    sizes = {name: size for known in everyone for name, size in known.items()}
    order = sorted(sizes, key=lambda name: (-prod(sizes[name]), name))
    dtype = fragments[0].weight.dtype

    def read(name: str) -> Tensor:
        wanted = Wanted(name, sizes[name], (0, sizes[name][0]), dtype)
        return torch.stack(
            [read_piece(folder, wanted, rules[name], v, groups, storage).flatten() for v in VALUES]
        )

    for first in range(0, len(order), data):
        turn = order[first : first + data]
        mine = read(turn[groups.place.data]) if groups.place.data < len(turn) else torch.empty(0)
        for index, name in enumerate(turn):
            if index == groups.place.data:
                theirs = mine
            else:
                theirs = (
                    torch.empty(len(VALUES), prod(sizes[name]), dtype=dtype) if handed_around else read(name)
                )
            with storage.holding(mine.nbytes + theirs.nbytes):
                if handed_around:
                    dist.broadcast(theirs, dist.get_global_rank(groups.data, index), group=groups.data)
                if name in own:
                    fragment = own[name]
                    for row, target in zip(theirs, _tensors(fragment), strict=True):
                        target.copy_(row[fragment.start : fragment.start + target.numel()])


@dataclass(frozen=True)
class Resumed:
    """How far the run is, and whether a conversion was needed for it."""

    progress: Progress
    converted: bool


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


def resume(
    source: Path, universal: Path, trainer: Trainer, how: How = AS_MEANT, storage: Storage | None = None
) -> Resumed:
    """Go on from a distributed checkpoint of any layout. Every rank of the trainer's world calls it.

    Where the layout is the same, each rank reads its own file. Where it is another, the ranks convert together, unless
    `universal` has the atomic checkpoint already, and load that.
    """
    storage, groups = storage or Storage(), trainer.groups
    described = Described.read(source)
    if how.lazy and described.layout == groups.layout:
        return Resumed(load_native(source, trainer, storage), converted=False)
    ready = [how.lazy and is_made_of(universal, described.progress)]
    world = groups.layout.world
    if world > 1:
        dist.broadcast_object_list(
            ready, 0
        )  # one sees for all: another job may complete the folder meanwhile
    if not ready[0]:
        rank = groups.layout.rank(groups.place)
        convert(source, universal, rank, world, storage=storage, strip_pad=how.strip_pad)
    progress = load_universal(universal, trainer, storage, how.reading, how.optimiser)
    return Resumed(progress, converted=not ready[0])
