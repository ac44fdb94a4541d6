"""Four ways to save one state, on the same devices: who copies how much, what waits, and when the state is safe.

torch.save      data rank 0 stops, copies everything and writes it
CheckFreq       data rank 0 copies everything and writes it behind training (Mohan et al., FAST 2021)
TorchSnapshot   every data rank copies and writes its m-th, bucket by bucket, writing beside copying
REFT            every data rank copies its m-th to its snapshot process, which encodes it with its peers

A state is safe when it is on disk or, for REFT, complete in all snapshot processes. Devices stand for the hardware:
files are written to the page cache and not forced to this machine's disk, whose speed would come on top.
"""

import io
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.flat_state import FlatState, shard
from common.distributed.fleet import Fleet
from common.distributed.memory import Memory
from common.distributed.questions import call
from common.distributed.throttled import Device
from common.training.sharded.layout import Layout, form_groups
from papers.in_memory_ft.buffers import NoVersion
from papers.in_memory_ft.recovery import Nodes, Ports, Switches, nodes_of, trainers_wire
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat
from papers.in_memory_ft.state import HEADER, Header
from papers.in_memory_ft.training_job import gather

BUCKET = 1 << 20
WARM = 2  # saves of REFT before the clock counts: threads, connections and both halves are in use then


@dataclass(frozen=True)
class Saved:
    """Of one save: bytes that the busiest device copied, seconds that training could not go on unless it overlaps the
    copy, and seconds until the state was safe."""

    copied: int
    stall: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """Saves by engine; seconds of loading from each disk source and, beside it, from memory."""

    saves: dict[str, Saved]
    loads: dict[str, tuple[float, float]]


class ThrottledFile(io.RawIOBase):
    """A file for torch.save whose bytes pass a device."""

    def __init__(self, path: Path, disk: Device) -> None:
        self._file, self._disk = path.open("wb"), disk

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._disk.pass_through(len(view))
        return self._file.write(view)

    def close(self) -> None:
        self._file.close()
        super().close()


def copy_and_write(
    state: FlatState, first: int, end: int, copy: Device, disk: Device, path: Path
) -> tuple[float, float]:
    """Buckets through the copy engine into host memory and on to a file, both at once; seconds of copying, of all."""
    ready: queue.Queue[np.ndarray | None] = queue.Queue()
    begun = time.monotonic()
    copied = [0.0]

    def copying() -> None:
        for start in range(first, end, BUCKET):
            bucket = np.empty(min(BUCKET, end - start), np.uint8)
            copy.pass_through(len(bucket))
            state.read(start, bucket)
            ready.put(bucket)
        copied[0] = time.monotonic() - begun
        ready.put(None)

    thread = threading.Thread(target=copying)
    thread.start()
    with path.open("wb") as file:
        while (bucket := ready.get()) is not None:
            disk.pass_through(len(bucket))
            file.write(bucket.data)
    thread.join()
    return copied[0], time.monotonic() - begun


@dataclass(frozen=True)
class Work:
    """What is timed. engines: to save with, in turn; sources: on disk, to load from. rates: of every node.

    sharding: False where REFT copies the whole state on every rank. persist: its snapshot counts when it was written to
    disk too. cleared: snapshot processes have lost their memory before it is loaded.
    """

    engines: tuple[str, ...]
    sources: tuple[str, ...]
    state_bytes: int
    peers: int
    rates: Rates
    seeds: tuple[int, ...]
    sharding: bool = True
    persist: bool = False
    cleared: bool = False

    @property
    def turns(self) -> list[str]:
        """Who saves when, with each seed: there and back. Engines that the disk holds up for long save once."""
        back = [one for one in reversed(self.engines) if one in ("REFT", "TorchSnapshot")]
        return [*self.engines, *back]


def measure(fleet: Fleet, work: Work, folder: Path) -> list[Measured]:
    """By seed, save a random state with every engine and load it from every disk source and from memory."""
    layout = Layout(data=work.peers)
    folder.mkdir(parents=True, exist_ok=True)
    rates = work.rates
    ports = Ports.make(folder / "devices", nodes_of(layout), rates.copy, rates.network, rates.disk)
    nodes = Nodes(fleet, layout, folder, Switches(), ports)
    found = fleet.run(_rank, work.peers, (work, ports, dict(nodes.seats), folder), seconds=600)
    nodes.end()
    return [_together(work, ranks) for ranks in zip(*found, strict=True)]


Rank = tuple[dict[str, Saved], dict[str, tuple[float, float]]]  # what one rank saw of a seed: saves, loads


def _together(work: Work, ranks: Sequence[Rank]) -> Measured:
    loads = {}
    for source in work.sources:
        disk, memory = zip(*(one[1][source] for one in ranks), strict=True)
        loads[source] = (max(disk), max(memory))
    return Measured({engine: _slowest([one[0][engine] for one in ranks]) for engine in work.engines}, loads)


