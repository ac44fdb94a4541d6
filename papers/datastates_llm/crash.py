"""Training on several ranks with a checkpoint after every update, a kill between two ranks' writes, and a restart.

The victim writes a part of its file of one version, waits until the other ranks' files of that version are whole, and
gets SIGKILL. All ranks then start again from the version that counts, with dropout, so that the random numbers' state
has to come back too, and must go on exactly as a run that nothing happened to.
"""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.fleet import Fleet, RankFailed
from common.distributed.throttled import Device
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import RankState, Recipe, Trainer
from common.training.sharded.zero import Fragment
from papers.datastates_llm.commit import Commit, file_of, latest, newest_file
from papers.datastates_llm.engine import DataStates, Hook
from papers.datastates_llm.file_format import load, tensors_of
from papers.datastates_llm.tiers import Copier, Storage

VICTIM = 1
TENSORS_WRITTEN = 5  # of the victim's last file, when it dies
COPY_BYTES_PER_S = 100e6  # of each rank: a state takes a fraction of a step
STORAGE_BYTES_PER_S = 60e6  # shared by all ranks: writes of several versions are under way at once
SECONDS = 60.0  # after which a job counts as hung


@dataclass(frozen=True)
class Job:
    """What the ranks train. text: tokens. folder: of the checkpoints (None: none are taken). killed_at: a version.

    resume: go on from what the folder holds; commit False: each rank from its own newest file.
    """

    layout: Layout
    shape: Shape
    text: Tensor
    seed: int
    steps: int
    folder: Path | None = None
    storage: Device | None = None
    commit: bool = True
    killed_at: int = 0
    resume: bool = False


@dataclass(frozen=True)
class Trained:
    """A rank's run: the version it began with, and the loss of each step."""

    begun: int
    losses: dict[int, float]


@dataclass(frozen=True)
class Resumed:
    """A run that was killed and went on, beside the one that was not."""

    begun: tuple[int, ...]  # version that each rank began with again
    finished: tuple[int, ...]  # newest version of which each rank's file was whole
    loss_gap: float  # largest difference of a loss, nats


