"""Extract, Union and StripPad: from rank files to whole parameters, one at a time.

`extract` reads the headers of rank files: which stretch of which local tensor lies where. The values stay where they
are until `union` puts one parameter together, so that a process holds at most twice its largest tensor.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from common.distributed.tensor_files import CheckpointError, Storage
from common.training.sharded.layout import Place
from papers.universal_checkpointing.native import Described, Stretch, file_of
from papers.universal_checkpointing.patterns import Average, Box, PatternError, Rule, Size, Unique
from papers.universal_checkpointing.slices import cells, put

Read = Callable[[Place], Tensor]  # one rank's local tensor


def extract(folder: Path, files: Iterable[str], storage: Storage) -> list[Stretch]:
    """What rank files hold (the map phase). CheckpointError for a file that is missing or broken."""
    found = []
    for name in files:
        with storage.open(folder / name) as file:
            found += Stretch.of(file.about)
    return found


def shuffle(stretches: Iterable[Stretch]) -> dict[str, list[Stretch]]:
    """Stretches by the parameter they belong to."""
    found: dict[str, list[Stretch]] = defaultdict(list)
    for one in stretches:
        found[one.name].append(one)
    return dict(found)


def union(
    folder: Path,
    described: Described,
    rule: Rule,
    stretches: Sequence[Stretch],
    value: str,
    storage: Storage,
    strip_pad: bool = True,
) -> Tensor:
    """One whole tensor of a parameter (`value`: fp32, exp_avg or exp_avg_sq) without any trace of the layout.

    The caller holds the result, and says so to `storage`. PatternError where the ranks' tensors contradict the rule,
    CheckpointError where elements are missing or there twice. strip_pad False keeps what layouts added: a mistake.
    """
    name, pattern, ranks = stretches[0].name, rule.pattern, described.layout.tensor
    copies = _copies(stretches, described)
    stages = sorted({place.stage for place in copies})
    if len(stages) > 1 and not rule.stages:
        raise PatternError(f"{name} is on stages {stages}, which {rule.names!r} does not allow")
    if type(pattern) is Unique and len(copies) > len(stages):
        raise PatternError(f"{name} is on {len(copies)} ranks, but {rule.names!r} says on one")

    def read(place: Place) -> Tensor:
        return _local(folder, copies[place], value, storage, strip_pad)

    first, *others = sorted(copies, key=lambda place: (place.stage, place.tensor, place.data))
    if isinstance(pattern, Average):  # of copies that were changed apart from one another
        total = read(first)
        for place in others:
            piece = read(place)
            with storage.holding(total.nbytes + piece.nbytes):
                total += piece
        return total / len(copies)
    size = pattern.whole(copies[first][0].size, ranks)
    boxes = {place: pattern.box(size, place.tensor, ranks) for place in copies}
    if ranks == 1 or isinstance(pattern, Unique):
        whole = read(first)
    else:
        whole = _joined(read, size, {p: box for p, box in boxes.items() if p.stage == first.stage}, storage)
        others = [place for place in others if place.stage != first.stage]
    for place in others:
        piece = read(place)
        with storage.holding(whole.nbytes + piece.nbytes):
            if not all(torch.equal(piece[own], whole[theirs]) for own, theirs in cells(boxes[place])):
                raise PatternError(
                    f"{name}: the copies at {first} and {place} differ, which {rule.names!r} rules out"
                )
    return _without_padding(whole, rule) if strip_pad else whole


def _joined(read: Read, size: Size, boxes: Mapping[Place, Box], storage: Storage) -> Tensor:
    """Concatenation of the tensor ranks' pieces, each in its place."""
    whole = torch.empty(0)
    for place, box in boxes.items():
        piece = read(place)
        if not whole.numel():
            whole = torch.empty(size, dtype=piece.dtype)
        with storage.holding(whole.nbytes + piece.nbytes):
            put(whole, piece, box)
    return whole


def _without_padding(whole: Tensor, rule: Rule) -> Tensor:
    """StripPad: of a vocabulary the rows that mean something. (ZeRO's padding never came: no stretch names it.)"""
    rows = getattr(rule.pattern, "rows", None)
    if rows is None or rows == len(whole):
        return whole
    if len(whole) < rows:
        raise PatternError(f"{len(whole)} rows are fewer than the {rows} of {rule.names!r}")
    return whole[:rows].clone()


def _copies(stretches: Sequence[Stretch], described: Described) -> dict[Place, list[Stretch]]:
    """Complete local tensors: by the place that has one alone, or the first of the data ranks that have it together."""
    layout = described.layout
    by_rank: dict[Place, list[Stretch]] = defaultdict(list)
    for one in stretches:
        data = one.place.data if described.everyone else 0
        by_rank[Place(one.place.tensor, data, one.place.stage)].append(one)
    for place, parts in by_rank.items():
        parts.sort(key=lambda one: one.start)
        at = 0
        for one in parts:
            if one.start != at or one.size != parts[0].size:
                raise CheckpointError(f"{one.name} at {place}: element {at} is missing or there twice")
            at += one.numel
        if at != prod(parts[0].size):
            raise CheckpointError(f"{parts[0].name} at {place}: {at} of {prod(parts[0].size)} elements")
    stages = {place.stage for place in by_rank}
    expected = {(stage, tensor) for stage in stages for tensor in range(layout.tensor)}
    there = {(place.stage, place.tensor) for place in by_rank}
    if there != expected and not len(there) == 1:
        raise CheckpointError(
            f"{stretches[0].name} is on {sorted(there)} (stage, tensor), not on {sorted(expected)}"
        )
    return by_rank


def _local(folder: Path, parts: Sequence[Stretch], value: str, storage: Storage, strip_pad: bool) -> Tensor:
    """One rank's tensor from the data ranks' stretches of it."""
    size = parts[0].size
    lengths = [one.numel if strip_pad else one.padded for one in parts]
    local = torch.empty(0)
    at = 0
    for one, length in zip(parts, lengths, strict=True):
        with storage.open(folder / file_of(one.place)) as file:
            part = file.part(value, slice(one.offset, one.offset + length))
        if len(parts) == 1:
            local = part
            break
        if not local.numel():
            local = torch.empty(sum(lengths), dtype=part.dtype)
        with storage.holding(local.nbytes + part.nbytes):
            local[at : at + length] = part
        at += length
    if local.numel() != prod(size):
        raise CheckpointError(f"{parts[0].name}: {local.numel()} elements don't have the size {size}")
    return local.view(size)
