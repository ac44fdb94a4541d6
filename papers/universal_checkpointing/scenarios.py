"""Four reconfigurations, two systems: who goes on (Figure 8, Table 1)?

DCP is torch.distributed.checkpoint itself, on the trainer's state as its users have it: data ranks' slices as DTensors
and ShardedTensors, tensor ranks' pieces as tensors of their own, since a piece of a fused matrix or of a padded
vocabulary is no even share of anything.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from common.distributed.fleet import RankFailed
from common.lab.runtime import Observations
from common.training.sharded.dcp import dcp_state, dcp_tensor_state
from common.training.sharded.held import snapshot
from common.training.sharded.job import LETTERS, Data, Job
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.trainer import RankState, Trainer
from papers.universal_checkpointing.native import Described, load_native
from papers.universal_checkpointing.reconfiguration import SECONDS, Bench, Outcome, Source, compared
from papers.universal_checkpointing.training import Ran


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


def through_dcp(
    rank: int, world: int, job: Job, source: str, folder: str, steps: int, tensors: bool, saves: bool
) -> Ran:
    """Load a distributed checkpoint of this layout and save it with DCP; or load what DCP saved, and train on.

    tensors: DTensors over tensor ranks. Steps and data position travel beside DCP.
    """
    import torch.distributed.checkpoint as dcp

    # its planner says of every ShardedTensor that DTensors are to be preferred
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.checkpoint")
    described = Described.read(Path(source))
    progress = described.progress
    recipe = replace(job.recipe, adam=progress.adam, rate_at=progress.schedule)
    first = recipe if saves else replace(recipe, seed=recipe.seed + 1_000)
    trainer, data = Trainer(job.shape, form_groups(job.layout, rank), first), Data(job)
    state_of = dcp_tensor_state if tensors else dcp_state
    if saves:
        load_native(Path(source), trainer)
        dcp.save(state_of(trainer), checkpoint_id=folder, no_dist=world == 1)
        return Ran((), snapshot(trainer, progress.consumed))
    state = trainer.state()
    dcp.load(state_of(trainer), checkpoint_id=folder, no_dist=world == 1)
    trainer.load(RankState(progress.step, state.fragments, state.rng))
    data.consumed = progress.consumed
    held = snapshot(trainer, data.consumed)
    return Ran(tuple(trainer.step(data.batch()) for _ in range(steps)), held)


def by_dcp(bench: Bench, source: Source, target: Layout, steps: int, tensors: bool = False) -> Outcome:
    """torch.distributed.checkpoint, saved by the source's layout and loaded by the target's."""
    folder, job = f"{source.folder} dcp {tensors}", replace(source.job, layout=target)
    try:
        if not Path(folder).exists():
            there = (source.job, str(source.folder), folder, 0, tensors, True)
            bench.processes.run(through_dcp, source.job.layout.world, there, SECONDS)
        arguments = (job, str(source.folder), folder, steps, tensors, False)
        ranks = bench.processes.run(through_dcp, target.world, arguments, SECONDS)
    except RankFailed as failure:
        return Outcome.failed(failure)
    return compared(source, ranks, job, generators=False)


def resume_scenarios(bench: Bench, seen: Observations) -> None:
    """Who goes on in which scenario."""
    config, lab = bench.config, bench.lab
    steps, further = config.short_steps, config.short_further
    found: dict[str, list[Outcome]] = {"ucp": [], "dcp": []}
    for one in (one for one in SCENARIOS if one.name in config.scenarios):
        source = bench.source(bench.job(one.source, layers=2, experts=one.experts), steps, further)
        target = one.source if config.same_layout else one.target
        if lab.wants("scenarios_ucp"):
            found["ucp"].append(bench.resumed(source, target, further))
        if lab.wants("scenarios_dcp"):
            found["dcp"].append(by_dcp(bench, source, target, further))
        for system, outcomes in found.items():
            if outcomes:
                gap, error = outcomes[-1].gap, outcomes[-1].error
                seen.add("scenario_gap", gap, system=system, scenario=one.name, error=error)
    for system, outcomes in found.items():
        if outcomes:
            seen.add(f"scenarios_{system}", sum(one.continues for one in outcomes) / len(outcomes))
    seen.add("scenarios_tried", len(config.scenarios))
    if "TP 2 to PP 2" in config.scenarios and lab.wants("scenario_gap"):
        for vocab in (
            LETTERS,
            16 * -(-LETTERS // 16),
        ):  # DCP told of tensor ranks as well; with padding, and without
            source = bench.source(bench.job(Layout(tensor=2), layers=2, vocab=vocab), steps, further)
            last = by_dcp(bench, source, Layout(pipeline=2), further, tensors=True)
            scenario = f"TP 2 to PP 2, {vocab} rows"
            seen.add("scenario_gap", last.gap, system="dcp tensors", scenario=scenario, error=last.error)
