"""What updates and snapshots wait for: seconds beside the seconds that copies take, by interval and way of copying."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from common.distributed.fleet import Fleet
from common.training.sharded.layout import form_groups
from papers.in_memory_ft.recovery import Nodes, Ports, Switches, nodes_of, trainers_wire
from papers.in_memory_ft.replicas import Replica, Windows
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Mode, Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat
from papers.in_memory_ft.state import Header, flat
from papers.in_memory_ft.training_job import Job

COPY_SHARE = 0.8  # of a step: how long the copy of a shard takes here
WARM = 3  # steps before a step is timed


@dataclass(frozen=True)
class Condition:
    """A snapshot every so many steps, in one of the three modes."""

    mode: Mode
    every: int


@dataclass(frozen=True)
class Waited:
    """Seconds of a stretch on one rank: of waiting, of copying, of all; and how many snapshots were begun."""

    waited: float
    copied: float
    seconds: float
    snapshots: int

    def __add__(self, other: "Waited") -> "Waited":
        return Waited(
            self.waited + other.waited,
            self.copied + other.copied,
            self.seconds + other.seconds,
            self.snapshots + other.snapshots,
        )


def plain_step(fleet: Fleet, job: Job) -> tuple[float, int]:
    """Median seconds of a step without snapshots, and bytes of the state."""
    return fleet.run(_plain, job.layout.world, (job,))[0]


def waits(
    fleet: Fleet,
    job: Job,
    plain: tuple[float, int],
    judged: Condition,
    shown: Sequence[Condition],
    stretch: int,
    folder: Path,
    rates: Rates,
    seeds: Sequence[int],
) -> list[dict[Condition, Waited]]:
    """By seed, a stretch of steps under each condition, in turn and back; the sum, of the rank that waited most.

    plain: what `plain_step` says. judged: with every seed; shown: with the first one alone.

    A seed is another order of windows. rates: of the nodes; only their proportions count, for the copy of a shard is
    made to take COPY_SHARE of a step.
    """
    seconds, state_bytes = plain
    own = state_bytes / job.layout.data
    slower = rates.slower(rates.copy / (own / (COPY_SHARE * seconds)))
    ports = Ports.make(folder / "devices", nodes_of(job.layout), slower.copy, slower.network, slower.disk)
    nodes = Nodes(fleet, job.layout, folder, Switches(), ports)
    bucket = max(4096, int(own) // 16)
    work = (job, judged, tuple(shown), stretch, dict(nodes.seats), ports, bucket, tuple(seeds))
    tables = fleet.run(_rank, job.layout.world, work, seconds=600)
    nodes.end()
    return [
        {one: max((table[i][one] for table in tables), key=lambda row: row.waited) for one in tables[0][i]}
        for i in range(len(seeds))
    ]


def _trainer(rank: int, job: Job) -> tuple[Replica, Windows]:
    trainer = Replica(job.shape, form_groups(job.layout, rank), job.recipe)
    return trainer, Windows.of(job.text, job.shape.context, job.recipe.seed)


def _plain(rank: int, world: int, job: Job) -> tuple[float, int]:
    trainer, windows = _trainer(rank, job)
    seconds = []
    for _ in range(WARM + 5):
        begun = time.monotonic()
        trainer.step(windows.batch(job.rows))
        seconds.append(time.monotonic() - begun)
    return sorted(seconds[WARM:])[2], flat(trainer.state().fragments).nbytes


def _rank(
    rank: int,
    world: int,
    job: Job,
    judged: Condition,
    shown: tuple[Condition, ...],
    stretch: int,
    seats: dict[tuple[int, int], Seat],
    ports: Ports,
    bucket: int,
    seeds: tuple[int, ...],
) -> list[dict[Condition, Waited]]:
    trainer, windows = _trainer(rank, job)
    place = trainer.groups.place
    node = (place.stage, place.data)
    state = flat(trainer.state().fragments)
    saving = Saving(1, bucket, shards=job.layout.data, device=ports.copy[node])
    snapshots = Snapshots(trainers_wire(seats[node]), place.tensor, place.data, saving, state)

    def header() -> Header:
        return Header(trainer.steps, windows.position, state.nbytes, torch.get_rng_state())

    def run(condition: Condition) -> Waited:
        snapshots.saving = replace(saving, every=condition.every, mode=condition.mode)
        dist.barrier()
        begun, waited, copied = time.monotonic(), snapshots.waited, snapshots.copy_seconds
        before = len(snapshots.copied_bytes)
        for _ in range(stretch):
            trainer.step(windows.batch(job.rows), snapshots.before_update)
            snapshots.after_step(trainer.steps, 0, header)
        snapshots.before_update(trainer.steps)
        found = Waited(
            snapshots.waited - waited,
            snapshots.copy_seconds - copied,
            time.monotonic() - begun,
            len(snapshots.copied_bytes) - before,
        )
        snapshots.settle()  # what is still encoded now would be encoded beside the next steps
        return found

    run(Condition("bucketed", 1))
    table = []
    for seed in seeds:
        windows = Windows.of(job.text, job.shape.context, seed)
        found: dict[Condition, Waited] = {}
        conditions = [judged, *(shown if seed == seeds[0] else ())]
        for condition in (*conditions, *reversed(conditions)):
            once = run(condition)
            found[condition] = found[condition] + once if condition in found else once
        table.append(found)
    snapshots.close()
    return table
