"""Nested parallel conversion: map over rank files, shuffle, reduce over parameters (Section 4, v3).

    convert(source, target)                        # in one process
    convert(source, target, cores=2)               # on every rank of a group: nodes of two processes each

Each worker reads the headers of its share of rank files (Extract) and tells the others (shuffle). Parameters go to
nodes, and within a node to cores, the largest first and always to the one with least to do; each worker then puts its
parameters together one after another (Union, StripPad) and saves them. universal.json comes last, so that a conversion
that was killed is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch.distributed as dist

from papers.universal_checkpointing.atomic import (
    DESCRIPTION,
    Universal,
    is_made_of,
    write_generators,
    write_parameter,
)
from papers.universal_checkpointing.native import VALUES, Described
from papers.universal_checkpointing.patterns import match
from papers.universal_checkpointing.storage import CheckpointError, Storage
from papers.universal_checkpointing.union import Stretch, extract, shuffle, union

Assignment = Literal["balanced", "random"]


@dataclass(frozen=True)
class Converted:
    """What one worker did: parameters, bytes read and written, and the most that it held at once."""

    names: tuple[str, ...]
    read_bytes: int
    written_bytes: int
    most_held: int


def convert(
    source: Path,
    target: Path,
    rank: int = 0,
    world: int = 1,
    cores: int = 1,
    storage: Storage | None = None,
    assignment: Assignment = "balanced",
    strip_pad: bool = True,
) -> Converted:
    """Make an atomic checkpoint of a distributed one; every rank of a gloo group of `world` calls it.

    cores: processes of a node. CheckpointError where files are missing or contradict each other, PatternError where
    the checkpoint's rules do not fit its parameters; nothing is complete then.
    """
    storage = storage or Storage()
    described = Described.read(source)
    if described.rules is None:
        raise CheckpointError(f"{source} states no patterns: it was not saved for conversion")
    files = described.files()
    missing = [name for name in files if not (source / name).is_file()]
    if missing:
        raise CheckpointError(f"{source} is not whole: {', '.join(missing)} missing")
    if rank == 0 and not is_made_of(target, described.progress):
        (target / DESCRIPTION).unlink(missing_ok=True)  # of an older checkpoint, whose files are replaced now
    stretches = extract(source, files[rank::world], storage)
    if world > 1:
        everyone: list[list[Stretch]] = [[] for _ in range(world)]
        dist.all_gather_object(everyone, stretches)
        stretches = [one for part in everyone for one in part]
    parameters = shuffle(stretches)
    rules = match(described.rules, sorted(parameters))
    work = {
        name: sum(prod(one.size) for one in found if one.start == 0) for name, found in parameters.items()
    }
    mine = nested(work, world // cores, cores, assignment)[rank // cores][rank % cores]
    for name in mine:
        for value in VALUES:
            whole = union(source, described, rules[name], parameters[name], value, storage, strip_pad)
            with storage.holding(2 * whole.nbytes):  # the tensor, and at most as much on its way to the file
                step = described.progress.step
                write_parameter(target, name, value, whole, rules[name], step, storage)
    if rank == 0:
        write_generators(source, target, described, storage)
    if world > 1:
        dist.barrier()
    if rank == 0:
        Universal(described.progress, described.rules, tuple(sorted(parameters))).write(target)
    if world > 1:
        dist.barrier()
    return Converted(tuple(mine), storage.read_bytes, storage.written_bytes, storage.most_held)


def nested(
    work: dict[str, int], nodes: int, cores: int, assignment: Assignment = "balanced", seed: int = 0
) -> list[list[list[str]]]:
    """Names for each core of each node. work: elements of each parameter."""
    rng = np.random.default_rng(seed)
    found = []
    for share in assign(work, nodes, assignment, rng):
        found.append(assign({name: work[name] for name in share}, cores, assignment, rng))
    return found


def assign(
    work: dict[str, int], workers: int, assignment: Assignment, rng: np.random.Generator
) -> list[list[str]]:
    """Shares of the work: the largest first, each to the worker with least to do; or each to anyone."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for name in sorted(work, key=lambda name: (-work[name], name)):
        least = loads.index(min(loads)) if assignment == "balanced" else int(rng.integers(workers))
        shares[least].append(name)
        loads[least] += work[name]
    return shares


def straggler(work: dict[str, int], shares: Sequence[Sequence[str]]) -> float:
    """The largest share over the mean share."""
    loads = [sum(work[name] for name in share) for share in shares]
    return max(loads) * len(loads) / sum(loads)
