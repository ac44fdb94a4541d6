"""Trainers and snapshot processes together: training with snapshots, a blow at a named place, and going on after it."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.faults import Plan
from common.distributed.flat_state import FlatState, shard
from common.distributed.fleet import Fleet, RankFailed
from common.distributed.memory import Memory
from common.distributed.questions import call
from common.distributed.sealed_file import read_sealed
from common.distributed.throttled import Device
from common.training.sharded.layout import Groups, Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import RankState, Recipe
from papers.in_memory_ft.recovery import Node, Nodes, Ports, Start, Switches, payload_file, trainers_wire
from papers.in_memory_ft.replicas import Replica, Windows
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat, SnapshotProcess
from papers.in_memory_ft.state import HEADER, Header, flat


@dataclass(frozen=True)
class Job:
    """What is trained, on what, how long, and how it is saved.

    text: characters as bytes. steps: in all. persist: every so many steps a snapshot is also written to disk (0: no).
    digests: note the whole state's digest every so many steps.
    """

    shape: Shape
    layout: Layout
    recipe: Recipe
    text: bytes
    steps: int
    rows: int
    saving: Saving | None = None
    persist: int = 0
    digests: int = 0
    folder: Path | None = None


@dataclass(frozen=True)
class Blow:
    """What happens to whom. faults: of trainers, by their own hand. nodes: whose snapshot processes die the moment
    before, by the hand of the rank of the first fault. keepers: faults of snapshot processes. damaged: blocks of stored
    versions that go bad, (node, block); block m - 1 is the parity."""

    faults: Plan = field(default_factory=Plan)
    nodes: tuple[Node, ...] = ()
    keepers: Plan = field(default_factory=Plan)
    damaged: tuple[tuple[Node, int], ...] = ()


@dataclass(frozen=True)
class Report:
    """What a rank saw. losses and digests by step (before the update; after so many steps)."""

    losses: dict[int, float]
    digests: dict[int, str]
    copied: tuple[int, ...] = ()
    largest_bucket: int = 0
    state_bytes: int = 0


def train(
    rank: int,
    world: int,
    job: Job,
    start: Start,
    seats: dict[Node, Seat],
    copies: dict[Node, Device],
    plan: Plan,
    victims: tuple[int, ...],
    inside: bool = False,
) -> Report:
    """One rank: restore, and train to the job's last step with snapshots. victims: processes that die with this one."""
    groups = form_groups(job.layout, rank)
    trainer = Replica(job.shape, groups, job.recipe)
    node = (groups.place.stage, groups.place.data)
    windows = Windows.of(job.text, job.shape.context, job.recipe.seed)
    wire = None
    if job.saving is not None or start.source == "memory":
        if inside:
            peers = {d: s.address for (stage, d), s in seats.items() if stage == node[0] and d != node[1]}
            live_inside(seats[node], peers, start)
        wire = trainers_wire(seats[node])
    network = seats[node].network if seats else None
    if start.source != "first values":
        restore(trainer, windows, job, start, wire, seats.get(node), copies.get(node), network)
    state = flat(trainer.state().fragments)

    def reached(place: str) -> None:
        if strikes(plan, rank, place):
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
        plan.reached(rank, place)

    def header() -> Header:
        return Header(trainer.steps, windows.position, state.nbytes, torch.get_rng_state())

    def file_of(version: int) -> str | None:
        if not job.persist or version % job.persist or job.folder is None:
            return None
        return str(payload_file(job.folder, version, *node, groups.place.tensor))

    snapshots = None
    if job.saving is not None:
        assert wire is not None
        index = groups.place.data if job.saving.shards > 1 else 0
        snapshots = Snapshots(wire, groups.place.tensor, index, job.saving, state, reached, file_of)
        if start.source == "memory":
            snapshots.clean = start.versions[groups.place.stage]
    losses, digests = {}, {}
    while trainer.steps < job.steps:
        step = trainer.steps
        reached("step")
        batch = windows.batch(job.rows)
        losses[step] = trainer.step(batch, snapshots.before_update if snapshots else None)
        if snapshots is not None:
            snapshots.after_step(trainer.steps, start.epoch, header)
        if job.digests and (trainer.steps % job.digests == 0 or trainer.steps == job.steps):
            digests[trainer.steps] = state.digest(header().pack())
    if snapshots is None:
        return Report(losses, digests, state_bytes=state.nbytes)
    snapshots.before_update(trainer.steps)
    snapshots.settle()
    snapshots.close()
    return Report(losses, digests, tuple(snapshots.copied_bytes), snapshots.largest_bucket, state.nbytes)


