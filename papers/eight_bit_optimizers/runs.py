"""One training run with a chosen optimizer: its losses, its score on held-out data, whether it went wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from common.training.loop import Batch, train
from papers.eight_bit_optimizers.optimizer import Adam, Momentum, States
from papers.eight_bit_optimizers.stable_embedding import parameter_groups


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters, which are the same in 8 and in 32 bits."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.995
    eps: float = 1e-7
    momentum: bool = False  # Momentum in place of Adam; its factor is beta1
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Job:
    """What is trained: a model, its batches, its loss, and a score on held-out data."""

    model: nn.Module
    wide: nn.Module | None  # whose states stay in 32 bits
    batch_at: Callable[[int], Batch]
    loss_of: Callable[[nn.Module, Batch], Tensor]
    score: Callable[
        [nn.Module], tuple[float, float]
    ]  # held-out loss in nats, share of right answers (or NaN)
    schedule: Callable[[int], float] | None
    clip: float | None


class Task(Protocol):
    """A job is made anew for every run, all of it from the seed: weights, order of the data."""

    @property
    def steps(self) -> int: ...

    def job(self, seed: int) -> Job: ...


@dataclass(frozen=True)
class Outcome:
    """losses: of every training step, nats. held_out: nats, NaN where it broke off. broke: not finite, or far above."""

    losses: tuple[float, ...]
    held_out: float
    accuracy: float
    broke: bool
    state_bytes: int
    parameters: int

    @property
    def unstable(self) -> bool:
        """It broke off, or ended above the loss that it began with."""
        return self.broke or self.held_out > self.losses[0]


class Broke(Exception):
    """A gradient is no longer finite."""


def optimizer_of(job: Job, states: States, hyper: Hyper) -> Adam | Momentum:
    """The optimizer for a job: a group in 32 bits for what the job wants wide."""
    groups = parameter_groups(job.model, job.wide)
    if hyper.momentum:
        return Momentum(groups, states, hyper.lr, hyper.beta1, hyper.weight_decay)
    betas = (hyper.beta1, hyper.beta2)
    return Adam(groups, states, hyper.lr, betas, hyper.eps, hyper.weight_decay)


def trained(task: Task, seed: int, states: States, hyper: Hyper) -> tuple[Outcome, Adam | Momentum]:
    """Train a task from the beginning; what came out, and the optimizer with its last states."""
    job = task.job(seed)
    optimizer = optimizer_of(job, states, hyper)
    losses: list[float] = []

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        loss = job.loss_of(model, batch)
        losses.append(float(loss.detach()))
        return loss

    def guard(step: int) -> None:
        norms = [parameter.grad.norm() for parameter in job.model.parameters() if parameter.grad is not None]
        if not math.isfinite(losses[-1]) or not bool(torch.stack(norms).isfinite().all()):
            raise Broke

    broke, held_out, accuracy = False, math.nan, math.nan
    try:
        train(
            job.model, optimizer, job.batch_at, loss_of, task.steps,
            schedule=job.schedule, clip=job.clip, before_step=guard,
        )  # fmt: skip
        job.model.eval()
        with torch.inference_mode():
            held_out, accuracy = job.score(job.model)
    except Broke:
        broke = True
    broke = broke or not math.isfinite(held_out)
    count = sum(parameter.numel() for parameter in job.model.parameters())
    finite = [loss for loss in losses if math.isfinite(loss)]
    outcome = Outcome(tuple(finite), held_out, accuracy, broke, optimizer.state_bytes(), count)
    return outcome, optimizer
