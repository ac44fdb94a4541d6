"""Parameters to average: replicas that trained apart from one another, as in asynchronous training."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from common.distributed.fleet import Fleet, RankFailed
from common.distributed.rooms import Room
from common.training.sharded.held import snapshot
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import Layout, Place, form_groups
from common.training.sharded.trainer import Trainer
from papers.universal_checkpointing.conversion import convert
from papers.universal_checkpointing.loading import load_universal
from papers.universal_checkpointing.native import Described, Progress, save
from papers.universal_checkpointing.patterns import Average, Replicate, Rule

REPLICAS, STEPS = 3, 4


def averaged_apart(processes: Fleet, job: Job, average: bool = True) -> float:
    """Share of elements that differ from the mean of the replicas after loading; 1 where the conversion refuses.

    average: what the rules say of the parameters; False takes them for copies of one another.
    """
    try:
        with Room("paperlab-ucp-") as room:
            return processes.run(_train_apart, 1, (job, str(room), average))[0]
    except RankFailed:
        return 1.0


def _train_apart(rank: int, world: int, job: Job, room: str, average: bool) -> float:
    """Replicas one after another in one process, each on data of its own, saved as data ranks of one checkpoint."""
    import torch._dynamo  # noqa: F401  see training.py

    folder, universal = Path(room) / "checkpoint", Path(room) / "universal"
    rules = (Rule(r".*", Average() if average else Replicate()),)
    described = Described(Layout(data=REPLICAS), Progress(STEPS, 0, job.recipe.adam), rules, everyone=True)
    states = []
    for replica in range(REPLICAS):
        trainer, data = Trainer(job.shape, form_groups(Layout()), job.recipe), Data(job)
        data.consumed = replica * 10_000
        for _ in range(STEPS):
            trainer.step(data.batch())
        save(folder, trainer, described, place=Place(0, replica, 0))
        states.append(_values(trainer))
    convert(folder, universal)
    trainer = Trainer(job.shape, form_groups(Layout()), replace(job.recipe, seed=1_000))
    load_universal(universal, trainer)
    return float((_values(trainer) != sum(states) / REPLICAS).mean())


def _values(trainer: Trainer) -> np.ndarray:
    """Weights and both moments of all parameters, one behind the other."""
    return np.concatenate([value for *_, values in snapshot(trainer, 0).fragments for value in values])
