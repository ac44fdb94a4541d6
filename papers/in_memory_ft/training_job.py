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
from common.distributed.traffic import Wire
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import Groups, form_groups
from common.training.sharded.trainer import RankState
from papers.in_memory_ft.recovery import Node, Nodes, Start, Switches, payload_file, trainers_wire
from papers.in_memory_ft.replicas import HEADER, Header, Replica, flat
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat, SnapshotProcess


@dataclass(frozen=True)
class SavedJob:
    """What is trained, how long, and how it is saved.

    saving: None for no snapshots. persist: every so many steps a snapshot is also written to disk (0: no), into
    `folder`. digests: note the whole state's digest every so many steps.
    """

    job: Job
    steps: int
    saving: Saving | None = None
    persist: int = 0
    digests: int = 0
    folder: Path = Path(os.devnull)


@dataclass(frozen=True)
class Blow:
    """What happens to whom. faults: of trainers, by their own hand. nodes: whose snapshot processes die the moment
    before, by the hand of the rank of the first fault. damaged: blocks of stored versions that go bad, (node, block);
    block m - 1 is the parity."""

    faults: Plan = field(default_factory=Plan)
    nodes: tuple[Node, ...] = ()
    damaged: tuple[tuple[Node, int], ...] = ()


@dataclass(frozen=True)
class Report:
    """What a rank saw. losses and digests by step (before the update; after so many steps); copied: bytes."""

    losses: dict[int, float]
    digests: dict[int, str]
    copied: tuple[int, ...]
    state_bytes: int


@dataclass(frozen=True)
class Attempt:
    """What every rank of an attempt is told. peers: addresses by node. victims: processes that the blow kills too."""

    start: Start
    seats: dict[Node, Seat]
    peers: dict[Node, dict[int, str]]
    plan: Plan
    victims: tuple[int, ...]
    inside: bool


def train(rank: int, world: int, saved: SavedJob, attempt: Attempt) -> Report:
    """One rank: restore, and train to the last step with snapshots."""
    job, start, saving = saved.job, attempt.start, saved.saving
    groups = form_groups(job.layout, rank)
    trainer, rows = Replica(job.shape, groups, job.recipe), Data(job)
    node = (groups.place.stage, groups.place.data)
    if saving is None:
        state, wire = flat(trainer.state().fragments), None
    else:
        if attempt.inside:
            live_inside(attempt.seats[node], attempt.peers[node], start)
        wire = trainers_wire(attempt.seats[node])
        if start.source != "first values":
            restore(trainer, rows, saved, start, wire)
        state = flat(trainer.state().fragments)

    def reached(place: str) -> None:
        turn = attempt.plan.turns[rank, place] + 1
        if any((f.rank, f.at, f.turn) == (rank, place, turn) for f in attempt.plan.faults):
            for pid in attempt.victims:
                os.kill(pid, signal.SIGKILL)
        attempt.plan.reached(rank, place)

    def header() -> Header:
        return Header(trainer.steps, rows.consumed, state.nbytes, torch.get_rng_state())

    def file_of(version: int) -> str | None:
        wanted = saved.persist and version % saved.persist == 0
        return str(payload_file(saved.folder, version, node)) if wanted else None

    snapshots = None
    if saving is not None and wire is not None:
        index = groups.place.data if saving.shards > 1 else 0
        snapshots = Snapshots(wire, index, saving, state, reached, file_of)
        if start.source == "memory":
            snapshots.clean = start.versions[groups.place.stage]
    losses, digests = {}, {}
    while trainer.steps < saved.steps:
        step = trainer.steps
        losses[step] = trainer.step(rows.batch(), snapshots.before_update if snapshots else None)
        if snapshots is not None:
            snapshots.after_step(trainer.steps, start.epoch, header)
        if saved.digests and (trainer.steps % saved.digests == 0 or trainer.steps == saved.steps):
            digests[trainer.steps] = state.digest(header().pack())
    if snapshots is None:
        return Report(losses, digests, (), state.nbytes)
    snapshots.before_update(trainer.steps)
    snapshots.settle()
    snapshots.close()
    return Report(losses, digests, tuple(snapshots.copied_bytes), state.nbytes)


def live_inside(seat: Seat, peers: dict[int, str], start: Start) -> None:
    """A snapshot "process" that is a thread of its trainer: what dies with the trainer protects nothing."""
    kept = SnapshotProcess(seat)
    kept.listen()
    dist.barrier()
    kept.meet(peers)
    kept.settle(None, start.epoch)


def restore(trainer: Replica, rows: Data, saved: SavedJob, start: Start, wire: Wire) -> None:
    """Fill a trainer from the memory of its node (or the disk) and, where the state was shared out, from its peers."""
    place = trainer.groups.place
    version = start.versions[place.stage]
    if start.source == "memory":
        payload = stored(wire, version)
    else:
        payload = read_sealed(payload_file(saved.folder, version, (place.stage, place.data)))
    header = Header.unpack(payload[:HEADER].tobytes())
    fragments = trainer.state().fragments
    state = flat(fragments)
    if header.state_bytes != state.nbytes:
        raise ValueError(f"a snapshot of {header.state_bytes} bytes does not fit a state of {state.nbytes}")
    gather(state, payload[HEADER:], trainer.groups, saved.saving.shards if saved.saving else 1)
    trainer.load(RankState(start.version, fragments, header.rng))
    rows.consumed = header.position


def stored(wire: Wire, version: int) -> np.ndarray:
    """A complete version in the memory of a snapshot process; uint8, a view. NoVersion where it has none."""
    region = call(wire, "load", version)
    whole = np.frombuffer(Memory.open(region.address).view, np.uint8)
    return whole[region.start : region.start + region.nbytes]


def gather(
    state: FlatState, own: np.ndarray, groups: Groups, shards: int, network: Device | None = None
) -> None:
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
    fleet: Fleet, saved: SavedJob, switches: Switches | None = None, blow: Blow | None = None
) -> Outcome:
    """Run a job to its end, through at most three failures. The blow strikes in the first attempt alone."""
    switches, blow, layout = switches or Switches(), blow or Blow(), saved.job.layout
    if saved.saving is None:
        start = Start(0)
        told = Attempt(start, {}, {}, Plan(), (), inside=False)
        return Outcome(fleet.run(train, layout.world, (saved, told), 120.0), (start,), (), {})
    starts: list[Start] = []
    with Nodes(fleet, layout, saved.folder, switches) as nodes:

        def plan(failures: tuple[RankFailed, ...]) -> tuple[int, tuple]:
            for node, index in blow.damaged if len(failures) == 1 else ():
                nodes.ask(node, "damage", index)
            starts.append(nodes.recover(len(failures)) if failures else Start(0))
            struck = () if failures or switches.inside else blow.nodes
            peers = {node: nodes.peers(node) for node in nodes.seats}
            told = Attempt(
                starts[-1], dict(nodes.seats), peers, Plan() if failures else blow.faults,
                tuple(nodes.started[node].pid for node in struck), switches.inside,
            )  # fmt: skip
            return layout.world, (saved, told)

        reports, failures = fleet.run_elastic(train, plan, restarts=3, seconds=120.0)
        account = {node: nodes.ask(node, "account") for node in nodes.started}
    return Outcome(reports, tuple(starts), failures, account)
