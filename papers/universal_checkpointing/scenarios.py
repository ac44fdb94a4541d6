"""Four reconfigurations, three systems: who goes on (Figure 8, Table 1)?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.distributed.fleet import Fleet, RankFailed
from common.training.sharded.layout import Layout
from papers.universal_checkpointing.baselines import mcp_accepts, mcp_rules, through_dcp
from papers.universal_checkpointing.patterns import Rule
from papers.universal_checkpointing.reconfiguration import (
    AGAIN,
    SECONDS,
    Outcome,
    Source,
    compared,
    reconfigured,
)
from papers.universal_checkpointing.storage import CheckpointError


@dataclass(frozen=True)
class Scenario:
    """A source layout and a target layout; experts: of a mixture instead of one MLP."""

    name: str
    source: Layout
    target: Layout
    experts: int = 0


SCENARIOS = (
    Scenario("DP 4 to 2", Layout(1, 1, 4, 1), Layout(1, 1, 2, 1)),
    Scenario("switch to ZeRO-3", Layout(1, 1, 2, 1), Layout(1, 1, 2, 3)),
    Scenario("TP 2 to PP 2", Layout(2, 1, 2, 1), Layout(1, 2, 2, 1)),
    Scenario("experts, TP 2 to 1", Layout(2, 1, 2, 1), Layout(1, 1, 2, 1), experts=4),
)


def by_universal(
    processes: Fleet, source: Source, target: Layout, rules: tuple[Rule, ...], steps: int
) -> Outcome:
    return reconfigured(processes, source, target, rules, steps)


def by_mcp(processes: Fleet, source: Source, target: Layout, steps: int) -> Outcome:
    """A converter that knows global shapes alone."""
    try:
        mcp_accepts(source.job.layout, target)
    except CheckpointError as error:
        return Outcome(1.0, AGAIN, error=f"CheckpointError: {error}")
    return reconfigured(processes, source, target, mcp_rules(source.job.shape), steps)


def by_dcp(processes: Fleet, source: Source, target: Layout, steps: int, tensors: bool = False) -> Outcome:
    """torch.distributed.checkpoint, saved by the source's layout and loaded by the target's."""
    folder = f"{source.folder} dcp {tensors}"
    job = replace(source.job, layout=target)
    try:
        if not Path(folder).exists():
            there = (source.job, str(source.folder), folder, 0, tensors, True)
            processes.run(through_dcp, source.job.layout.world, there, SECONDS)
        arguments = (job, str(source.folder), folder, steps, tensors, False)
        ranks = processes.run(through_dcp, target.world, arguments, SECONDS)
    except RankFailed as failure:
        lines = [line for line in str(failure).splitlines() if "Error" in line or "Exception" in line]
        return Outcome(1.0, AGAIN, error=(lines or [str(failure)])[-1])
    return compared(source, ranks, job, generators=False)


def passed(outcomes: Sequence[Outcome]) -> float:
    """The share that goes on."""
    return sum(outcome.continues for outcome in outcomes) / len(outcomes)
