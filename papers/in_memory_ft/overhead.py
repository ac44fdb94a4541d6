"""What snapshots add to a step: stretches of steps with and without them, in turns, in one group of trainers."""

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
from papers.in_memory_ft.state import FlatState, Header
from papers.in_memory_ft.training_job import Job

COPY_SHARE = 0.8  # of a step: how long the copy of a shard takes here


@dataclass(frozen=True)
class Condition:
    """A snapshot every so many steps, in one of the three modes."""

    mode: Mode
    every: int


def step_seconds(fleet: Fleet, job: Job, steps: int) -> float:
    """Median seconds of a step without snapshots, after two to warm up."""
    found = fleet.run(_plain, job.layout.world, (job, steps + 2))
    return sorted(found[0][2:])[steps // 2]


def overheads(
    fleet: Fleet,
    job: Job,
    conditions: Sequence[Condition],
    stretch: int,
    rounds: int,
    folder: Path,
    rates: Rates,
) -> dict[Condition, float]:
    """Share that each condition adds to the seconds of `stretch` steps; the median over rounds.

    rates: of the nodes; only their proportions count, for the copy of a shard is made to take COPY_SHARE of a step.
    """
    seconds = step_seconds(fleet, job, 6)
    found = fleet.run(_state_bytes, job.layout.world, (job,))
    own = found[0] / job.layout.data
    slower = rates.slower(rates.copy / (own / (COPY_SHARE * seconds)))
    ports = Ports.make(folder / "devices", nodes_of(job.layout), slower.copy, slower.network, slower.disk)
    nodes = Nodes(fleet, job.layout, folder, Switches(), ports)
    bucket = max(4096, int(own) // 16)
    work = (job, tuple(conditions), stretch, rounds, dict(nodes.seats), ports, bucket)
    table = fleet.run(_rank, job.layout.world, work, seconds=300)[0]
    nodes.end()
    return {
        condition: sorted(one / without - 1 for one, without in rows)[len(rows) // 2]
        for condition, rows in table.items()
    }


def _plain(rank: int, world: int, job: Job, steps: int) -> list[float]:
    trainer, windows, seconds = (
        Replica(job.shape, form_groups(job.layout, rank), job.recipe),
        Windows.of(job.text, job.shape.context, job.recipe.seed),
        [],
    )
    for _ in range(steps):
        begun = time.monotonic()
        trainer.step(windows.batch(job.rows))
        seconds.append(time.monotonic() - begun)
    return seconds


def _state_bytes(rank: int, world: int, job: Job) -> int:
    trainer = Replica(job.shape, form_groups(job.layout, rank), job.recipe)
    return FlatState.of(trainer.state().fragments).nbytes


def _rank(
    rank: int,
    world: int,
    job: Job,
    conditions: tuple[Condition, ...],
    stretch: int,
    rounds: int,
    seats: dict[tuple[int, int], Seat],
    ports: Ports,
    bucket: int,
) -> dict[Condition, list[tuple[float, float]]]:
    groups = form_groups(job.layout, rank)
    trainer, windows = (
        Replica(job.shape, groups, job.recipe),
        Windows.of(job.text, job.shape.context, job.recipe.seed),
    )
    node = (groups.place.stage, groups.place.data)
    state = FlatState.of(trainer.state().fragments)
    saving = Saving(1, bucket, shards=job.layout.data, device=ports.copy[node])
    snapshots = Snapshots(trainers_wire(seats[node]), groups.place.tensor, groups.place.data, saving, state)

    def header() -> Header:
        return Header(trainer.steps, windows.position, state.nbytes, torch.get_rng_state())

    def run(condition: Condition | None) -> float:
        if condition is not None:
            snapshots.saving = replace(saving, every=condition.every, mode=condition.mode)
        dist.barrier()
        begun = time.monotonic()
        for _ in range(stretch):
            trainer.step(windows.batch(job.rows), snapshots.before_update)
            if condition is not None:
                snapshots.after_step(trainer.steps, 0, header)
        snapshots.before_update(trainer.steps)
        dist.barrier()
        taken = time.monotonic() - begun
        snapshots.settle()  # what is still encoded now would be encoded beside the next steps
        return taken

    run(None)
    rows: dict[Condition, list[tuple[float, float]]] = {condition: [] for condition in conditions}
    for _ in range(rounds):
        before = run(None)
        for condition in conditions:
            taken, after = run(condition), run(None)
            rows[condition].append((taken, (before + after) / 2))
            before = after
    snapshots.close()
    return rows
