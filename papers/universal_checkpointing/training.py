"""What the processes of a run do: train, save, go on; resume under another layout, train on.

Each function is called on every rank of a gloo group. A rank returns what it held at the moment that matters, so that
the parent can put all ranks' parts together in a way that knows nothing of universal checkpoints.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch.distributed as dist

from common.distributed.fleet import METHOD, Fleet
from common.training.sharded.held import Held, assert_holds_only_its_part, snapshot
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import form_groups
from common.training.sharded.trainer import Trainer
from papers.universal_checkpointing.loading import How, resume
from papers.universal_checkpointing.native import Described, Progress, save
from papers.universal_checkpointing.patterns import Rule

CAN_STAY = hasattr(os, "sched_setaffinity")  # on a core: Linux
PRELOADED = ("torch._dynamo", "safetensors.torch", __name__)


@dataclass(frozen=True)
class Ran:
    """What a rank did: losses of its steps, its state at the checkpoint, and whether a conversion was needed."""

    losses: tuple[float, ...]
    held: Held
    converted: bool = False


def fleet(a_core_each: bool = False) -> Fleet:
    """A fleet whose fork server has loaded what every rank needs; a server that runs already stays as it is.

    a_core_each: a group of ranks has one core to itself, as long as it runs.
    """
    made = CoreEach() if a_core_each else Fleet()
    if METHOD == "forkserver":
        forkserver.set_forkserver_preload(["torch", "torch.distributed", *PRELOADED])
    return made


class CoreEach(Fleet):
    """A fleet for groups that train side by side: the ranks of one wait for one another more than they compute, and
    waking one another costs less on one core than across cores.
    """

    def __init__(self) -> None:
        super().__init__()
        self._free: SimpleQueue[int] = SimpleQueue()
        several = os.sched_getaffinity(0) if CAN_STAY else range(os.cpu_count() or 1)
        for core in several:
            self._free.put(core)

    def run(self, function: Callable[..., Any], *arguments: Any, **limits: Any) -> list[Any]:
        """Fleet.run on the next core that is free; a caller waits where none is."""
        core = self._free.get()
        try:
            return super().run(partial(_on_core, core, function), *arguments, **limits)
        finally:
            self._free.put(core)


def _on_core(core: int, function: Callable[..., Any], *arguments: Any) -> Any:
    if CAN_STAY:
        os.sched_setaffinity(0, {core})
    return function(*arguments)


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
    progress, converted = resume(Path(source), Path(universal), trainer, how)
    data.consumed = progress.consumed
    held = snapshot(trainer, data.consumed)
    return Ran(tuple(trainer.step(data.batch()) for _ in range(steps)), held, converted)
