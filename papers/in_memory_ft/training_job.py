"""Trainers and snapshot processes together: training with snapshots, a blow at a named place, and going on after it."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.distributed.faults import Plan
from common.distributed.fleet import Fleet, RankFailed
from common.distributed.sealed_file import read_sealed
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import form_groups
from common.training.sharded.trainer import RankState
from papers.in_memory_ft.recovery import Node, Nodes, Start, payload_file
from papers.in_memory_ft.replicas import HEADER, Header, Replica, flat
from papers.in_memory_ft.snapshot import Saving, Snapshots, gather
from papers.in_memory_ft.snapshot_process import Seat, Switches


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
    """What a rank saw. losses and digests by step (before the update; after so many steps); copied: bytes of each
    snapshot; seconds: of each step."""

    losses: dict[int, float]
    digests: dict[int, str]
    copied: tuple[int, ...]
    state_bytes: int
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """What every rank of an attempt is told. victims: processes that the blow kills too."""

    start: Start
    seats: dict[Node, Seat]
    plan: Plan
    victims: tuple[int, ...]


class Rank:
    """One rank of a job: trainer, rows, the state as bytes, and its snapshots where it takes any."""

    def __init__(self, rank: int, job: Job) -> None:
        groups = form_groups(job.layout, rank)
        self.trainer, self.rows = Replica(job.shape, groups, job.recipe), Data(job)
        self.state = flat(self.trainer.state().fragments)
        self.node: Node = (groups.place.stage, groups.place.data)
        self.snapshots: Snapshots | None = None

    def step(self) -> float:
        """An update with the next rows; the loss before it."""
        before = self.snapshots.before_update if self.snapshots else None
        return self.trainer.step(self.rows.batch(), before)

    def header(self) -> Header:
        return Header(self.trainer.steps, self.rows.consumed, self.state.nbytes, torch.get_rng_state())

    def restore(self, start: Start, saved: SavedJob) -> None:
        """Go on from the memory of the node (or the disk) and, where the state was shared out, from the peers'."""
        assert self.snapshots is not None
        version = start.versions[self.node[0]]
        if start.source == "memory":
            payload = self.snapshots.stored(version)
            self.snapshots.clean = version
        else:
            payload = read_sealed(payload_file(saved.folder, version, self.node))
        header = Header.unpack(payload[:HEADER].tobytes())
        if header.state_bytes != self.state.nbytes:
            raise ValueError(
                f"a snapshot of {header.state_bytes} bytes does not fit a state of {self.state.nbytes}"
            )
        gather(self.state, payload[HEADER:], self.snapshots.saving.shards, self.trainer.groups.data)
        self.trainer.load(RankState(start.version, self.trainer.state().fragments, header.rng))
        self.rows.consumed = header.position


def train(rank: int, world: int, saved: SavedJob, attempt: Attempt) -> Report:
    """One rank: restore, and train to the last step with snapshots."""
    start, own = attempt.start, Rank(rank, saved.job)

    def reached(place: str) -> None:
        turn = attempt.plan.turns[rank, place] + 1
        if any((f.rank, f.at, f.turn) == (rank, place, turn) for f in attempt.plan.faults):
            for pid in attempt.victims:
                os.kill(pid, signal.SIGKILL)
        attempt.plan.reached(rank, place)

    def file_of(version: int) -> str | None:
        wanted = saved.persist and version % saved.persist == 0
        return str(payload_file(saved.folder, version, own.node)) if wanted else None

    if saved.saving is not None:
        own.snapshots = Snapshots(attempt.seats[own.node], saved.saving, own.state, reached, file_of)
        if start.source != "first values":
            own.restore(start, saved)
    losses, digests, seconds = {}, {}, []
    for step in range(own.trainer.steps, saved.steps):
        begun = time.monotonic()
        losses[step] = own.step()
        seconds.append(time.monotonic() - begun)
        done = step + 1
        if own.snapshots is not None:
            own.snapshots.after_step(done, start.epoch, own.header)
        if saved.digests and (done % saved.digests == 0 or done == saved.steps):
            digests[done] = own.state.digest(own.header().pack())
    copied: list[int] = []
    if own.snapshots is not None:
        own.snapshots.before_update(saved.steps)
        own.snapshots.settle()
        own.snapshots.close()
        copied = own.snapshots.copied_bytes
    return Report(losses, digests, tuple(copied), own.state.nbytes, tuple(seconds))


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
        told = Attempt(Start(0), {}, Plan(), ())
        return Outcome(fleet.run(train, layout.world, (saved, told), 120.0), (told.start,), (), {})
    starts: list[Start] = []
    with Nodes(fleet, layout, saved.folder, switches) as nodes:

        def plan(failures: tuple[RankFailed, ...]) -> tuple[int, tuple]:
            for node, index in blow.damaged if len(failures) == 1 else ():
                nodes.ask(node, "damage", index)
            starts.append(nodes.recover(len(failures)) if failures else Start(0))
            victims = tuple(nodes.started[node].pid for node in blow.nodes)
            told = Attempt(starts[-1], dict(nodes.seats), Plan() if failures else blow.faults, victims)
            return layout.world, (saved, told)

        reports, failures = fleet.run_elastic(train, plan, restarts=3, seconds=120.0)
        account = {node: nodes.ask(node, "account") for node in nodes.started}
    return Outcome(reports, tuple(starts), failures, account)
