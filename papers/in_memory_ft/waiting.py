"""What updates and snapshots wait for: seconds beside the seconds that copies take, by interval and way of copying."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.fleet import Fleet
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import form_groups
from papers.in_memory_ft.recovery import Nodes, Ports, Switches, trainers_wire
from papers.in_memory_ft.replicas import Header, Replica, flat
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat

COPY_SHARE = 0.8  # of a step: how long the copy of a shard takes here
SPARE = (
    1.25  # times the steps that copy and parity take lie between two snapshots: none waits for the one before
)
WARM, TIMED = (
    5,
    25,
)  # steps before a step is timed, and timed: few of them would say what else the machine did


def interval_that_fits(rates: Rates) -> int:
    """Steps between two snapshots in which the copy and the parity of one are through, with a quarter to spare."""
    return ceil(SPARE * COPY_SHARE * (1 + rates.copy / rates.network))


@dataclass(frozen=True)
class Condition:
    """A snapshot every so many steps, its copy "bucketed" or "whole" beside them, or "synchronous"."""

    mode: str
    every: int


@dataclass(frozen=True)
class Waited:
    """Seconds of some steps on one rank: of waiting, of copying, of all; and how many snapshots were begun."""

    waited: float
    copied: float
    seconds: float
    snapshots: int


def plain_step(fleet: Fleet, job: Job) -> tuple[float, int]:
    """Median seconds of a step without snapshots, and bytes of the state."""
    return fleet.run(_plain, job.layout.world, (job,))[0]


@dataclass(frozen=True)
class Stretches:
    """What is trained how. plain: what `plain_step` says. judged: with every seed, shown: with the first one alone.

    steps: of one condition, which each seed meets twice, there and back. rates: of the nodes; only their proportions
    count, for the copy of a shard is made to take COPY_SHARE of a step. A seed is another order of rows.
    """

    job: Job
    plain: tuple[float, int]
    judged: Condition
    shown: tuple[Condition, ...]
    steps: int
    rates: Rates
    seeds: Sequence[int]


def waits(fleet: Fleet, work: Stretches, folder: Path) -> list[dict[Condition, Waited]]:
    """By seed, the sums of each condition's stretches, of the rank that waited most."""
    layout = work.job.layout
    step, state_bytes = work.plain
    slower = work.rates.copy / (state_bytes / layout.data / (COPY_SHARE * step))
    ports = Ports.make(folder / "devices", layout, work.rates.slower(slower))
    with Nodes(fleet, layout, folder, Switches(), ports) as nodes:
        tables = fleet.run(_rank, layout.world, (work, dict(nodes.seats), ports), seconds=600)
    return [
        {one: max((rank[one] for rank in ranks), key=lambda row: row.waited) for one in ranks[0]}
        for ranks in zip(*tables, strict=True)
    ]


def _plain(rank: int, world: int, job: Job) -> tuple[float, int]:
    trainer, rows = Replica(job.shape, form_groups(job.layout, rank), job.recipe), Data(job)
    seconds = []
    for _ in range(WARM + TIMED):
        begun = time.monotonic()
        trainer.step(rows.batch())
        seconds.append(time.monotonic() - begun)
    return sorted(seconds[WARM:])[TIMED // 2], flat(trainer.state().fragments).nbytes


def _rank(
    rank: int, world: int, work: Stretches, seats: dict[tuple[int, int], Seat], ports: Ports
) -> list[dict[Condition, Waited]]:
    job = work.job
    trainer = Replica(job.shape, form_groups(job.layout, rank), job.recipe)
    node = (trainer.groups.place.stage, trainer.groups.place.data)
    state, rows = flat(trainer.state().fragments), Data(job)
    saving = Saving(1, max(4096, state.nbytes // world // 16), shards=world, device=ports.copy[node])
    snapshots = Snapshots(trainers_wire(seats[node]), node[1], saving, state)

    def header() -> Header:
        return Header(trainer.steps, rows.consumed, state.nbytes, torch.get_rng_state())

    def counts() -> np.ndarray:
        done = len(snapshots.copied_bytes)
        return np.array([snapshots.waited, snapshots.copy_seconds, time.monotonic(), done])

    version = 0

    def run(condition: Condition) -> np.ndarray:
        """Every snapshot has its interval's steps in the stretch, and what is late then is waited for and counted."""
        nonlocal version
        bucket = state.nbytes if condition.mode == "whole" else saving.bucket
        snapshots.saving = replace(saving, bucket=bucket, synchronous=condition.mode == "synchronous")
        dist.barrier()
        before = counts()
        for step in range(work.steps):
            if step % condition.every == 0:
                version += 1
                snapshots.after_step(version, 0, header)
            trainer.step(rows.batch(), snapshots.before_update)
        snapshots.settle()
        return counts() - before

    run(Condition("bucketed", 1))
    table = []
    for seed in work.seeds:
        rows = Data(replace(job, recipe=replace(job.recipe, seed=seed)))
        conditions = [work.judged, *(work.shown if seed == work.seeds[0] else ())]
        found = {one: np.zeros(4) for one in conditions}
        for condition in (*conditions, *reversed(conditions)):
            found[condition] += run(condition)
        table.append({one: Waited(each[0], each[1], each[2], int(each[3])) for one, each in found.items()})
    snapshots.close()
    return table
