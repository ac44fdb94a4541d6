"""One source checkpoint, another layout: does training go on as if nothing had happened?

A source trains, saves and trains on; each target resumes what was saved and trains as far. Compared are the state after
loading (weights, both moments, steps, data position, generators; to the last bit) and the losses of the same steps.
"""

import contextlib
import math
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.distributed.fleet import Fleet, RankFailed
from common.training.sharded.layout import Layout
from papers.universal_checkpointing.loading import AS_MEANT, How
from papers.universal_checkpointing.native import Described
from papers.universal_checkpointing.patterns import Rule
from papers.universal_checkpointing.training import (
    LETTERS,
    Job,
    Ran,
    State,
    differing,
    generators_kept,
    go_on,
    train,
    whole_state,
)

SECONDS = 240.0  # that a group may take
AGAIN = math.log(LETTERS)  # nats: how much a run is behind that cannot resume and begins again (at most)


@dataclass(frozen=True)
class Source:
    """A run that was saved after `until` steps and went on; its folder lives as long as this."""

    job: Job
    until: int
    room: "tempfile.TemporaryDirectory[str]"
    ranks: tuple[Ran, ...]
    state: State

    @property
    def folder(self) -> Path:
        return Path(self.room.name) / "checkpoint"

    @property
    def losses(self) -> tuple[float, ...]:
        return self.ranks[0].losses

    def stating(self, rules: tuple[Rule, ...]) -> Path:
        """The same checkpoint with these rules in it: other description, same rank files."""
        stated = Path(self.room.name) / f"stating {abs(hash(rules))}"
        described = replace(Described.read(self.folder), rules=rules)
        stated.mkdir(exist_ok=True)
        for name in described.files():
            with contextlib.suppress(FileExistsError):
                os.link(self.folder / name, stated / name)
        described.write(stated)
        return stated


_trained: dict[tuple[Job, int, int], Source] = {}  # a source has no switch in it: controls share it
_one_at_a_time: defaultdict[tuple[Job, int, int], threading.Lock] = defaultdict(threading.Lock)


def trained(processes: Fleet, job: Job, until: int, further: int) -> Source:
    """A source: `until` steps, a checkpoint, and `further` steps for comparison. Trained once, whoever asks."""
    key = (job, until, further)
    with _one_at_a_time[key]:
        if key in _trained:
            return _trained[key]
        room = tempfile.TemporaryDirectory(prefix="paperlab-ucp-")
        folder = str(Path(room.name) / "checkpoint")
        ranks = processes.run(train, job.layout.world, (job, until, folder, further, None), SECONDS)
        found = Source(job, until, room, tuple(ranks), whole_state(ranks, job.shape, job.layout))
        _trained[key] = found
        return found


def forget() -> None:
    """Let go of all sources and their folders."""
    for source in _trained.values():
        source.room.cleanup()
    _trained.clear()


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


VISIBLE = 0.01  # nats


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


def compared(source: Source, ranks: Sequence[Ran], job: Job, generators: bool = True) -> Outcome:
    """A resumption's state and losses beside its source's; generators: whether they must have come along."""
    try:
        share = differing(whole_state(ranks, job.shape, job.layout), source.state)
    except AssertionError as error:  # copies that differ
        return Outcome(1.0, AGAIN, error=f"AssertionError: {error}")
    before, after = source.ranks[0].held, ranks[0].held
    if (before.step, before.consumed) != (after.step, after.consumed):
        share = 1.0
    if generators and not generators_kept(source.ranks, ranks):
        share = 1.0
    losses = ranks[0].losses
    reference = source.losses[source.until : source.until + len(losses)]
    gap = max((abs(a - b) for a, b in zip(losses, reference, strict=True)), default=0.0)
    return Outcome(share, gap, losses, ranks[0].converted)
