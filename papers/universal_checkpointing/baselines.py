"""What else can be done with a distributed checkpoint: DCP, MCP, and consolidation while saving.

DCP     torch.distributed.checkpoint itself, on the trainer's state as its users have it: data ranks' slices as
        DTensors and ShardedTensors, tensor ranks' pieces as tensors of their own, since a piece of a fused matrix or
        of a padded vocabulary is no even share of anything
MCP     a converter by global shapes (Megatron's distributed checkpoint, as the paper describes it): it knows tensor,
        pipeline and data parallelism and the fused matrices of a dense decoder, but neither another ZeRO stage nor
        experts fused into one matrix
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common.training.sharded.layout import Layout, form_groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import RankState, Trainer
from papers.universal_checkpointing.decoder import decoder_rules
from papers.universal_checkpointing.native import VALUES, Described, file_of, load_native, partition
from papers.universal_checkpointing.patterns import Rule, Shard
from papers.universal_checkpointing.storage import CheckpointError, Storage
from papers.universal_checkpointing.training import Data, Job, Ran, snapshot


def dcp_state(trainer: Trainer) -> dict[str, Any]:
    """The trainer's live state as torch.distributed.checkpoint takes it: views, so that loading fills them in place.

    Tensors are flat, as ZeRO cuts them. Names of parameters are whole, so that stages may change.
    """
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard as LocalShard
    from torch.distributed._shard.sharded_tensor import ShardedTensor
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Along

    groups = trainer.groups
    layout, rank = groups.layout, dist.get_rank() if groups.layout.world > 1 else 0
    prefix = f"tensor rank {groups.place.tensor}: " if layout.tensor > 1 else ""
    own = {fragment.name: fragment for fragment in trainer.state().fragments}
    local = {p.name: p for p in trainer.parameters}
    mesh = DeviceMesh.from_group(groups.data, "cpu") if groups.data is not None else None
    found: dict[str, Any] = {}
    for name, parameter in local.items():
        numel = torch.Size(parameter.size).numel() // (1 if parameter.split.dim is None else layout.tensor)
        fragment = own.get(name)
        values = (
            [torch.empty(0, dtype=trainer.recipe.dtype)] * len(VALUES)
            if fragment is None
            else [fragment.weight, fragment.exp_avg, fragment.exp_avg_sq]
        )
        for value, tensor in zip(VALUES, values, strict=True):
            key = f"{prefix}{name}.{value}"
            if mesh is None or layout.zero == 0:
                found[key] = tensor
            elif layout.zero == 3:
                shape = torch.Size([numel])
                found[key] = DTensor.from_local(
                    tensor, mesh, [Along(0)], run_check=False, shape=shape, stride=(1,)
                )
            else:
                shards = []
                if fragment is not None:
                    where = ShardMetadata([fragment.start], [tensor.numel()], f"rank:{rank}/cpu")
                    shards.append(LocalShard(tensor, where))
                found[key] = ShardedTensor._init_from_local_shards(shards, numel, process_group=groups.data)
    return found


def dcp_tensor_state(trainer: Trainer) -> dict[str, Any]:
    """The same with DTensors over tensor ranks: every piece is taken for an even share. Without ZeRO only."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Along

    group = trainer.groups.tensor
    mesh = DeviceMesh.from_group(group, "cpu") if group is not None else None
    splits = {p.name: p.split for p in trainer.parameters}
    found: dict[str, Any] = {}
    for fragment in trainer.state().fragments:
        for value, tensor in zip(
            VALUES, (fragment.weight, fragment.exp_avg, fragment.exp_avg_sq), strict=True
        ):
            local, dim = tensor.view(fragment.size), splits[fragment.name].dim
            if mesh is not None and dim is not None:
                local = DTensor.from_local(local, mesh, [Along(dim)], run_check=False)
            found[f"{fragment.name}.{value}"] = local
    return found


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


def mcp_rules(shape: Shape) -> tuple[Rule, ...]:
    """What global shapes say of the decoder: fused experts are one matrix, cut evenly."""
    rules = decoder_rules(shape)
    if not shape.experts:
        return rules
    return tuple(
        replace(rule, pattern=Shard(0)) if "mlp" in rule.names and "up" in rule.names else rule
        for rule in rules
    )


def mcp_accepts(source: Layout, target: Layout) -> None:
    """CheckpointError for another ZeRO stage: moments are written in the form of the one that saved."""
    if source.zero != target.zero and source.data > 1 and target.data > 1:
        raise CheckpointError(f"the optimiser's state is that of ZeRO stage {source.zero}, not {target.zero}")


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
