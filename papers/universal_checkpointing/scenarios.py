"""Four reconfigurations, two systems: who goes on (Figure 8, Table 1)?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.distributed.fleet import Fleet, RankFailed
from common.lab.runtime import Observations, Runtime
from common.training.sharded.job import LETTERS
from common.training.sharded.layout import Layout
from papers.universal_checkpointing.baselines import through_dcp
from papers.universal_checkpointing.config import Config
from papers.universal_checkpointing.loading import AS_MEANT
from papers.universal_checkpointing.reconfiguration import (
    AGAIN,
    SECONDS,
    Outcome,
    Source,
    compared,
    job_of,
    resumed,
    rules_of,
    shape_of,
    trained,
)


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
        return Outcome(1.0, AGAIN, error=str(failure).strip().splitlines()[-1])
    return compared(source, ranks, job, generators=False)


def passed(outcomes: Sequence[Outcome]) -> float:
    """The share that goes on."""
    return sum(outcome.continues for outcome in outcomes) / len(outcomes)


def resume_scenarios(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seen: Observations
) -> None:
    """Who goes on in which scenario."""
    found: dict[str, list[Outcome]] = {"ucp": [], "dcp": []}
    for scenario in (scenario for scenario in SCENARIOS if scenario.name in config.scenarios):
        shape = shape_of(config, layers=2, experts=scenario.experts)
        job = job_of(config, text, scenario.source, 0, shape)
        source = trained(processes, lab, job, config.scenarios_steps, config.cases_further)
        target = scenario.source if config.same_layout else scenario.target
        if lab.wants("scenarios_ucp"):
            rules = rules_of(config, shape)
            further = config.cases_further
            found["ucp"].append(resumed(processes, lab, source, target, rules, further, AS_MEANT))
        if lab.wants("scenarios_dcp"):
            found["dcp"].append(by_dcp(processes, source, target, config.cases_further))
        for system, outcomes in found.items():
            if outcomes:
                last = outcomes[-1]
                seen.add("scenario_gap", last.gap, system=system, scenario=scenario.name, error=last.error)
    for system, outcomes in found.items():
        if outcomes:
            seen.add(f"scenarios_{system}", passed(outcomes))
    seen.add("scenarios_tried", len(config.scenarios))
    if config.tensor_dcp and lab.wants("scenario_gap"):
        resume_by_tensors(config, lab, processes, text, seen)


def resume_by_tensors(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seen: Observations
) -> None:
    """DCP told of tensor ranks as well: with a padded vocabulary, and with one that needs no padding."""
    for vocab in (LETTERS, 16 * -(-LETTERS // 16)):
        shape = shape_of(config, layers=2, vocab=vocab)
        job = job_of(config, text, Layout(2, 1, 1, 0), 0, shape)
        source = trained(processes, lab, job, config.scenarios_steps, config.cases_further)
        outcome = by_dcp(processes, source, Layout(1, 2, 1, 0), config.cases_further, tensors=True)
        scenario = f"TP 2 to PP 2, {vocab} rows"
        seen.add("scenario_gap", outcome.gap, system="dcp tensors", scenario=scenario, error=outcome.error)
