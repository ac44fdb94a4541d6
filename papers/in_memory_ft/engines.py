"""Four ways to save one state, on the same devices: who copies how much, what waits, and when the state is safe.

torch.save      data rank 0 stops, copies everything and writes it
CheckFreq       data rank 0 copies everything and writes it behind training (Mohan et al., FAST 2021)
TorchSnapshot   every data rank copies and writes its m-th, bucket by bucket, writing beside copying
REFT            every data rank copies its m-th to its snapshot process, which encodes it with its peers

A state is safe when it is on disk or, for REFT, complete in all snapshot processes. Devices stand for the hardware:
files are written to the page cache and not forced to this machine's disk, whose speed would come on top.
"""

import io
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from common.distributed.turns import together
from common.training.sharded.layout import Layout
from papers.in_memory_ft.buffers import NoVersion
from papers.in_memory_ft.recovery import BURST, Node, Nodes
from papers.in_memory_ft.replicas import HEADER, Header
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving, Snapshots, gather
from papers.in_memory_ft.snapshot_process import Seat, Switches

WARM = 2  # saves of REFT before the clock counts: threads, connections and both halves are in use then
Seconds = dict[tuple[str, str], float]  # by what was timed, and of which engine or disk source


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


def measure(fleet: Fleet, work: Work, folder: Path) -> list[Seconds]:
    """By seed, save a random state with every engine and load it from every disk source and from memory.

    Means of the slowest rank: ("save", engine) until the state was safe; ("stall", engine) that training could not go
    on unless it overlaps the copy; ("disk", source) and, beside it, ("memory", source) until all ranks have the state.
    """
    with Nodes(fleet, Layout(data=work.peers), folder, Switches(), work.rates) as nodes:
        ranks = fleet.run(_rank, work.peers, (work, dict(nodes.seats), folder), seconds=600)
    return [{key: max(rank[key] for rank in seed) for key in seed[0]} for seed in zip(*ranks, strict=True)]


def copy_and_write(state: FlatState, first: int, end: int, copy: Device, disk: Device, path: Path) -> float:
    """Buckets through the copy engine into host memory and on to a file, both at once; seconds of copying."""
    begun = time.monotonic()
    with path.open("wb") as file, ThreadPoolExecutor(1) as writer:

        def write(bucket: np.ndarray) -> None:
            disk.pass_through(len(bucket))
            file.write(bucket.data)

        writes = []
        for start in range(first, end, BURST):
            bucket = np.empty(min(BURST, end - start), np.uint8)
            copy.pass_through(len(bucket))
            state.read(start, bucket)
            writes.append(writer.submit(write, bucket))
        copied = time.monotonic() - begun
        for one in writes:
            one.result()
    return copied


def _rank(rank: int, world: int, work: Work, seats: dict[Node, Seat], folder: Path) -> list[Seconds]:
    seat = seats[0, rank]
    copy, disk = seat.copy, seat.disk
    assert copy is not None and disk is not None
    weights = torch.zeros(work.state_bytes // 8, dtype=torch.int64)
    words = weights.numpy()
    state, target = FlatState([weights]), FlatState([torch.zeros_like(weights)])
    first, end = shard(state.nbytes, rank, world)
    whole, part = folder / "whole", folder / f"part-{rank}"
    persisted = str(folder / f"reft-{rank}") if work.persist else None
    saving = Saving(1, BURST, shards=world if work.sharding else 1)
    snapshots = Snapshots(seat, saving, state, persist=lambda _: persisted)
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
            return copy_and_write(state, first, end, copy, disk, part)
        if rank:
            return 0.0
        if engine == "CheckFreq":
            return copy_and_write(state, 0, state.nbytes, copy, disk, whole)
        copy.pass_through(state.nbytes)
        torch.save(weights, buffer := io.BytesIO())
        disk.pass_through(buffer.tell())
        (folder / "saved").write_bytes(buffer.getbuffer())
        return time.monotonic() - begun

    def load(kind: str, source: str) -> None:
        """From a disk source, or from memory and where that has lost the version from the disk source."""
        path, shards = (whole, 1) if source == "whole disk" else (part, world)
        own = None
        if kind == "memory":
            with suppress(NoVersion):
                own, shards = snapshots.stored(snapshots.clean or 0)[HEADER:], saving.shards
        if own is None:
            own = np.frombuffer(disk.read(path), np.uint8)
        copy.pass_through(len(own))
        gather(target, own, shards, network=seat.network)

    def timed_load(kind: str, source: str) -> float:
        target.write(0, np.zeros(state.nbytes, np.uint8))
        taken = together(world, lambda: load(kind, source))
        if target.digest() != state.digest():
            raise RuntimeError(f"rank {rank}: what was loaded beside {source} is not what was saved")
        return taken

    def timed(seed: int) -> Seconds:
        """All saves and loads of one seed, whose state is the same on all ranks."""
        words[:] = np.random.default_rng(seed).integers(0, 2**63, len(words))
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for engine in work.turns:
            dist.barrier()
            begun = time.monotonic()
            found["stall", engine].append(save(engine))
            dist.barrier()
            found["save", engine].append(time.monotonic() - begun)
        if work.sources:  # not through the device: writing them is not what is measured
            if rank == 0:
                words.tofile(whole)
            own = words.view(np.uint8)[first:end]
            np.pad(own, (0, -(-state.nbytes // world) - len(own))).tofile(part)
        if work.cleared:
            call(snapshots.wire, "settle", None, 0)
        for source in work.sources:
            for kind in ("disk", "memory", "memory", "disk"):
                found[kind, source].append(timed_load(kind, source))
        if work.cleared:
            snapshots.clean = None  # the next seed begins without a version
        return {key: fmean(each) for key, each in found.items()}

    for _ in range(WARM):
        save("REFT")
    found = [timed(seed) for seed in work.seeds]
    snapshots.close()
    return found
