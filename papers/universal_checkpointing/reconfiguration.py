"""One source checkpoint, another layout: does training go on as if nothing had happened?

A source trains, saves and trains on; each target resumes what was saved and trains as far. Compared are the state after
loading (weights, both moments, steps, data position, generators; to the last bit) and the losses of the same steps.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.distributed.fleet import Fleet, RankFailed
from common.distributed.rooms import Room
from common.lab.runtime import Observations, Runtime
from common.training.sharded.held import State, differing, generators_kept, whole_state
from common.training.sharded.job import LETTERS, Job, Schedule
from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe
from common.training.sharded.zero import Adam
from papers.universal_checkpointing.averaging import averaged_apart
from papers.universal_checkpointing.config import Config, is_slow
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.loading import AS_MEANT, How
from papers.universal_checkpointing.native import Described
from papers.universal_checkpointing.patterns import Rule
from papers.universal_checkpointing.training import Ran, go_on, train

SECONDS = 240.0  # that a group may take
AGAIN = math.log(LETTERS)  # nats: how much a run is behind that cannot resume and begins again (at most)
VISIBLE = 0.01  # nats that a reader of the paper's figures could tell


@dataclass(frozen=True)
class Source:
    """A run that was saved after `until` steps and went on; its folder lives as long as this."""

    job: Job
    until: int
    room: Room
    ranks: tuple[Ran, ...]
    state: State

    @property
    def folder(self) -> Path:
        return self.room.path / "checkpoint"

    @property
    def losses(self) -> tuple[float, ...]:
        return self.ranks[0].losses

    def stating(self, rules: tuple[Rule, ...]) -> Path:
        """The same checkpoint with these rules in it: other description, same rank files."""
        stated = self.room.path / f"stating {abs(hash(rules))}"
        described = replace(Described.read(self.folder), rules=rules)
        stated.mkdir(exist_ok=True)
        for name in described.files():
            with contextlib.suppress(FileExistsError):
                os.link(self.folder / name, stated / name)
        described.write(stated)
        return stated


def trained(processes: Fleet, lab: Runtime, job: Job, until: int, further: int) -> Source:
    """A source: `until` steps, a checkpoint, and `further` steps for comparison. Trained once for all arms of a run."""

    def train_it() -> Source:
        room = Room("paperlab-ucp-")
        arguments = (job, until, str(room.path / "checkpoint"), further, None)
        ranks = processes.run(train, job.layout.world, arguments, SECONDS)
        return Source(job, until, room, tuple(ranks), state_of(ranks, job))

    return lab.once(("universal_checkpointing: source", job, until, further), train_it)


def state_of(ranks: Sequence[Ran], job: Job) -> State:
    return whole_state([ran.held for ran in ranks], job.shape, job.layout)


@dataclass(frozen=True)
class Outcome:
    """What became of a resumption. differing: share of state elements; gap: largest difference of losses, nats."""

    differing: float
    gap: float
    losses: tuple[float, ...] = ()
    converted: bool = False
    error: str = ""

    @property
    def continues(self) -> bool:
        """Whether the curve goes on: no error, and losses as close as a reader of the figure could tell."""
        return not self.error and self.gap < VISIBLE


def reconfigured(
    processes: Fleet, source: Source, layout: Layout, rules: tuple[Rule, ...], steps: int, how: How = AS_MEANT
) -> Outcome:
    """Resume a source under another layout, for so many steps (at most as many as it went on itself)."""
    folder = source.stating(rules)
    universal = folder.with_name(f"{folder.name} universal strip {how.strip_pad}")
    job = replace(source.job, layout=layout)
    try:
        ranks = processes.run(go_on, layout.world, (job, str(folder), str(universal), steps, how), SECONDS)
    except RankFailed as failure:
        return Outcome(1.0, AGAIN, error=str(failure).strip().splitlines()[-1])
    return compared(source, ranks, job)


def resumed(
    processes: Fleet,
    lab: Runtime,
    source: Source,
    layout: Layout,
    rules: tuple[Rule, ...],
    steps: int,
    how: How,
) -> Outcome:
    """`reconfigured`, once for all arms of a run."""
    key = ("universal_checkpointing: resumed", source.job, source.until, layout, rules, steps, how)
    return lab.once(key, lambda: reconfigured(processes, source, layout, rules, steps, how))


def compared(source: Source, ranks: Sequence[Ran], job: Job, generators: bool = True) -> Outcome:
    """A resumption's state and losses beside its source's; generators: whether they must have come along."""
    try:
        share = differing(state_of(ranks, job), source.state)
    except AssertionError as error:  # copies that differ
        return Outcome(1.0, AGAIN, error=f"AssertionError: {error}")
    before, after = source.ranks[0].held, ranks[0].held
    if (before.step, before.consumed) != (after.step, after.consumed):
        share = 1.0
    if generators and not generators_kept([r.held for r in source.ranks], [r.held for r in ranks]):
        share = 1.0
    losses = ranks[0].losses
    reference = source.losses[source.until : source.until + len(losses)]
    gap = max((abs(a - b) for a, b in zip(losses, reference, strict=True)), default=0.0)
    return Outcome(share, gap, losses, ranks[0].converted)


# what is trained and how it is resumed, by the config


def shape_of(config: Config, **other: Any) -> Shape:
    sizes = (LETTERS, config.hidden, config.layers, config.heads, config.kv_heads, config.mlp, config.context)
    return replace(Shape(*sizes), **other)


def job_of(config: Config, text: str | None, layout: Layout, seed: int, shape: Shape | None = None) -> Job:
    recipe = Recipe(
        seed=seed,
        adam=Adam(rate=config.rate),
        rate_at=Schedule(warmup=10, total=400),
        dtype=getattr(torch, config.dtype),
    )
    return Job(shape or shape_of(config), layout, recipe, config.rows, text)


def rules_of(config: Config, shape: Shape) -> tuple[Rule, ...]:
    return decoder_rules(shape, config.fused, config.row_parallel)


def how_of(config: Config) -> How:
    return How(config.lazy, config.strip_pad, config.optimiser)


def name_of(layout: Layout) -> str:
    return f"TP{layout.tensor} PP{layout.pipeline} DP{layout.data} ZeRO-{layout.zero}"


# what is observed


@dataclass(frozen=True)
class Resumption:
    """A resumption to observe: `run` is what it belongs to, `steps` what follows it."""

    run: str
    source: Source
    target: Layout
    steps: int

    def named(self) -> str:
        return name_of(self.target if self.run == "one to many" else self.source.job.layout)


def resumptions(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seed: int, run: str, losses: bool
) -> list[Resumption]:
    """One source and every target (Figure 7a), or every source and one target (Figure 7b).

    Slow layouts load, in the first seed, and train on only where the config says so.
    """
    one = run == "one to many"
    found = []
    for layout in config.targets if one else config.sources:
        loads_alone = is_slow(layout) and not config.slow_curves
        if loads_alone and seed != lab.seeds[0]:
            continue
        saves, loads = (config.source, layout) if one else (layout, config.target)
        steps = (config.steps, config.further) if one else (config.sources_steps, config.sources_further)
        if loads_alone and not one:
            steps = (2, 0)
        source = trained(processes, lab, job_of(config, text, Layout(*saves), seed), *steps)
        found.append(Resumption(run, source, Layout(*loads), 0 if loads_alone or not losses else steps[1]))
    return found


def resume_all(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seed: int, run: str, seen: Observations
) -> None:
    """States and losses of all resumptions of a seed, and curves of the first; the worst losses of those that go on."""
    slug = run.replace(" ", "_")
    gone_on: dict[int, list[float]] = {}  # gaps, by steps taken
    for one in resumptions(config, lab, processes, text, seed, run, lab.wants(f"loss_gap_{slug}")):
        rules = rules_of(config, one.source.job.shape)
        outcome = resumed(processes, lab, one.source, one.target, rules, one.steps, how_of(config))
        seen.add("resumed_differs", outcome.differing, seed, run=run, layout=one.named())
        if one.steps:
            seen.add("resumed_gap", outcome.gap, seed, run=run, layout=one.named(), error=outcome.error)
            taken = (
                one.steps if outcome.error else len(outcome.losses)
            )  # what can't resume is as far behind as can be
            gone_on.setdefault(taken, []).append(outcome.gap)
        if one.steps and seed == lab.seeds[0]:
            for step, loss in enumerate(outcome.losses):
                seen.add("curve", loss, seed, run=run, layout=one.named(), step=one.source.until + step)
            for step, loss in enumerate(one.source.losses):
                seen.add("source_curve", loss, seed, run=run, layout=one.named(), step=step)
    if gone_on:
        seen.add(f"loss_gap_{slug}", max(map(max, gone_on.values())), seed)
        before, after = (
            ("steps_before", "steps_after")
            if run == "one to many"
            else ("sources_steps", "sources_steps_after")
        )
        seen.add(before, config.steps if run == "one to many" else config.sources_steps, seed)
        seen.add(after, min(gone_on), seed)


CASES: dict[
    str, tuple[dict[str, Any], list[int], list[int]]
] = {  # a decoder, the layout that saves, the layout that resumes
    "gpt": ({"gated": False, "kv_heads": None}, [2, 2, 1, 0], [1, 1, 2, 1]),
    "grouped": ({"tied": False}, [2, 1, 2, 1], [1, 2, 2, 2]),
    "experts": ({"experts": 4}, [2, 1, 2, 2], [1, 2, 1, 0]),
    "half the nodes": ({}, [2, 2, 2, 1], [2, 2, 1, 1]),
}


def resume_cases(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seen: Observations
) -> None:
    """Kinds of decoders, half of the nodes lost, and replicas that trained apart: the share that goes on exactly."""
    good = 0
    for name in config.cases:
        if name == "trained apart":
            job = job_of(config, text, Layout(), 0)
            key = ("universal_checkpointing: apart", job, config.average)
            share = lab.once(key, lambda job=job: averaged_apart(processes, job, config.average))  # type: ignore[misc]
            outcome = Outcome(share, 0.0)
        else:
            other, before, after = CASES[name]
            sizes = {"layers": 2, **{k: config.heads if v is None else v for k, v in other.items()}}
            shape = shape_of(config, **sizes)
            job = job_of(config, text, Layout(*before), 0, shape)
            source = trained(processes, lab, job, config.cases_steps, config.cases_further)
            rules = rules_of(config, shape)
            how, further = how_of(config), config.cases_further
            outcome = resumed(processes, lab, source, Layout(*after), rules, further, how)
        seen.add("case_gap", outcome.gap, case=name, error=outcome.error)
        seen.add("case_differs", outcome.differing, case=name)
        good += outcome.continues and outcome.differing == 0
    seen.add("cases_resumed", good / len(config.cases))
    seen.add("cases_tried", len(config.cases))


def resume_unchanged(
    config: Config, lab: Runtime, processes: Fleet, text: str | None, seen: Observations
) -> None:
    """Conversions in a resumption under the layout that saved."""
    job = job_of(config, text, Layout(*config.source), lab.seeds[0])
    source = trained(processes, lab, job, config.steps, config.further)
    outcome = reconfigured(processes, source, job.layout, rules_of(config, job.shape), 0, how_of(config))
    seen.add("needless_conversions", int(outcome.converted))
    seen.add("same_layout_differs", outcome.differing)
