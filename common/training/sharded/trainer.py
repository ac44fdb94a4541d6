"""Training steps: micro-batches through the pipeline, gradients added up, Adam.

    trainer = Trainer(shape, form_groups(layout, rank), Recipe())
    for step in range(100):
        loss = trainer.step(batch_at(step))      # the whole batch, on every rank

All micro-batches go forwards, then all backwards (GPipe; Huang et al. 2019, arXiv 1811.06965).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from common.training.sharded import blocks
from common.training.sharded.layout import Groups
from common.training.sharded.parameters import Shape, held_by
from common.training.sharded.zero import Adam, Fragment, hold


@dataclass(frozen=True)
class Recipe:
    """How it is trained. micro: micro-batches of a step on each data rank. rate_at: factor on Adam's rate, by step.

    dropout: share of what blocks add to the residual that is left out; masks differ between layouts.
    """

    seed: int = 0
    micro: int = 1
    dropout: float = 0.0
    adam: Adam = Adam()
    rate_at: Callable[[int], float] | None = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class RankState:
    """All that a rank must keep to go on.

    step: steps taken; the next batch is that of this number. rng: state of torch's generator, from which dropout draws.
    """

    step: int
    fragments: tuple[Fragment, ...]
    rng: Tensor


class Trainer:
    """One rank's part of a decoder in training. `steps` counts updates.

    Seeds torch's generator of this process, the same on all tensor ranks of a data rank and stage.
    """

    def __init__(self, shape: Shape, groups: Groups, recipe: Recipe) -> None:
        self.shape, self.groups, self.recipe = shape, groups, recipe
        self.parameters = held_by(shape, groups.layout, groups.place.stage)
        pieces = {
            p.name: p.split.take(
                p.first_values(recipe.seed, recipe.dtype), groups.place.tensor, groups.layout.tensor
            ).contiguous()
            for p in self.parameters
        }
        self.held = hold(pieces, groups, recipe.adam)
        self.steps = 0
        place = groups.place
        torch.manual_seed(
            (recipe.seed * groups.layout.pipeline + place.stage) * groups.layout.data + place.data
        )

    def step(self, batch: Tensor, before_update: Callable[[int], None] | None = None) -> float:
        """One update with a batch of tokens (rows, context + 1), the same on every rank; the mean loss before it, nats.

        before_update: called with the step's number between gradients and update. ValueError for rows that data ranks
        and micro-batches can't share.
        """
        loss = self.gradients(batch)
        if before_update is not None:
            before_update(self.steps)
        if self.recipe.rate_at is not None:
            for group in self.held.optimiser.param_groups:
                group["lr"] = self.recipe.adam.rate * self.recipe.rate_at(self.steps)
        self.held.update()
        self.steps += 1
        return loss

    def gradients(self, batch: Tensor) -> float:
        """Forwards and backwards; gradients wait in `held`, tied ones added up. The mean loss over all tokens."""
        data, micro = self.groups.layout.data, self.recipe.micro
        if len(batch) % (data * micro):
            raise ValueError(
                f"{len(batch)} rows can't be shared by {data} data ranks in {micro} micro-batches"
            )
        own = batch.chunk(data)[self.groups.place.data]
        tokens = batch[:, 1:].numel()
        passed = [self._forwards(part, tokens) for part in own.chunk(micro)]
        for entered, left in passed:
            self._backwards(entered, left)
        if self.shape.tied and self.groups.ends is not None and (self.groups.first or self.groups.last):
            dist.all_reduce(self.held.gradient("embedding.weight"), group=self.groups.ends)
        return self._mean_loss([left for _, left in passed])

    def _forwards(self, part: Tensor, tokens: int) -> tuple[Tensor | None, Tensor]:
        """What entered this stage (None at the first one) and what left it: activations, or the loss over `tokens`."""
        given, targets = part[:, :-1], part[:, 1:]
        shape, groups = self.shape, self.groups
        entered = None
        if groups.first:
            x = self._unit("embedding", partial(blocks.embed, groups=groups), given)
        else:
            entered = torch.empty(*given.shape, shape.hidden, dtype=self.recipe.dtype)
            dist.recv(entered, groups.neighbour(-1))
            x = entered.requires_grad_()
        for i in groups.layout.stages(shape.layers)[groups.place.stage]:
            run = partial(blocks.block, shape=shape, groups=groups, dropout=self.recipe.dropout)
            x = self._unit(i, run, x)
        if groups.last:
            run = partial(blocks.loss_sum, targets=targets, shape=shape, groups=groups)
            return entered, self._unit("head", run, x) / tokens
        dist.send(x.detach().contiguous(), groups.neighbour(1))
        return entered, x

    def _backwards(self, entered: Tensor | None, left: Tensor) -> None:
        if self.groups.last:
            left.backward()
        else:
            gradient = torch.empty_like(left)
            dist.recv(gradient, self.groups.neighbour(1))
            left.backward(gradient)
        if entered is not None:
            assert entered.grad is not None
            dist.send(entered.grad, self.groups.neighbour(-1))

    def _unit(self, unit: str | int, run: Callable[..., Tensor], x: Tensor) -> Tensor:
        """A unit of the model on its tensors, by what is left of their names behind the block's."""
        names = [p.name for p in self.parameters if p.unit == unit]
        if unit == "head" and self.shape.tied:
            names.append("embedding.weight")
        prefix = f"blocks.{unit}."

        def named(tensors: Mapping[str, Tensor], value: Tensor) -> Tensor:
            return run({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, value)

        return self.held.call(names, named, x)

    def _mean_loss(self, losses: list[Tensor]) -> float:
        counts = self.groups.last and self.groups.place.tensor == 0  # tensor ranks all have the same
        total = sum((loss.detach().double() for loss in losses), torch.zeros((), dtype=torch.float64))
        total = total if counts else torch.zeros((), dtype=torch.float64)
        if self.groups.layout.world > 1:
            dist.all_reduce(total)
        return float(total)

    def state(self) -> RankState:
        """What this rank would write into a checkpoint; views of live tensors, to be copied before the next update."""
        return RankState(self.steps, tuple(self.held.fragments()), torch.get_rng_state())

    def load(self, state: RankState) -> None:
        """Go on from a state of the same rank and layout. ValueError for another one's."""
        self.held.load(state.fragments, state.step)
        self.steps = state.step
        torch.set_rng_state(state.rng)
