"""Nested parallel conversion: map over rank files, shuffle, reduce over parameters (Section 4, v3).

    convert(source, target)                        # in one process
    convert(source, target, cores=2)               # on every rank of a group: nodes of two processes each

Each worker reads the headers of its share of rank files (Extract) and tells the others (shuffle). Parameters go to
nodes, and within a node to cores, the largest first and always to the one with least to do; each worker then puts its
parameters together one after another (Union, StripPad) and saves them. universal.json comes last, so that a conversion
that was killed is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch.distributed as dist

from common.distributed.tensor_files import CheckpointError, Storage
from papers.universal_checkpointing import atomic
from papers.universal_checkpointing.native import VALUES, Described, Stretch
from papers.universal_checkpointing.patterns import match
from papers.universal_checkpointing.union import extract, shuffle, union

PARALLEL = ("nested", "nodes", "cores", "none")
ASSIGNMENTS = ("balanced", "in order", "random")


@dataclass(frozen=True)
class Sharing:
    """How parameters are given out. ValueError for an unknown word.

    parallel: whether nodes share the work, cores of a node share it, both (nested), or one core does it all.
    assignment: the largest first and always to the one with least to do; in turn, in the order of names; or to anyone.
    """

    parallel: str = "nested"
    assignment: str = "balanced"
    seed: int = 0  # of a random assignment

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL or self.assignment not in ASSIGNMENTS:
            raise ValueError(
                f"work is shared by {', '.join(PARALLEL)}, {', '.join(ASSIGNMENTS)}, not by {self}"
            )


NESTED = Sharing()


def convert(
    source: Path,
    target: Path,
    rank: int = 0,
    world: int = 1,
    cores: int = 1,
    storage: Storage | None = None,
    sharing: Sharing = NESTED,
    strip_pad: bool = True,
) -> tuple[str, ...]:
    """Make an atomic checkpoint of a distributed one; every rank of a gloo group of `world` calls it. Its parameters.

    cores: processes of a node, which divides `world` (ValueError). CheckpointError where files are missing or
    contradict each other, PatternError where the checkpoint's rules do not fit its parameters; nothing is complete
    then.
    """
    if cores < 1 or world % cores or not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world} can't be a core of nodes with {cores}")
    storage = storage or Storage()
    described = Described.read(source)
    if described.rules is None:
        raise CheckpointError(f"{source} states no patterns: it was not saved for conversion")
    files = described.files()
    missing = [name for name in files if not (source / name).is_file()]
    if missing:
        raise CheckpointError(f"{source} is not whole: {', '.join(missing)} missing")
    if rank == 0 and not atomic.is_made_of(target, source, described):
        # of an older checkpoint, whose files are replaced now
        (target / atomic.DESCRIPTION).unlink(missing_ok=True)
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
    mine = nested(work, world // cores, cores, sharing)[rank // cores][rank % cores]
    for name in mine:
        rule, step = rules[name], described.progress.step
        for value in VALUES:
            whole = union(source, described, rule, parameters[name], value, storage, strip_pad)
            with storage.holding(2 * whole.nbytes):  # the tensor, and at most as much on its way to the file
                atomic.write_parameter(target, name, value, whole, rule, step, storage)
    if rank == 0:
        atomic.write_generators(source, target, described, storage)
    if world > 1:
        dist.barrier()
    if rank == 0:
        atomic.Universal(described.progress, rules, described.marks(source)).write(target)
    if world > 1:
        dist.barrier()
    return tuple(mine)


def nested(
    work: Mapping[str, int], nodes: int, cores: int, sharing: Sharing = NESTED
) -> list[list[list[str]]]:
    """Names for each core of each node. work: elements of each parameter. ValueError for fewer than one of either."""
    rng = np.random.default_rng([sharing.seed, nodes, cores])
    outer = nodes if sharing.parallel in ("nested", "nodes") else 1
    inner = cores if sharing.parallel in ("nested", "cores") else 1
    found = []
    for share in assign(work, outer, sharing.assignment, rng):
        within = assign({name: work[name] for name in share}, inner, sharing.assignment, rng)
        found.append(within + [[] for _ in range(cores - inner)])
    return found + [[[] for _ in range(cores)] for _ in range(nodes - outer)]


def assign(
    work: Mapping[str, int], workers: int, assignment: str, rng: np.random.Generator
) -> list[list[str]]:
    """Shares of the work: the largest first, each to the worker with least to do; or in turn; or each to anyone."""
    if workers < 1:
        raise ValueError(f"{workers} workers can't share anything")
    shares: list[list[str]] = [[] for _ in range(workers)]
    loads = [0] * workers
    largest_first = sorted(work, key=lambda name: (-work[name], name))
    for i, name in enumerate(largest_first if assignment == "balanced" else work):
        if assignment == "balanced":
            chosen = loads.index(min(loads))
        else:
            chosen = i % workers if assignment == "in order" else int(rng.integers(workers))
        shares[chosen].append(name)
        loads[chosen] += work[name]
    return shares


def straggler(work: Mapping[str, int], shares: Sequence[Sequence[str]]) -> float:
    """The largest share over the mean share. ValueError where there is nothing to do."""
    loads = [sum(work[name] for name in share) for share in shares]
    if not sum(loads):
        raise ValueError("nothing was given out")
    return max(loads) * len(loads) / sum(loads)
