"""Seconds of saving, converting and loading on storage of a set rate, in real processes.

Files pass through a throttled device, so that the page cache of one machine does not stand in for storage: one device
for each node that has its own way to storage, or one that all share. A run's state is random, for bytes are bytes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from common.distributed.throttled import Device
from common.training.sharded.layout import form_groups
from common.training.sharded.trainer import Trainer
from papers.universal_checkpointing.baselines import save_consolidated
from papers.universal_checkpointing.conversion import Assignment, Converted, convert
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.loading import Reading, load_universal
from papers.universal_checkpointing.native import Described, Progress, load_native, save
from papers.universal_checkpointing.storage import Storage
from papers.universal_checkpointing.training import Job


def untrained(job: Job, rank: int) -> Trainer:
    """A trainer as it begins: first values, and moments that are zero."""
    import torch._dynamo  # noqa: F401  see training.py

    return Trainer(job.shape, form_groups(job.layout, rank), job.recipe)


def together(world: int, work: Callable[[], object]) -> float:
    """Seconds from the moment when all ranks begin until the last one is through."""
    if world > 1:
        dist.barrier()
    begun = time.perf_counter()
    work()
    if world > 1:
        dist.barrier()
    return time.perf_counter() - begun


@dataclass(frozen=True)
class Saved:
    """Seconds of a save with the rules in it, without them, and gathered on one rank."""

    universal: float
    plain: float
    consolidated: float


def time_saves(
    rank: int, world: int, job: Job, folder: str, devices: tuple[Device, ...], distributed: bool
) -> Saved:
    """Each rank is a node with its own device. distributed False: the universal save gathers; for controls."""
    trainer, storage = untrained(job, rank), Storage(devices[rank])
    progress = Progress(0, 0, job.recipe.adam)
    plain = Described(job.layout, progress, None)
    stated = replace(plain, rules=decoder_rules(job.shape))
    room = Path(folder)

    def universal() -> None:
        if distributed:
            save(room / "universal", trainer, stated, storage)
        else:
            save_consolidated(room / "universal", trainer, stated, storage)

    save(room / "first", trainer, plain)  # what a process does only once is no part of a save
    seconds: dict[str, list[float]] = {"plain": [], "universal": []}
    for _ in range(2):
        seconds["plain"].append(together(world, lambda: save(room / "plain", trainer, plain, storage)))
        seconds["universal"].append(together(world, universal))
    one = together(world, lambda: save_consolidated(room / "one", trainer, plain, storage))
    return Saved(min(seconds["universal"]), min(seconds["plain"]), one)


def make_checkpoint(rank: int, world: int, job: Job, folder: str) -> None:
    """A distributed checkpoint to convert or load, at the machine's own speed."""
    described = Described(job.layout, Progress(0, 0, job.recipe.adam), decoder_rules(job.shape))
    save(Path(folder), untrained(job, rank), described)


def time_conversion(
    rank: int, world: int, source: str, target: str, devices: tuple[Device, ...], assignment: Assignment
) -> tuple[float, Converted]:
    """Each rank is a node with its own device; seconds, and what this rank did."""
    found: list[Converted] = []

    def work() -> None:
        storage = Storage(devices[rank])
        found.append(convert(Path(source), Path(target), rank, world, 1, storage, assignment))

    return together(world, work), found[0]


@dataclass(frozen=True)
class Loaded:
    """Seconds of a load, and bytes that this rank read."""

    seconds: float
    read_bytes: int


def time_loads(
    rank: int, world: int, job: Job, native: str, universal: str, device: Device, readings: tuple[str, ...]
) -> dict[str, Loaded]:
    """All ranks share a device. readings: "direct" (the layout's own files), or a way of reading the atomic ones."""
    trainer, found = untrained(job, rank), {}
    load_universal(Path(universal), trainer)  # what a process does only once is no part of a load
    for reading in readings:
        storage = Storage(device)

        def work(reading: str = reading, storage: Storage = storage) -> None:
            if reading == "direct":
                load_native(Path(native), trainer, storage)
            else:
                way: Reading = reading  # type: ignore[assignment]
                load_universal(Path(universal), trainer, storage, way)

        found[reading] = Loaded(together(world, work), storage.read_bytes)
    return found


def parse_rate(folder: Path, nbytes: int = 16 << 20) -> float:
    """Bytes/s of torch.save and torch.load together on one core, in a folder that is memory where there is one."""
    values, path = torch.rand(nbytes // 4), folder / "values.pt"
    torch.save(values, path)
    begun = time.perf_counter()
    torch.save(values, path)
    torch.load(path)
    seconds = time.perf_counter() - begun
    path.unlink()
    return 2 * nbytes / seconds
