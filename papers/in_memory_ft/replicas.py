"""Data-parallel replicas whose gradients are added up in one collective, as DDP does."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from common.training.sharded.layout import Groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from common.training.sharded.zero import Resident, hold


class Replica(Trainer):
    """A trainer of ZeRO stage 0 with one reduction a step instead of one a tensor. ValueError for another stage."""

    held: Resident

    def __init__(self, shape: Shape, groups: Groups, recipe: Recipe) -> None:
        # imported by the first optimiser of a process, for more than a second; named here, the lab loads it ahead
        import torch._dynamo  # noqa: F401

        if groups.layout.zero:
            raise ValueError(f"peers hold the same state in ZeRO stage 0, not {groups.layout.zero}")
        super().__init__(shape, groups, recipe)
        tensors = {name: one.detach() for name, one in self.held.tensors.items()}
        self.held = hold(tensors, replace(groups, data=None), recipe.adam)  # type: ignore[assignment]

    def step(self, batch: Tensor, before_update: Callable[[int], None] | None = None) -> float:
        """As Trainer's."""

        def added_up(step: int) -> None:
            if self.groups.data is not None:
                gradients = [self.held.gradient(name) for name in self.held.tensors]
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                dist.all_reduce(flat, group=self.groups.data)
                for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                    gradient.copy_(part.view_as(gradient))
            if before_update is not None:
                before_update(step)

        return super().step(batch, added_up)
