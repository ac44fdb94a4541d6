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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.flat_state import FlatState, shard
from common.distributed.fleet import Fleet
from common.distributed.questions import call
from common.distributed.throttled import Device
from common.training.sharded.layout import Layout, form_groups
from papers.in_memory_ft.buffers import NoVersion
from papers.in_memory_ft.recovery import BURST, Nodes, Ports, Switches, trainers_wire
from papers.in_memory_ft.replicas import HEADER, Header
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat
from papers.in_memory_ft.training_job import gather, stored

WARM = 2  # saves of REFT before the clock counts: threads, connections and both halves are in use then


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
        """Who saves when, with each seed: there and back. torch.save, which no claim reads, has one turn."""
        return [*self.engines, *(one for one in reversed(self.engines) if one != "torch.save")]


@dataclass(frozen=True)
class Measured:
    """Of one seed, the slowest rank's seconds. saves: until the state was safe, by engine; stalls: that training could
    not go on unless it overlaps the copy; loads: from each disk source and, beside it, from memory."""

    saves: dict[str, float]
    stalls: dict[str, float]
    loads: dict[str, tuple[float, float]]


def measure(fleet: Fleet, work: Work, folder: Path) -> list[Measured]:
    """By seed, save a random state with every engine and load it from every disk source and from memory."""
    layout = Layout(data=work.peers)
    folder.mkdir(parents=True, exist_ok=True)
    ports = Ports.make(folder / "devices", layout, work.rates)
    with Nodes(fleet, layout, folder, Switches(), ports) as nodes:
        ranks = fleet.run(_rank, work.peers, (work, ports, dict(nodes.seats), folder), seconds=600)

    def slowest(seed: list[Measured], name: str) -> dict:
        each = [getattr(one, name) for one in seed]
        return {key: np.max([one[key] for one in each], axis=0).tolist() for key in each[0]}

    return [
        Measured(*(slowest(list(seed), name) for name in ("saves", "stalls", "loads")))
        for seed in zip(*ranks, strict=True)
    ]


def copy_and_write(state: FlatState, first: int, end: int, copy: Device, disk: Device, path: Path) -> float:
    """Buckets through the copy engine into host memory and on to a file, both at once; seconds of copying."""
    ready: queue.Queue[np.ndarray | None] = queue.Queue()
    begun = time.monotonic()
    copied = [0.0]

    def copying() -> None:
        for start in range(first, end, BURST):
            bucket = np.empty(min(BURST, end - start), np.uint8)
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
    return copied[0]


def _rank(
    rank: int, world: int, work: Work, ports: Ports, seats: dict[tuple[int, int], Seat], folder: Path
) -> list[Measured]:
    node = (0, rank)
    copy, disk, network = ports.copy[node], ports.disk[node], ports.network[node]
    weights = torch.zeros(work.state_bytes // 8, dtype=torch.int64)
    words = weights.numpy()
    state, target = FlatState([weights]), FlatState([torch.zeros_like(weights)])
    first, end = shard(state.nbytes, rank, world)
    groups = form_groups(Layout(data=world), rank)
    wire = trainers_wire(seats[node])
    shards, index = (world, rank) if work.sharding else (1, 0)
    persisted = str(folder / f"reft-{rank}") if work.persist else None
    snapshots = Snapshots(
        wire, index, Saving(1, BURST, shards=shards, device=copy), state, persist=lambda _: persisted
    )
    turn = 0  # of REFT's versions

    def save(engine: str) -> float:
        """Seconds of stall; all ranks are through when the state is safe."""
        nonlocal turn
        begun = time.monotonic()
        if engine == "REFT":
            turn += 1
            snapshots.after_step(turn, 0, lambda: Header(turn, 0, state.nbytes, torch.get_rng_state()))
            snapshots.before_update(turn)
            stall = time.monotonic() - begun
            snapshots.settle()
            return stall
        if engine == "TorchSnapshot":
            return copy_and_write(state, first, end, copy, disk, folder / f"part-{rank}")
        if rank:
            return 0.0
        if engine == "CheckFreq":
            return copy_and_write(state, 0, state.nbytes, copy, disk, folder / "whole")
        copy.pass_through(state.nbytes)
        torch.save(weights, buffer := io.BytesIO())
        disk.pass_through(buffer.tell())
        (folder / "saved").write_bytes(buffer.getbuffer())
        return time.monotonic() - begun

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
            own = stored(wire, snapshots.clean or 0)[HEADER:]
        except NoVersion:
            return from_disk(source)
        copy.pass_through(len(own))
        gather(target, own, groups, shards, network)

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

    def loaded(source: str) -> tuple[float, float]:
        """Seconds from this disk source and from memory: there and back."""
        disks, memories = [seconds(from_disk, source)], [seconds(from_memory, source) for _ in range(2)]
        return fmean([*disks, seconds(from_disk, source)]), fmean(memories)

    def timed(seed: int) -> Measured:
        """All saves and loads of one seed, whose state is the same on all ranks."""
        words[:] = np.random.default_rng(seed).integers(0, 2**63, len(words))
        saves: dict[str, list[float]] = {engine: [] for engine in work.engines}
        stalls: dict[str, list[float]] = {engine: [] for engine in work.engines}
        for engine in work.turns:
            dist.barrier()
            begun = time.monotonic()
            stalls[engine].append(save(engine))
            dist.barrier()
            saves[engine].append(time.monotonic() - begun)
        if work.sources:  # not through the device: writing them is not what is measured
            if rank == 0:
                words.tofile(folder / "whole")
            words.view(np.uint8)[first:end].tofile(folder / f"part-{rank}")
        if work.cleared:
            call(wire, "settle", None, 0)
        loads = {source: loaded(source) for source in work.sources}
        if work.cleared:
            snapshots.clean = None  # the next seed begins without a version
        means = [{engine: fmean(each) for engine, each in kind.items()} for kind in (saves, stalls)]
        return Measured(means[0], means[1], loads)

    for _ in range(WARM):
        save("REFT")
    found = [timed(seed) for seed in work.seeds]
    snapshots.close()
    return found
