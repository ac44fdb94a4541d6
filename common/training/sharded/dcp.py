"""The trainer's live state as torch.distributed.checkpoint takes it: views, so that loading fills them in place."""

from typing import Any

import torch
import torch.distributed as dist

from common.training.sharded.trainer import Trainer
from common.training.sharded.zero import MOMENTS

VALUES = ("weight", *MOMENTS)


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
