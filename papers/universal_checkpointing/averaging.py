"""Parameters to average: replicas that trained apart from one another, as in asynchronous training."""

from dataclasses import replace
from pathlib import Path

from common.distributed.fleet import Fleet, RankFailed
from common.distributed.rooms import Room
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import Layout, Place, form_groups
from common.training.sharded.trainer import Trainer
from papers.universal_checkpointing.conversion import convert
from papers.universal_checkpointing.decoder import averaged_rules
from papers.universal_checkpointing.loading import load_universal
from papers.universal_checkpointing.native import Described, Progress, save

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
    import torch._dynamo  # see training.py

    folder, universal = Path(room) / "checkpoint", Path(room) / "universal"
    described = Described(
        Layout(data=REPLICAS), Progress(STEPS, 0, job.recipe.adam), averaged_rules(average), everyone=True
    )
    states: list[dict[str, list[torch.Tensor]]] = []
    for replica in range(REPLICAS):
        trainer, data = Trainer(job.shape, form_groups(Layout()), job.recipe), Data(job)
        data.consumed = replica * 10_000
        for _ in range(STEPS):
            trainer.step(data.batch())
        save(folder, trainer, described, place=Place(0, replica, 0))
        states.append(
            {
                f.name: [f.weight.clone(), f.exp_avg.clone(), f.exp_avg_sq.clone()]
                for f in trainer.state().fragments
            }
        )
    convert(folder, universal)
    trainer = Trainer(job.shape, form_groups(Layout()), replace(job.recipe, seed=1_000))
    load_universal(universal, trainer)
    unequal = total = 0
    for fragment in trainer.state().fragments:
        for i, value in enumerate((fragment.weight, fragment.exp_avg, fragment.exp_avg_sq)):
            mean = sum(state[fragment.name][i] for state in states) / REPLICAS
            unequal += int((value != mean).sum())
            total += value.numel()
    return unequal / total
