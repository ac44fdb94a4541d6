"""Training on several ranks with a checkpoint after every update, a kill between two ranks' writes, and a restart.

The victim writes a part of its file of one version, waits until the other ranks' files of that version are whole, and
gets SIGKILL. All ranks then start again from the version that counts, with dropout, so that the random numbers' state
has to come back too, and must go on exactly as a run that nothing happened to.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.faults import Fault, Plan
from common.distributed.fleet import Fleet, RankFailed
from common.distributed.throttled import Device
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import RankState, Recipe, Trainer
from common.training.sharded.zero import Fragment
from papers.datastates_llm.commit import Commit, file_of, latest, newest_file
from papers.datastates_llm.engine import DataStates
from papers.datastates_llm.file_format import load, tensors_of
from papers.datastates_llm.tiers import Copier, Storage
from papers.datastates_llm.torn import same_bits

VICTIM = 1
TENSORS_WRITTEN = 5  # of the victim's last file, when it dies
COPY_BYTES_PER_S = 100e6  # of each rank: a state takes a fraction of a step
STORAGE_BYTES_PER_S = 60e6  # shared by all ranks: writes of several versions are under way at once
SECONDS = 60.0  # after which a run counts as hung


@dataclass(frozen=True)
class Job:
    """What the ranks train. text: tokens. folder: of the checkpoints (None: none are taken). killed_at: a version.

    commit False: ranks go on from their own newest files.
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
    """A rank's run: the version it began with, the loss of each step, and its state at the end by tensor."""

    begun: int
    losses: dict[int, float]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Resumed:
    """A run that was killed and went on, beside the one that was not."""

    begun: tuple[int, ...]  # version that each rank began with again
    finished: tuple[int, ...]  # newest version of which each rank's file was whole
    loss_gap: float  # largest difference of a loss, nats
    differing: int  # tensors of all ranks that are not the same at the end


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
            place = folder / f"run-{index}"
            place.mkdir(parents=True)
            device = Device.make(place / "storage", STORAGE_BYTES_PER_S, chunk=1 << 16)
            attempt = replace(job, folder=place, storage=device, killed_at=killed_at)
            with the_victim_dies():
                fleet.run(train, world, (attempt,), SECONDS)
            finished.append(tuple(newest_file(place, rank) or 0 for rank in range(world)))
            other = shutil.copytree(place, folder / f"run-{index}-newest")
            again += [
                replace(attempt, folder=where, killed_at=0, resume=True, commit=commit)
                for commit, where in ((True, place), (False, other))
            ]
        by_rank = fleet.run(train_all, world, ([*jobs, *again],), SECONDS)
    found: dict[bool, list[Resumed]] = {True: [], False: []}
    for index, attempt in enumerate(again):
        pairs = [(one[len(jobs) + index], one[index // 2]) for one in by_rank]  # resumed, uninterrupted
        gaps = [abs(a.losses[step] - b.losses[step]) for a, b in pairs for step in a.losses]
        differing = sum(not same_bits(a.state[key], b.state[key]) for a, b in pairs for key in b.state)
        begun = tuple(a.begun for a, _ in pairs)
        found[attempt.commit].append(Resumed(begun, finished[index // 2], max(gaps), differing))
    return found


@contextlib.contextmanager
def the_victim_dies() -> Iterator[None]:
    """RuntimeError unless what runs here ends with the death of the victim, and of nobody else."""
    died: tuple[int, ...] = ()
    try:
        yield
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

    torch.manual_seed(1000 * job.seed + rank)
    group = dist.new_group(list(range(world)))
    trainer = Trainer(job.shape, form_groups(job.layout, rank), Recipe(job.seed, dropout=0.1))
    if job.resume and job.folder is not None:
        version = latest(job.folder) if job.commit else newest_file(job.folder, rank)
        if version is not None:
            trainer.load(to_rank_state(load(file_of(job.folder, version, rank))))
    begun = trainer.steps
    most = torch.tensor([begun])
    dist.all_reduce(most, dist.ReduceOp.MAX)  # without a commit ranks may begin with different versions
    todo = job.steps - int(most)
    if job.folder is None:
        losses = {step: trainer.step(batch_at(job, step)) for step in range(todo)}
        return Trained(begun, losses, owned(trainer))

    commit = Commit(job.folder, rank, world, group, begun + 1) if job.commit else None
    assert job.storage is not None
    rate = Device.make(job.folder / f"copy-{rank}", COPY_BYTES_PER_S, chunk=1 << 16)
    engine = DataStates(
        Copier(rate),
        Storage(job.storage),
        sum(t.numel() * t.element_size() for t in tensors_of(as_state(trainer)).values()),
        finished=commit.written if commit else lambda path: None,
        reached=killer(rank, world, job),
    )
    losses = {}
    for step in range(begun, begun + todo):
        losses[step] = trainer.step(batch_at(job, step), lambda step: engine.before_update())
        engine.save(as_state(trainer), file_of(job.folder, trainer.steps, rank))
    engine.finish()
    if commit is not None:
        commit.finish(trainer.steps)
    engine.close()
    return Trained(begun, losses, owned(trainer))


def killer(rank: int, world: int, job: Job) -> Callable[[str, Path], None]:
    """Kills the victim within its file of a version, when all others have finished theirs and the one before counts."""
    place = "tensor written"
    plan = Plan((Fault(VICTIM, place, "kill", TENSORS_WRITTEN),))

    def reached(_: str, path: Path) -> None:
        folder, version = job.folder, job.killed_at
        if folder is None or not version or rank != VICTIM or path != file_of(folder, version, rank):
            return
        others = [file_of(folder, version, other) for other in range(world) if other != VICTIM]
        if plan.turns[rank, place] == TENSORS_WRITTEN - 1:
            while not all(other.exists() for other in others) or (latest(folder) or 0) < version - 1:
                time.sleep(0.001)
        plan.reached(rank, place)

    return reached


def batch_at(job: Job, step: int) -> Tensor:
    """The windows of a step, the same on all ranks: eight rows of context + 1 tokens."""
    rng = np.random.default_rng([job.seed, step])
    starts = rng.integers(0, len(job.text) - job.shape.context - 1, 8)
    return job.text[torch.from_numpy(starts)[:, None] + torch.arange(job.shape.context + 1)]


def as_state(trainer: Trainer) -> dict[str, Any]:
    """A rank's state as the engine takes it: views of live tensors, and the random numbers' state."""
    state = trainer.state()
    return {
        "step": state.step,
        "rng": state.rng,
        "fragments": [
            {
                "name": one.name, "size": list(one.size), "start": one.start,
                "weight": one.weight, "exp_avg": one.exp_avg, "exp_avg_sq": one.exp_avg_sq,
            }
            for one in state.fragments
        ],
    }  # fmt: skip


def to_rank_state(state: dict[str, Any]) -> RankState:
    """Back from a file."""
    fragments = (Fragment(**{**one, "size": tuple(one["size"])}) for one in state["fragments"])
    return RankState(state["step"], tuple(fragments), state["rng"])


def owned(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all that this rank's checkpoint would hold."""
    return {key: tensor.clone() for key, tensor in tensors_of(as_state(trainer)).items()}