def killed_and_resumed(jobs: Sequence[Job], folder: Path, killed_at: int) -> dict[bool, list[Resumed]]:
    """Each job with a checkpoint a step, a kill at a version and a restart; and without interruption.

    It restarts from the version that counts (True) and, from the same files, from each rank's newest (False).
    ValueError for a version that has none before it or no step after it.
    """
    if any(not 1 < killed_at < job.steps for job in jobs):
        raise ValueError(f"a kill at version {killed_at} needs a version before it and steps after it")
    again, finished = [], []
    world = jobs[0].layout.world
    with Fleet() as fleet:
        for index, job in enumerate(jobs):
            place, other = folder / f"run-{index}", folder / f"run-{index}-newest"
            place.mkdir(parents=True)
            device = Device.make(place / "storage", STORAGE_BYTES_PER_S, chunk=1 << 16)
            kept = replace(job, folder=place, storage=device)
            die(fleet, replace(kept, steps=killed_at, killed_at=killed_at))  # so that no rank gets further
            finished.append(tuple(newest_file(place, rank) or 0 for rank in range(world)))
            shutil.copytree(place, other)
            resumed = replace(kept, resume=True)
            again += [resumed, replace(resumed, folder=other, commit=False)]
        by_rank = fleet.run(train_all, world, ([*jobs, *again],), SECONDS * len([*jobs, *again]))
    found: dict[bool, list[Resumed]] = {True: [], False: []}
    for index, attempt in enumerate(again):
        pairs = [(one[len(jobs) + index], one[index // 2]) for one in by_rank]  # resumed, uninterrupted
        gaps = [abs(a.losses[step] - b.losses[step]) for a, b in pairs for step in a.losses]
        begun = tuple(a.begun for a, _ in pairs)
        found[attempt.commit].append(Resumed(begun, finished[index // 2], max(gaps)))
    return found


def die(fleet: Fleet, job: Job) -> None:
    """Run a job until its victim is killed. RuntimeError unless it, and nobody else, dies."""
    died: tuple[int, ...] = ()
    try:
        fleet.run(train, job.layout.world, (job,), SECONDS)
    except RankFailed as failure:
        died = failure.died
    if died != (VICTIM,):
        raise RuntimeError(f"rank {VICTIM} was to die, but died: {died}")


def train_all(rank: int, world: int, jobs: Sequence[Job]) -> list[Trained]:
    """Jobs one after another on the same ranks."""
    return [train(rank, world, job) for job in jobs]


def train(rank: int, world: int, job: Job) -> Trained:
    """One rank."""
    import torch._dynamo  # the first optimiser loads it, in every process; named here, a fork server has it already

    group = dist.new_group(list(range(world)))
    trainer = Trainer(job.shape, form_groups(job.layout, rank), Recipe(job.seed, dropout=0.1))
    if job.resume and job.folder is not None:
        version = latest(job.folder) if job.commit else newest_file(job.folder, rank)
        if version is not None:
            trainer.load(to_rank_state(load(file_of(job.folder, version, rank))))
    begun = trainer.steps
    most = torch.tensor([begun])
    dist.all_reduce(most, dist.ReduceOp.MAX)  # without a commit ranks may begin with different versions
    steps = range(begun, begun + job.steps - int(most))
    if job.folder is None:
        return Trained(begun, {step: trainer.step(batch_at(job, step)) for step in steps})

    commit = Commit(job.folder, rank, world, group, begun + 1) if job.commit else None
    rate = Device.make(job.folder / f"copy-{rank}", COPY_BYTES_PER_S, chunk=1 << 16)
    engine = DataStates(
        Copier(rate),
        Storage(job.storage),
        sum(tensor.nbytes for tensor in tensors_of(as_state(trainer)).values()),
        on_file=commit.written if commit else lambda path: None,
        on_tensor=killer(job) if rank == VICTIM and job.killed_at else lambda path: None,
    )
    losses = {}
    for step in steps:
        losses[step] = trainer.step(batch_at(job, step), lambda step: engine.before_update())
        engine.save(as_state(trainer), file_of(job.folder, trainer.steps, rank))
    engine.finish()
    if commit is not None:
        commit.finish(trainer.steps)
    engine.close()
    return Trained(begun, losses)


def killer(job: Job) -> Hook:
    """Kills the victim within its file of a version, when all others have finished theirs and the one before counts."""
    assert job.folder is not None
    folder, version, written = job.folder, job.killed_at, 0
    others = [file_of(folder, version, rank) for rank in range(job.layout.world) if rank != VICTIM]

    def on_tensor(path: Path) -> None:
        nonlocal written
        written += path == file_of(folder, version, VICTIM)
        if written == TENSORS_WRITTEN:
            while not all(other.exists() for other in others) or (latest(folder) or 0) < version - 1:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)

    return on_tensor


def batch_at(job: Job, step: int) -> Tensor:
    """The windows of a step, the same on all ranks: eight rows of context + 1 tokens."""
    rng = np.random.default_rng([job.seed, step])
    starts = rng.integers(0, len(job.text) - job.shape.context - 1, 8)
    return job.text[torch.from_numpy(starts)[:, None] + torch.arange(job.shape.context + 1)]


def as_state(trainer: Trainer) -> dict[str, Any]:
    """A rank's state as the engine takes it: views of live tensors, and the random numbers' state."""
    state = trainer.state()
    fragments = [{**vars(one), "size": list(one.size)} for one in state.fragments]
    return {"step": state.step, "rng": state.rng, "fragments": fragments}


def to_rank_state(state: dict[str, Any]) -> RankState:
    """Back from a file."""
    fragments = (Fragment(**{**one, "size": tuple(one["size"])}) for one in state["fragments"])
    return RankState(state["step"], tuple(fragments), state["rng"])
