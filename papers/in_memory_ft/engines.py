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

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.fleet import Fleet
from common.distributed.memory import Memory
from common.distributed.throttled import Device
from common.training.sharded.layout import Layout, form_groups
from papers.in_memory_ft.buffers import NoVersion
from papers.in_memory_ft.recovery import Nodes, Ports, Switches, nodes_of, trainers_wire
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat, call
from papers.in_memory_ft.state import HEADER, FlatState, Header, shard
from papers.in_memory_ft.training_job import gather

BUCKET = 1 << 20
SAVES = 3  # of each engine; the last counts, when threads, connections and both halves are warm


@dataclass(frozen=True)
class Saved:
    """Of one save: bytes that the busiest device copied, seconds that training could not go on unless it overlaps the
    copy, and seconds until the state was safe."""

    copied: int
    stall: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """Saves by engine; seconds of loading from each disk source and, beside it, from memory; bytes that one snapshot
    process holds, and has sent in all saves."""

    saves: dict[str, Saved]
    loads: dict[str, tuple[float, float]]
    memory: int
    sent: int


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


def measure(
    fleet: Fleet,
    engines: Sequence[str],
    sources: Sequence[str],
    state_bytes: int,
    peers: int,
    rates: Rates,
    folder: Path,
    seed: int,
    persist: bool = False,
    cleared: bool = False,
) -> Measured:
    """Save a random state with every engine and load it from every disk source and from memory.

    persist: REFT's snapshot counts when it was written to disk too. cleared: snapshot processes have lost their memory
    before it is loaded.
    """
    layout = Layout(data=peers)
    folder.mkdir(parents=True, exist_ok=True)
    ports = Ports.make(folder / "devices", nodes_of(layout), rates.copy, rates.network, rates.disk)
    nodes = Nodes(fleet, layout, folder, Switches(), ports)
    work = (
        tuple(engines),
        tuple(sources),
        state_bytes,
        ports,
        dict(nodes.seats),
        folder,
        seed,
        persist,
        cleared,
    )
    found = fleet.run(_rank, peers, work, seconds=300)
    account = nodes.ask((0, 0), "account")
    nodes.end()
    saves = {
        engine: Saved(
            max(one[0][engine].copied for one in found),
            max(one[0][engine].stall for one in found),
            max(one[0][engine].seconds for one in found),
        )
        for engine in engines
    }
    loads = {}
    for source in sources:
        disk, memory = zip(*(one[1][source] for one in found), strict=True)
        loads[source] = (max(disk), max(memory))
    return Measured(saves, loads, account["memory"], account["sent"])


def _rank(
    rank: int,
    world: int,
    engines: tuple[str, ...],
    sources: tuple[str, ...],
    state_bytes: int,
    ports: Ports,
    seats: dict[tuple[int, int], Seat],
    folder: Path,
    seed: int,
    persist: bool,
    cleared: bool,
) -> tuple[dict[str, Saved], dict[str, tuple[float, float]]]:
    node = (0, rank)
    copy, disk, network = ports.copy[node], ports.disk[node], ports.network[node]
    words = np.random.default_rng(seed).integers(0, 2**63, state_bytes // 8)  # the same on all ranks
    weights = torch.from_numpy(words)
    state = FlatState([weights])
    first, end = shard(state.nbytes, rank, world)
    groups = form_groups(Layout(data=world), rank)
    wire = trainers_wire(seats[node])
    snapshots = Snapshots(
        wire, 0, rank, Saving(1, BUCKET, shards=world, device=copy), state,
        persist=lambda version: str(folder / f"reft-{rank}") if persist else None,
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

    saves = {}
    for engine in engines:
        for turn in range(1, SAVES + 1):
            dist.barrier()
            begun = time.monotonic()
            copied, stall = save(engine, turn)
            dist.barrier()
            saves[engine] = Saved(copied, stall, time.monotonic() - begun)

    if sources:  # not through the device: writing them is not what is measured
        if rank == 0:
            words.tofile(folder / "whole")
        words.view(np.uint8)[first:end].tofile(folder / f"part-{rank}")
    if cleared:
        call(wire, "settle", None, 0)
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
            region = call(wire, "load", 0, SAVES)
        except NoVersion:
            from_disk(source)
            return
        memory = Memory.open(region.address)
        own = np.frombuffer(memory.view, np.uint8)[region.start + HEADER : region.start + region.nbytes]
        copy.pass_through(len(own))
        gather(target, own, groups, world, network)

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

    loads = {source: (seconds(from_disk, source), seconds(from_memory, source)) for source in sources}
    snapshots.close()
    return saves, loads
