"""Data-parallel replicas whose gradients are added up in one collective, as DDP does; and their batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.training.sharded.layout import Groups
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe, Trainer
from common.training.sharded.zero import Resident, hold


class Replica(Trainer):
    """A trainer of ZeRO stage 0 with one reduction a step instead of one a tensor; other stages as they are."""

    def __init__(self, shape: Shape, groups: Groups, recipe: Recipe) -> None:
        # imported by the first optimiser of a process, for more than a second; named here, the lab loads it ahead
        import torch._dynamo  # noqa: F401

        super().__init__(shape, groups, recipe)
        self._apart = groups.layout.zero == 0 and groups.data is not None
        if self._apart:
            assert isinstance(self.held, Resident)
            self.held = hold(
                {name: one.detach() for name, one in self.held.tensors.items()},
                replace(groups, data=None),
                recipe.adam,
            )

    def step(self, batch: Tensor, before_update: Callable[[int], None] | None = None) -> float:
        """As Trainer's."""

        def added_up(step: int) -> None:
            self._add_up()
            if before_update is not None:
                before_update(step)

        return super().step(batch, added_up if self._apart else before_update)

    def _add_up(self) -> None:
        assert isinstance(self.held, Resident)
        gradients = [self.held.gradient(name) for name in self.held.tensors]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=self.groups.data)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


@dataclass
class Windows:
    """Batches of windows of a text, each once an epoch in an order that seed and epoch say; `position` were read."""

    text: Tensor
    length: int
    seed: int
    position: int = 0

    @classmethod
    def of(cls, text: bytes, length: int, seed: int) -> "Windows":
        """ValueError for a text shorter than a window."""
        if len(text) <= length:
            raise ValueError(f"a text of {len(text)} characters has no window of {length + 1}")
        return cls(torch.frombuffer(bytearray(text), dtype=torch.uint8), length, seed)

    def batch(self, rows: int) -> Tensor:
        """The next windows, int64 of shape (rows, length + 1)."""
        count = (len(self.text) - 1) // self.length
        found = []
        for place in range(self.position, self.position + rows):
            epoch, index = divmod(place, count)
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
            start = int(order[index]) * self.length
            found.append(self.text[start : start + self.length + 1])
        self.position += rows
        return torch.stack(found).long()