def strikes(plan: Plan, rank: int, place: str) -> bool:
    """Whether the next time at this place is the end of this rank."""
    turn = plan.turns[rank, place] + 1
    return any((f.rank, f.at, f.turn, f.kind) == (rank, place, turn, "kill") for f in plan.faults)


def live_inside(seat: Seat, peers: dict[int, str], start: Start) -> None:
    """A snapshot "process" that is a thread of its trainer: what dies with the trainer protects nothing."""
    kept = SnapshotProcess(seat)
    kept.listen()
    dist.barrier()
    kept.meet(peers)
    kept.settle(None, start.epoch)


def restore(
    trainer: Replica,
    windows: Windows,
    job: Job,
    start: Start,
    wire: object,
    seat: Seat | None,
    copy: Device | None,
    network: Device | None,
) -> None:
    """Fill a trainer from the memory of its node (or the disk) and, where the state was shared out, from its peers."""
    groups = trainer.groups
    place, version = groups.place, start.versions[groups.place.stage]
    if start.source == "memory":
        region = call(wire, "load", place.tensor, version)  # type: ignore[arg-type]
        memory = Memory.open(region.address)
        payload = np.frombuffer(memory.view, np.uint8)[region.start : region.start + region.nbytes]
    else:
        assert job.folder is not None
        file = payload_file(job.folder, version, place.stage, place.data, place.tensor)
        payload = read_sealed(file, seat.disk if seat else None)
    header = Header.unpack(payload[:HEADER].tobytes())
    if copy is not None:
        copy.pass_through(len(payload))
    fragments = trainer.state().fragments
    state = flat(fragments)
    if header.state_bytes != state.nbytes:
        raise ValueError(f"a snapshot of {header.state_bytes} bytes does not fit a state of {state.nbytes}")
    gather(state, payload[HEADER:], groups, job.saving.shards if job.saving else 1, network)
    trainer.load(RankState(start.version, fragments, header.rng))
    windows.position = header.position


def gather(state: FlatState, own: np.ndarray, groups: Groups, shards: int, network: Device | None) -> None:
    """Write the whole state from this rank's shard and its peers'; each card passes what its node receives."""
    if shards == 1:
        state.write(0, own[: state.nbytes])
        return
    mine = torch.from_numpy(own.copy())
    parts = [torch.empty_like(mine) for _ in range(shards)]
    if network is not None:
        network.pass_through((shards - 1) * len(own))
    dist.all_gather(parts, mine, group=groups.data)
    for index, part in enumerate(parts):
        first, end = shard(state.nbytes, index, shards)
        state.write(first, part.numpy()[: end - first])


@dataclass(frozen=True)
class Outcome:
    """What a job with a blow came to. reports: of every rank in the last attempt; starts: one an attempt."""

    reports: list[Report]
    starts: tuple[Start, ...]
    failures: tuple[RankFailed, ...]
    account: dict[Node, dict[str, int]]  # of every node: bytes of memory held, of blocks sent


def run_job(
    fleet: Fleet,
    job: Job,
    switches: Switches | None = None,
    ports: Ports | None = None,
    blow: Blow | None = None,
    seconds: float = 120.0,
) -> Outcome:
    """Run a job to its end, through at most three failures. The blow strikes in the first attempt alone."""
    switches, ports, blow = switches or Switches(), ports or Ports(), blow or Blow()
    folder = job.folder or Path(os.devnull)
    nodes = Nodes(fleet, job.layout, folder, switches, ports, blow.keepers) if job.saving else None
    starts: list[Start] = []

    def plan(failures: tuple[RankFailed, ...]) -> tuple[int, tuple]:
        if nodes is None or not failures:
            start = Start(len(failures))
        else:
            for node, index in blow.damaged if len(failures) == 1 else ():
                for slot, versions in nodes.ask(node, "inventory").items():
                    for version in versions:
                        nodes.ask(node, "damage", slot, version, index)
            start = nodes.recover(len(failures))
        starts.append(start)
        first = not failures
        victims = (
            tuple(nodes.pid(node) for node in blow.nodes) if nodes and first and not switches.inside else ()
        )
        return job.layout.world, (
            job, start, dict(nodes.seats) if nodes else {}, dict(ports.copy), blow.faults if first else Plan(),
            victims, switches.inside,
        )  # fmt: skip

    try:
        reports, failures = fleet.run_elastic(train, plan, restarts=3, seconds=seconds)
        account = {node: nodes.ask(node, "account") for node in nodes.started} if nodes else {}
    finally:
        if nodes is not None:
            nodes.end()
    return Outcome(reports, tuple(starts), failures, account)