def _slowest(ranks: Sequence[Saved]) -> Saved:
    return Saved(max(r.copied for r in ranks), max(r.stall for r in ranks), max(r.seconds for r in ranks))


def _rank(
    rank: int, world: int, work: Work, ports: Ports, seats: dict[tuple[int, int], Seat], folder: Path
) -> list[Rank]:
    node = (0, rank)
    copy, disk, network = ports.copy[node], ports.disk[node], ports.network[node]
    weights = torch.zeros(work.state_bytes // 8, dtype=torch.int64)
    words = weights.numpy()
    state = FlatState([weights])
    first, end = shard(state.nbytes, rank, world)
    groups = form_groups(Layout(data=world), rank)
    wire = trainers_wire(seats[node])
    saving = Saving(1, BUCKET, shards=world if work.sharding else 1, device=copy)
    snapshots = Snapshots(
        wire, 0, rank if work.sharding else 0, saving, state,
        persist=lambda version: str(folder / f"reft-{rank}") if work.persist else None,
    )  # fmt: skip

    def save(engine: str, turn: int) -> tuple[int, float]:
        """Bytes copied here, and seconds of stall."""
        if engine == "REFT":
            begun = time.monotonic()
            snapshots.after_step(turn, 0, lambda: Header(turn, 0, state.nbytes, torch.get_rng_state()))
            snapshots.before_update(turn)
            stall = time.monotonic() - begun
            snapshots.settle()
            return snapshots.copied_bytes[-1], stall
        if engine == "TorchSnapshot":
            return end - first, copy_and_write(state, first, end, copy, disk, folder / f"part-{rank}")[0]
        if rank:
            return 0, 0.0
        if engine == "CheckFreq":
            return state.nbytes, copy_and_write(state, 0, state.nbytes, copy, disk, folder / "whole")[0]
        begun = time.monotonic()
        copy.pass_through(state.nbytes)
        with ThrottledFile(folder / "saved", disk) as file:
            torch.save(weights.clone(), file)  # type: ignore[arg-type]
        return state.nbytes, time.monotonic() - begun

    target = FlatState([torch.zeros_like(weights)])

    def from_disk(source: str) -> None:
        if source == "whole disk":
            target.write(0, np.frombuffer(disk.read(folder / "whole"), np.uint8))
            copy.pass_through(state.nbytes)
            return
        own = np.frombuffer(disk.read(folder / f"part-{rank}"), np.uint8)
        copy.pass_through(len(own))
        gather(target, np.pad(own, (0, -(-state.nbytes // world) - len(own))), groups, world, network)

    def from_memory(source: str) -> None:
        """source: the disk to fall back to where memory has lost the version."""
        try:
            region = call(wire, "load", 0, snapshots.clean or 0)
        except NoVersion:
            from_disk(source)
            return
        memory = Memory.open(region.address)
        own = np.frombuffer(memory.view, np.uint8)[region.start + HEADER : region.start + region.nbytes]
        copy.pass_through(len(own))
        gather(target, own, groups, world if work.sharding else 1, network)

    def seconds(load: Callable[[str], None], source: str) -> float:
        target.write(0, np.zeros(state.nbytes, np.uint8))
        dist.barrier()
        begun = time.monotonic()
        load(source)
        dist.barrier()
        taken = time.monotonic() - begun
        if target.digest() != state.digest():
            raise RuntimeError(f"rank {rank}: what was loaded beside {source} is not what was saved")
        return taken

    def timed(index: int) -> Rank:
        """All saves and loads of one seed."""
        words[:] = np.random.default_rng(work.seeds[index]).integers(
            0, 2**63, len(words)
        )  # the same on all ranks
        taken: dict[str, list[Saved]] = {}
        for turn, engine in enumerate(work.turns):
            dist.barrier()
            begun = time.monotonic()
            copied, stall = save(engine, 1 + WARM + index * len(work.turns) + turn)
            dist.barrier()
            taken.setdefault(engine, []).append(Saved(copied, stall, time.monotonic() - begun))
        if work.sources:  # not through the device: writing them is not what is measured
            if rank == 0:
                words.tofile(folder / "whole")
            words.view(np.uint8)[first:end].tofile(folder / f"part-{rank}")
        if work.cleared:
            call(wire, "settle", None, 0)
        loads = {
            source: (seconds(from_disk, source), seconds(from_memory, source)) for source in work.sources
        }
        if work.cleared:
            snapshots.clean = None  # the next seed begins without a version
        saves = {
            engine: Saved(each[0].copied, fmean(s.stall for s in each), fmean(s.seconds for s in each))
            for engine, each in taken.items()
        }
        return saves, loads

    for turn in range(WARM):
        save("REFT", 1 + turn)
    found = [timed(index) for index in range(len(work.seeds))]
    snapshots.close()
    return found
