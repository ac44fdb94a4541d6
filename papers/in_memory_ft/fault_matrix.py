"""Who dies when, and what training then goes on from: each row a run with a blow beside one that nothing disturbs."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.distributed.faults import Fault, Kind, Plan
from common.distributed.flat_state import shard
from common.distributed.fleet import Fleet
from common.training.sharded.layout import Layout
from papers.in_memory_ft.recovery import Start
from papers.in_memory_ft.snapshot_process import Switches
from papers.in_memory_ft.training_job import Blow, Outcome, SavedJob, run_job

SNAPSHOTS = 4  # begun when the blow strikes: the last one is incomplete, and training goes on from the third
LOSSES_AFTER = 20  # that must be equal


@dataclass(frozen=True)
class Scenario:
    """A row of the table. lost, when: in words. blow: from buckets a snapshot. source: what must be recovered from."""

    name: str
    layout: Layout
    lost: str
    when: str
    blow: Callable[[int], Blow]
    source: str


def scenarios(group: int) -> tuple[Scenario, ...]:
    """All rows; group: data ranks of those with one stage. ValueError for less than two."""
    if group < 2:
        raise ValueError(f"a group of {group} has nobody to lose")
    one_stage, stages = Layout(data=group), Layout(data=2, pipeline=2)
    last, parity = group - 1, group - 1
    between = "between snapshots"

    def torn(buckets: int) -> Blow:
        turn = (SNAPSHOTS - 1) * buckets + 1
        return Blow(
            Plan((Fault(2, "bucket", "kill", turn + 1), Fault(2, "bucket", "slow", turn, seconds=1.0)))
        )

    def halfway(buckets: int) -> Blow:
        turn = (SNAPSHOTS - 1) * buckets + max(1, buckets // 2)
        return Blow(Plan((Fault(last, "bucket", "kill", turn),)))

    def settled(kind: Kind = "kill", **more: Any) -> Callable[[int], Blow]:
        """A blow when the version before is known to be complete everywhere, and the next one begins."""
        return lambda buckets: Blow(Plan((Fault(1, "settled", kind, SNAPSHOTS, seconds=0.0),)), **more)

    damaged = (((0, last if group > 2 else 0), parity),)
    return (
        Scenario("trainer", one_stage, "a trainer", between, settled(), "memory"),
        Scenario(
            "node", one_stage, "a node: trainer, snapshot process", between, settled(nodes=((0, 1),)), "memory"
        ),
        Scenario("two nodes", one_stage, "two nodes of a group", between, settled(nodes=((0, 0), (0, 1))), "disk"),
        Scenario("mid-snapshot", one_stage, "a trainer", "half of its buckets copied", halfway, "memory"),
        Scenario(
            "torn version", stages, "a trainer of stage 1", "stage 0 has the new version, stage 1 has not", torn,
            "memory",
        ),
        Scenario(
            "damaged parity", one_stage, "a node, and four bits of a survivor's parity", between,
            settled(nodes=((0, 1),), damaged=damaged), "disk",
        ),
        Scenario(
            "snapshot process", one_stage, "a snapshot process alone", between,
            settled("slow", nodes=((0, 1),)), "memory",
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What came of a scenario. start: of the last attempt; redone: steps; losses: of the last attempt, by step.

    same_losses, same_states: whether each of them, and of the ranks' digests of weights, moments, generator, step and
    data position, equals the undisturbed run's.
    """

    scenario: Scenario
    start: Start
    redone: int
    losses: dict[int, float]
    same_losses: list[bool]
    same_states: list[bool]

    @property
    def exact(self) -> bool:
        """Everything after the blow is as if it had not been, for twenty losses at least."""
        enough = len(self.same_losses) >= LOSSES_AFTER and len(self.same_states) > 0
        return enough and all(self.same_losses) and all(self.same_states)

    @property
    def as_planned(self) -> bool:
        """Exact, from where the scenario must come back, and damage was reported where there was some."""
        right = self.start.source == self.scenario.source
        return self.exact and right and bool(self.start.reports) == self.scenario.name.startswith("damaged")


def steps_needed(every: int) -> int:
    """Steps of a job whose last twenty come after the version that is recovered."""
    return every * (SNAPSHOTS - 1) + LOSSES_AFTER


def run_scenario(
    fleet: Fleet, scenario: Scenario, saved: SavedJob, calm: Outcome, switches: Switches | None = None
) -> Row:
    """Run a scenario beside a run that nothing happens to, rank by rank.

    saved: with the scenario's layout, a saving, and a folder of its own, which is emptied. RuntimeError where not one
    thing failed.
    """
    assert saved.saving is not None
    shutil.rmtree(saved.folder, ignore_errors=True)
    first, end = shard(calm.reports[0].state_bytes, 0, saved.saving.shards)
    buckets = -(-(end - first) // saved.saving.bucket)
    if buckets < 2:
        raise ValueError(f"a snapshot of {end - first} bytes in one bucket has no middle")
    outcome = run_job(fleet, saved, switches, scenario.blow(buckets))
    if len(outcome.failures) != 1:
        what = "; ".join(map(str, outcome.failures)) or "nothing failed"
        raise RuntimeError(f"scenario {scenario.name!r}: one failure was planned, but: {what}")
    start, losses, expected = outcome.starts[-1], outcome.reports[0].losses, calm.reports[0].losses
    ranks = zip(outcome.reports, calm.reports, strict=True)
    return Row(
        scenario,
        start,
        redone=SNAPSHOTS * saved.saving.every - start.version,
        losses=losses,
        same_losses=[expected[step] == loss for step, loss in losses.items()],
        same_states=[
            one.digests[step] == other.digests[step] for one, other in ranks for step in one.digests
        ],
    )
