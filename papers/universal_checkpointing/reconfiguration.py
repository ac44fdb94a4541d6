"""One source checkpoint, another layout: does training go on as if nothing had happened?

A source trains, saves and trains on; each target resumes what was saved and trains as far. Compared are the state after
loading (weights, both moments, steps, data position, generators; to the last bit) and the losses of the same steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.distributed.fleet import Fleet, RankFailed
from common.distributed.rooms import Room
from common.lab.runtime import Observations, Runtime
from common.training.sharded.held import differing, generators_kept, whole_state
from common.training.sharded.job import LETTERS, Job, Schedule
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe
from common.training.sharded.zero import Adam
from papers.universal_checkpointing.config import Config, is_slow
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.loading import AS_MEANT, How
from papers.universal_checkpointing.native import Described
from papers.universal_checkpointing.patterns import Rule
from papers.universal_checkpointing.training import Ran, go_on, train

SECONDS = 240.0  # that a group may take
AGAIN = math.log(LETTERS)  # nats: how much a run is behind that cannot resume and begins again (at most)
VISIBLE = 0.01  # nats that a reader of the paper's figures could tell
RUNS = {"one to many": "", "many to one": "sources_"}  # Figures 7a and 7b; how their floors are called


@dataclass(frozen=True)
class Source:
    """A run that was saved after `until` steps and went on; its folder lives as long as this."""

    job: Job
    until: int
    room: Room
    ranks: tuple[Ran, ...]

    @property
    def folder(self) -> Path:
        return self.room.path / "checkpoint"

    @property
    def losses(self) -> tuple[float, ...]:
        return self.ranks[0].losses


def trained(processes: Fleet, lab: Runtime, job: Job, until: int, further: int) -> Source:
    """A source: `until` steps, a checkpoint, and `further` steps for comparison. Trained once for all arms of a run."""

    def train_it() -> Source:
        room = Room("paperlab-ucp-")
        arguments = (job, until, str(room.path / "checkpoint"), further, None)
        return Source(job, until, room, tuple(processes.run(train, job.layout.world, arguments, SECONDS)))

    return lab.once(("universal_checkpointing: source", job, until, further), train_it)


@dataclass(frozen=True)
class Outcome:
    """What became of a resumption. differing: share of state elements; gap: largest difference of losses, nats."""

    differing: float
    gap: float
    losses: tuple[float, ...] = ()
    converted: bool = False
    error: str = ""

    @classmethod
    def failed(cls, error: Exception) -> "Outcome":
        return cls(1.0, AGAIN, error=str(error).strip().splitlines()[-1])

    @property
    def continues(self) -> bool:
        """Whether the curve goes on: no error, and losses as close as a reader of the figure could tell."""
        return not self.error and self.gap < VISIBLE


def reconfigured(
    processes: Fleet, source: Source, layout: Layout, rules: tuple[Rule, ...], steps: int, how: How = AS_MEANT
) -> Outcome:
    """Resume a source under another layout, for so many steps (at most as many as it went on itself).

    The checkpoint states these rules from then on; its rank files stay. One resumption of a source at a time.
    """
    folder = source.folder
    replace(Described.read(folder), rules=rules).write(folder)
    universal = folder.with_name(f"universal {hash(rules)} strip {how.strip_pad}")
    job = replace(source.job, layout=layout)
    try:
        ranks = processes.run(go_on, layout.world, (job, str(folder), str(universal), steps, how), SECONDS)
    except RankFailed as failure:
        return Outcome.failed(failure)
    return compared(source, ranks, job)


def compared(source: Source, ranks: Sequence[Ran], job: Job, generators: bool = True) -> Outcome:
    """A resumption's state and losses beside its source's; generators: whether they must have come along."""
    before, after = [ran.held for ran in source.ranks], [ran.held for ran in ranks]
    try:
        share = differing(
            whole_state(after, job.shape, job.layout), whole_state(before, job.shape, source.job.layout)
        )
    except AssertionError as error:  # copies that differ
        return Outcome.failed(error)
    if (before[0].step, before[0].consumed) != (after[0].step, after[0].consumed):
        share = 1.0
    if generators and not generators_kept(before, after):
        share = 1.0
    losses = ranks[0].losses
    reference = source.losses[source.until : source.until + len(losses)]
    gap = max((abs(a - b) for a, b in zip(losses, reference, strict=True)), default=0.0)
    return Outcome(share, gap, losses, ranks[0].converted)


def name_of(layout: Layout) -> str:
    return f"TP{layout.tensor} PP{layout.pipeline} DP{layout.data} ZeRO-{layout.zero}"


@dataclass(frozen=True)
class Bench:
    """What trains and resumes by a config; text None: the chain of letters."""

    config: Config
    lab: Runtime
    processes: Fleet
    text: str | None = None

    def job(self, layout: Layout, seed: int = 0, **other: Any) -> Job:
        """other: what its decoder has that the config's has not."""
        config = c = self.config
        shape = Shape(LETTERS, c.hidden, c.layers, c.heads, c.kv_heads, c.mlp, c.context)
        schedule, dtype = Schedule(warmup=10, total=400), getattr(torch, config.dtype)
        recipe = Recipe(seed=seed, adam=Adam(rate=config.rate), rate_at=schedule, dtype=dtype)
        return Job(replace(shape, **other), layout, recipe, config.rows, self.text)

    def source(self, job: Job, until: int, further: int) -> Source:
        return trained(self.processes, self.lab, job, until, further)

    def resumed(self, source: Source, layout: Layout, steps: int) -> Outcome:
        """`reconfigured` as the config says, once for all arms of a run that say the same."""
        config = self.config
        rules = decoder_rules(source.job.shape, config.fused, config.row_parallel)
        how = How(config.lazy, config.strip_pad, config.optimiser)
        key = ("universal_checkpointing: resumed", source.job, source.until, layout, rules, steps, how)
        return self.lab.once(key, lambda: reconfigured(self.processes, source, layout, rules, steps, how))

    def curves(self, run: str, seed: int, seen: Observations) -> None:
        """One source and every target (Figure 7a), or every source and one target (Figure 7b).

        States of all resumptions, losses of those that go on, and of the worst; curves of the first seed. Slow
        layouts load in the first seed, and do not train on.
        """
        config, one, worst = self.config, run == "one to many", f"loss_gap_{run.replace(' ', '_')}"
        first, gaps = seed == self.lab.seeds[0], []
        for layout in config.targets if one else config.sources:
            loads_alone = is_slow(layout)
            if loads_alone and not first:
                continue
            saves, loads = (config.source, layout) if one else (layout, config.target)
            until, further = (2, 0) if loads_alone and not one else (config.steps, config.further)
            source = self.source(self.job(Layout(*saves), seed), until, further)
            steps = further if self.lab.wants(worst) and not loads_alone else 0
            outcome, at = self.resumed(source, Layout(*loads), steps), name_of(Layout(*layout))
            seen.add("resumed_differs", outcome.differing, seed, run=run, layout=at)
            if not steps:
                continue
            seen.add("resumed_gap", outcome.gap, seed, run=run, layout=at, error=outcome.error)
            gaps.append(outcome.gap)
            if first:
                for step, loss in enumerate(outcome.losses):
                    seen.add("curve", loss, seed, run=run, layout=at, step=source.until + step)
                for step, loss in enumerate(source.losses):
                    seen.add("source_curve", loss, seed, run=run, layout=at, step=step)
        if gaps:
            seen.add(worst, max(gaps), seed)
            seen.add(f"{RUNS[run]}steps_before", config.steps, seed)
            seen.add(f"{RUNS[run]}steps_after", config.further, seed)

    def unchanged(self, seen: Observations) -> None:
        """A resumption under the layout that saved: whether it converted, or did not even come back as it was."""
        config = self.config
        job = self.job(Layout(*config.source), self.lab.seeds[0])
        source = self.source(job, config.steps, config.further)
        outcome = self.resumed(source, source.job.layout, 0)
        seen.add("needless_conversions", int(outcome.converted or outcome.differing > 0))
