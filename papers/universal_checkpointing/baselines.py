"""What else can be done with a distributed checkpoint: DCP, and consolidation while saving.

DCP     torch.distributed.checkpoint itself, on the trainer's state as its users have it: data ranks' slices as
        DTensors and ShardedTensors, tensor ranks' pieces as tensors of their own, since a piece of a fused matrix or
        of a padded vocabulary is no even share of anything
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common.distributed.tensor_files import Storage
from common.training.sharded.dcp import dcp_state, dcp_tensor_state
from common.training.sharded.held import snapshot
from common.training.sharded.job import Data, Job
from common.training.sharded.layout import form_groups
from common.training.sharded.trainer import RankState, Trainer
from papers.universal_checkpointing.native import Described, file_of, load_native, partition
from papers.universal_checkpointing.training import Ran


def through_dcp(
    rank: int, world: int, job: Job, source: str, folder: str, steps: int, tensors: bool, saves: bool
) -> Ran:
    """Load a distributed checkpoint of this layout and save it with DCP; or load what DCP saved, and train on.

    tensors: DTensors over tensor ranks. Steps and data position travel beside DCP.
    """
    import torch.distributed.checkpoint as dcp

    # its planner says of every ShardedTensor that DTensors are to be preferred
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.checkpoint")
    described = Described.read(Path(source))
    progress = described.progress
    recipe = replace(job.recipe, adam=progress.adam, rate_at=progress.schedule)
    first = recipe if saves else replace(recipe, seed=recipe.seed + 1_000)
    trainer, data = Trainer(job.shape, form_groups(job.layout, rank), first), Data(job)
    state_of = dcp_tensor_state if tensors else dcp_state
    if saves:
        load_native(Path(source), trainer)
        dcp.save(state_of(trainer), checkpoint_id=folder, no_dist=world == 1)
        return Ran((), snapshot(trainer, progress.consumed))
    state = trainer.state()
    dcp.load(state_of(trainer), checkpoint_id=folder, no_dist=world == 1)
    trainer.load(RankState(progress.step, state.fragments, state.rng))
    data.consumed = progress.consumed
    held = snapshot(trainer, data.consumed)
    return Ran(tuple(trainer.step(data.batch()) for _ in range(steps)), held)


def save_consolidated(folder: Path, trainer: Trainer, described: Described, storage: Storage) -> None:
    """Gather all that the ranks own on rank 0, and have it write; every rank of the world calls it."""
    tensors, about = partition(trainer, described.writes(trainer.groups.place))
    world, rank = dist.get_world_size(), dist.get_rank()
    if rank:
        dist.send_object_list([{name: tuple(t.shape) for name, t in tensors.items()}, about], 0)
        for tensor in tensors.values():
            dist.send(tensor, 0)
        return
    described.write(folder)
    storage.write(folder / file_of(described.layout.place(0)), tensors, about)
    for other in range(1, world):
        message: list[Any] = [None, None]
        dist.recv_object_list(message, other)
        theirs = {}
        for name, size in message[0].items():
            dtype = torch.uint8 if name == "rng" else trainer.recipe.dtype
            theirs[name] = torch.empty(size, dtype=dtype)
            dist.recv(theirs[name], other)
        storage.write(folder / file_of(described.layout.place(other)), theirs, message[1])
