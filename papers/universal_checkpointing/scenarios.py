"""Kinds of decoders and of changes: who goes on (Figures 8 and 9, Table 1)?

DCP is torch.distributed.checkpoint itself, on the trainer's state as its users have it: data ranks' slices as DTensors
and ShardedTensors, tensor ranks' pieces as tensors of their own, since a piece of a fused matrix or of a padded
vocabulary is no even share of anything.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.distributed.fleet import RankFailed
from common.lab.runtime import Observations
from common.training.sharded.dcp import dcp_state
from common.training.sharded.held import snapshot
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.trainer import RankState, Trainer
from papers.universal_checkpointing.averaging import averaged_apart
from papers.universal_checkpointing.native import Described, load_native
from papers.universal_checkpointing.reconfiguration import SECONDS, Bench, Outcome, Source, compared
from papers.universal_checkpointing.training import Ran

Resume = Callable[[Source, Layout, int], Outcome]


@dataclass(frozen=True)
class Scenario:
    """A source layout, a target layout, and what the decoder has (None: as many as heads)."""

    source: Layout
    target: Layout
    other: dict[str, Any] = field(default_factory=dict)

    def trained(self, bench: Bench) -> Source:
        """The two-layer decoder that is saved, after few steps."""
        config = bench.config
        other = {name: config.heads if value is None else value for name, value in self.other.items()}
        job = bench.job(self.source, layers=2, **other)
        return bench.source(job, config.short_steps, config.short_further)


CASES = {
    "gpt": Scenario(Layout(2, 2), Layout(data=2, zero=1), {"gated": False, "kv_heads": None}),
    "grouped": Scenario(Layout(2, 1, 2, 1), Layout(1, 2, 2, 2), {"tied": False}),
    "experts": Scenario(Layout(2, 1, 2, 2), Layout(pipeline=2), {"experts": 4}),
    "half the nodes": Scenario(Layout(2, 2, 2, 1), Layout(2, 2, 1, 1)),
}
SCENARIOS = {
    "DP 4 to 2": Scenario(Layout(1, 1, 4, 1), Layout(1, 1, 2, 1)),
    "switch to ZeRO-3": Scenario(Layout(1, 1, 2, 1), Layout(1, 1, 2, 3)),
    "TP 2 to PP 2": Scenario(Layout(2, 1, 2, 1), Layout(1, 2, 2, 1)),
    "experts, TP 2 to 1": Scenario(Layout(2, 1, 2, 1), Layout(1, 1, 2, 1), {"experts": 4}),
}


def through_dcp(rank: int, world: int, job: Job, source: str, folder: str, steps: int, saves: bool) -> Ran:
    """Load a distributed checkpoint of this layout and save it with DCP; or load what DCP saved, and train on.

    Steps and data position travel beside DCP.
    """
    import torch.distributed.checkpoint as dcp

    # its planner says of every ShardedTensor that DTensors are to be preferred
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.checkpoint")
    described = Described.read(Path(source))
    progress = described.progress
    recipe = replace(job.recipe, adam=progress.adam, rate_at=progress.schedule)
    first = recipe if saves else replace(recipe, seed=recipe.seed + 1_000)
    trainer, data = Trainer(job.shape, form_groups(job.layout, rank), first), Data(job)
    if saves:
        load_native(Path(source), trainer)
        dcp.save(dcp_state(trainer), checkpoint_id=folder, no_dist=world == 1)
        return Ran((), snapshot(trainer, progress.consumed))
    state = trainer.state()
    dcp.load(dcp_state(trainer), checkpoint_id=folder, no_dist=world == 1)
    trainer.load(RankState(progress.step, state.fragments, state.rng))
    data.consumed = progress.consumed
    held = snapshot(trainer, data.consumed)
    return Ran(tuple(trainer.step(data.batch()) for _ in range(steps)), held)


def by_dcp(bench: Bench, source: Source, target: Layout, steps: int) -> Outcome:
    """torch.distributed.checkpoint, saved by the source's layout and loaded by the target's."""
    folder, job = f"{source.folder} dcp", replace(source.job, layout=target)
    try:
        if not Path(folder).exists():
            there = (source.job, str(source.folder), folder, 0, True)
            bench.processes.run(through_dcp, source.job.layout.world, there, SECONDS)
        arguments = (job, str(source.folder), folder, steps, False)
        ranks = bench.processes.run(through_dcp, target.world, arguments, SECONDS)
    except RankFailed as failure:
        return Outcome.failed(failure)
    return compared(source, ranks, job, generators=False)


def resume_cases(bench: Bench, seen: Observations) -> None:
    """Kinds of decoders, half of the nodes lost, replicas that trained apart: the share that goes on exactly."""
    config, average, good = bench.config, bench.config.average, 0
    for name in config.cases:
        if name == "trained apart":
            job = bench.job(Layout())
            key = ("universal_checkpointing: apart", job, average)
            good += bench.lab.once(key, lambda job=job: averaged_apart(bench.processes, job, average)) == 0  # type: ignore[misc]
        else:
            outcome = bench.resumed(CASES[name].trained(bench), CASES[name].target, config.short_further)
            good += outcome.continues and outcome.differing == 0
    seen.add("cases_resumed", good / len(config.cases))
    seen.add("cases_tried", len(config.cases))


def resume_scenarios(bench: Bench, seen: Observations) -> None:
    """Who goes on in which scenario."""
    config = bench.config
    systems: dict[str, Resume] = {"ucp": bench.resumed, "dcp": partial(by_dcp, bench)}
    wanted = {name: resumed for name, resumed in systems.items() if bench.lab.wants(f"scenarios_{name}")}
    passed = dict.fromkeys(wanted, 0)
    for name, one in ((name, SCENARIOS[name]) for name in SCENARIOS if name in config.scenarios):
        source = one.trained(bench)
        for system, resumed in wanted.items():
            target = one.source if config.same_layout else one.target
            outcome = resumed(source, target, config.short_further)
            passed[system] += outcome.continues
            seen.add("scenario_gap", outcome.gap, system=system, scenario=name, error=outcome.error)
    for system, good in passed.items():
        seen.add(f"scenarios_{system}", good / len(config.scenarios))
    seen.add("scenarios_tried", len(config.scenarios))
