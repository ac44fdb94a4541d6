"""What updates and snapshots wait for: seconds beside the seconds that copies take, by interval and way of copying."""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median

import numpy as np

from common.distributed.fleet import Fleet
from common.distributed.turns import together
from common.training.sharded.job import Data, Job
from papers.in_memory_ft.recovery import Node, Nodes
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot import Saving, Snapshots
from papers.in_memory_ft.snapshot_process import Seat, Switches
from papers.in_memory_ft.training_job import Rank, SavedJob, run_job

COPY_SHARE = 0.8  # of a step: how long the copy of a shard takes here
SPARE = 1.25  # times the steps of copy and parity lie between two snapshots, so that none waits for the one before
WARM, TIMED = 5, 25  # steps before a step is timed, and timed: few would say what else the machine did


def interval_that_fits(rates: Rates) -> int:
    """Steps between two snapshots in which the copy and the parity of one are through, with a quarter to spare."""
    return ceil(SPARE * COPY_SHARE * (1 + rates.copy / rates.network))


@dataclass(frozen=True)
class Condition:
    """A snapshot every so many steps, its copy "bucketed" or "whole" beside them, or "synchronous"."""

    mode: str
    every: int


Conditions = dict[int, tuple[Condition, ...]]  # by seed


@dataclass(frozen=True)
class Waited:
    """Seconds of some steps on one rank: of waiting, of copying, of all; and how many snapshots were begun."""

    waited: float
    copied: float
    seconds: float
    snapshots: float


def plain_step(fleet: Fleet, job: Job) -> tuple[float, int]:
    """Median seconds of a step without snapshots, and bytes of the state."""
    report = run_job(fleet, SavedJob(job, WARM + TIMED)).reports[0]
    return median(report.seconds[WARM:]), report.state_bytes


def waits(
    fleet: Fleet,
    job: Job,
    plain: tuple[float, int],
    table: Conditions,
    steps: int,
    rates: Rates,
    folder: Path,
) -> list[dict[Condition, Waited]]:
    """By seed, the sums of each of its conditions' two stretches of `steps`, of the rank that waited most.

    plain: what `plain_step` says. table: conditions by seed, met there and back; a seed is another order of rows.
    rates: of the nodes; only their proportions count, for the copy of a shard is made to take COPY_SHARE of a step.
    """
    step, state_bytes = plain
    slower = rates.copy / (state_bytes / job.layout.data / (COPY_SHARE * step))
    with Nodes(fleet, job.layout, folder, Switches(), rates.slower(slower)) as nodes:
        tables = fleet.run(_rank, job.layout.world, (job, table, steps, dict(nodes.seats)), seconds=600)
    return [
        {one: max((rank[one] for rank in ranks), key=lambda row: row.waited) for one in ranks[0]}
        for ranks in zip(*tables, strict=True)
    ]


def _rank(
    rank: int, world: int, job: Job, table: Conditions, steps: int, seats: dict[Node, Seat]
) -> list[dict[Condition, Waited]]:
    own = Rank(rank, job)
    saving = Saving(1, max(4096, own.state.nbytes // world // 16), shards=world)
    own.snapshots = snapshots = Snapshots(seats[own.node], saving, own.state)
    version = 0

    def stretch(condition: Condition) -> None:
        """Every snapshot has its interval's steps in here, and what is late then is waited for and counted."""
        nonlocal version
        bucket = own.state.nbytes if condition.mode == "whole" else saving.bucket
        snapshots.saving = replace(saving, bucket=bucket, synchronous=condition.mode == "synchronous")
        for step in range(steps):
            if step % condition.every == 0:
                version += 1
                snapshots.after_step(version, 0, own.header)
            own.step()
        snapshots.settle()

    def timed(condition: Condition) -> np.ndarray:
        """The fields of Waited."""
        begun = snapshots.waited, snapshots.copy_seconds, 0.0, len(snapshots.copied_bytes)
        seconds = together(world, lambda: stretch(condition))
        ended = snapshots.waited, snapshots.copy_seconds, seconds, len(snapshots.copied_bytes)
        return np.subtract(ended, begun)

    stretch(Condition("bucketed", 1))
    found = []
    for seed, conditions in table.items():
        own.rows = Data(replace(job, recipe=replace(job.recipe, seed=seed)))
        sums = {one: np.zeros(4) for one in conditions}
        for condition in (*conditions, *reversed(conditions)):
            sums[condition] += timed(condition)
        found.append({one: Waited(*each.tolist()) for one, each in sums.items()})
    snapshots.close()
    return found
