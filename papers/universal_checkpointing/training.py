"""What the processes of a run do: train, save, go on; resume under another layout, train on.

Each function is called on every rank of a gloo group. A rank returns what it held at the moment that matters, so that
the parent can put all ranks' parts together in a way that knows nothing of universal checkpoints.
"""

from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.fleet import METHOD, Fleet
from common.training.sharded.held import Held, assert_holds_only_its_part, snapshot
from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from papers.universal_checkpointing.loading import How, resume
from papers.universal_checkpointing.native import Described, Progress, save
from papers.universal_checkpointing.patterns import Rule

PRELOADED = ("torch._dynamo", "safetensors.torch", __name__)
LETTERS = 65  # distinct characters of Tiny Shakespeare


@dataclass(frozen=True)
class Job:
    """A decoder, how it is laid out and trained, and on what: `rows` windows of a text each step.

    text: a file, or None for a text drawn from a chain of letters.
    """

    shape: Shape
    layout: Layout
    recipe: Recipe
    rows: int
    text: str | None = None


@dataclass(frozen=True)
class Ran:
    """What a rank did: losses of its steps, its state at the checkpoint, and whether a conversion was needed."""

    losses: tuple[float, ...]
    held: Held
    converted: bool = False


def fleet() -> Fleet:
    """A fleet whose fork server has loaded what every rank needs; a server that runs already stays as it is."""
    made = Fleet()
    if METHOD == "forkserver":
        forkserver.set_forkserver_preload(["torch", "torch.distributed", *PRELOADED])
    return made


def letters(text: str | None) -> np.ndarray:
    """The text as numbers from 0 to LETTERS - 1."""
    if text is not None:
        found = np.frombuffer(Path(text).read_bytes(), np.uint8)
        return np.searchsorted(np.unique(found), found).astype(np.int64)
    rng = np.random.default_rng(0)
    likely = rng.integers(0, LETTERS, (LETTERS, 4))  # four successors a letter: something to learn
    choices, state, chain = rng.integers(0, 4, 50_000), 0, np.empty(50_000, np.int64)
    for i, choice in enumerate(choices):
        state = chain[i] = likely[state, choice]
    return chain


class Data:
    """Windows of a text; the row of number n is the same whoever reads it, and `consumed` rows are gone."""

    def __init__(self, job: Job) -> None:
        self._letters, self._job, self.consumed = letters(job.text), job, 0

    def batch(self) -> Tensor:
        """The next rows, int64 of shape (rows, context + 1)."""
        job, length = self._job, self._job.shape.context + 1
        rows = []
        for n in range(self.consumed, self.consumed + job.rows):
            start = int(np.random.default_rng([job.recipe.seed, n]).integers(len(self._letters) - length))
            rows.append(self._letters[start : start + length])
        self.consumed += job.rows
        return torch.from_numpy(np.stack(rows))


def train(
    rank: int, world: int, job: Job, until: int, folder: str, further: int, rules: tuple[Rule, ...]
) -> Ran:
    """Train `until` steps from scratch, save, and go on for some more; the state is that which was saved."""
    import torch._dynamo  # noqa: F401  the first optimiser would load it, in every process; the fork server has it

    trainer, data = Trainer(job.shape, form_groups(job.layout, rank), job.recipe), Data(job)
    assert_holds_only_its_part(trainer)
    losses = [trainer.step(data.batch()) for _ in range(until)]
    progress = Progress(trainer.steps, data.consumed, job.recipe.adam, job.recipe.rate_at)  # type: ignore[arg-type]
    save(Path(folder), trainer, Described(job.layout, progress, rules))
    held = snapshot(trainer, data.consumed)
    if world > 1:
        dist.barrier()
    losses += [trainer.step(data.batch()) for _ in range(further)]
    return Ran(tuple(losses), held)


def go_on(rank: int, world: int, job: Job, source: str, universal: str, steps: int, how: How) -> Ran:
    """Resume a checkpoint under the job's layout and train on; the state is that after loading.

    The recipe's rate, schedule and the data position are the checkpoint's, whatever the job says.
    """
    import torch._dynamo  # noqa: F401

    progress = Described.read(Path(source)).progress
    recipe = replace(job.recipe, adam=progress.adam, rate_at=progress.schedule)
    first = replace(recipe, seed=job.recipe.seed + 1_000)  # other first values: all must be loaded
    trainer, data = Trainer(job.shape, form_groups(job.layout, rank), first), Data(job)
    assert_holds_only_its_part(trainer)
    resumed = resume(Path(source), Path(universal), trainer, how)
    data.consumed = resumed.progress.consumed
    held = snapshot(trainer, data.consumed)
    losses = tuple(trainer.step(data.batch()) for _ in range(steps))
    return Ran(losses, held, resumed.converted)
