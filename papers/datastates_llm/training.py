"""Training steps with checkpoints: who waits how long for what.

A small decoder in mixed precision keeps what a large one keeps, 14 bytes a parameter: bfloat16 weights, and in float32
the master weights and Adam's two moments. A step is forward and backward, during which none of it changes, and the
update, which changes all of it. On a CPU the computing uses the float32 weights, for bfloat16 is slow there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.datastates_llm.config import STATE_BYTES
from papers.datastates_llm.engine import Engine


@dataclass(frozen=True)
class Shape:
    """A decoder of `layers` blocks, `hidden` wide, over bytes of text, with windows of `context`."""

    hidden: int = 384
    layers: int = 4
    heads: int = 6
    context: int = 64
    vocab: int = 256

    @property
    def nbytes(self) -> int:
        """Of the tensors of its state."""
        with torch.device("meta"):
            model = Model(self)
        return STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())


class Model(nn.Module):
    """Embedding, causal blocks, and a head tied to the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.positions = nn.Embedding(shape.context, shape.hidden)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                shape.hidden, shape.heads, 4 * shape.hidden, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(shape.layers)
        )
        mask = torch.full((shape.context, shape.context), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, nats; batch: (rows, context + 1)."""
        given, wanted = batch[:, :-1], batch[:, 1:]
        x = self.embedding(given) + self.positions.weight[: given.shape[1]]
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return F.cross_entropy((x @ self.embedding.weight.T).flatten(0, 1), wanted.flatten())


class Training:
    """A model, its optimiser and its batches; `state` is what a checkpoint holds."""

    def __init__(self, shape: Shape, text: Tensor, seed: int, rows: int = 1, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.model = Model(shape).to(device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.shape, self.text, self.seed, self.rows, self.device = shape, text, seed, rows, device
        self.steps = 0
        for parameter in self.model.parameters():
            self.optimiser.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.low = {name: p.detach().to(torch.bfloat16) for name, p in self.model.named_parameters()}

    def state(self) -> dict[str, Any]:
        """Views of all that the update changes, and the step."""
        master = dict(self.model.named_parameters())
        kept = {name: self.optimiser.state[p] for name, p in master.items()}
        return {
            "step": self.steps,
            "weights": dict(self.low),
            "master": {name: p.detach() for name, p in master.items()},
            "exp_avg": {name: moments["exp_avg"] for name, moments in kept.items()},
            "exp_avg_sq": {name: moments["exp_avg_sq"] for name, moments in kept.items()},
        }

    def gradients(self) -> float:
        """Forward and backward on the batch of this step; the loss, nats. Changes no part of `state`."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.steps)
        width = self.shape.context + 1
        starts = torch.randint(len(self.text) - width, (self.rows,), generator=generator)
        batch = self.text[starts[:, None] + torch.arange(width)].to(self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.startswith("cuda")):
            loss = self.model.loss(batch)
        loss.backward()
        self._settle()
        return float(loss.detach())

    def update(self) -> None:
        """Adam on the master weights, and their bfloat16 copies anew."""
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.low[name].copy_(parameter)
        self.steps += 1
        self._settle()

    def _settle(self) -> None:
        """Until the device has done what it was told."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Timed:
    """Seconds of a run. blocked: of each checkpoint, in `save` and before the next update. total: until all is saved.

    steps: when each began, had its gradients, had waited, was done with the update, and with `save`, by the monotonic
    clock. losses: of each step, nats.
    """

    blocked: tuple[float, ...]
    steps: tuple[tuple[float, float, float, float, float], ...]
    losses: tuple[float, ...]
    total: float

    @property
    def compute(self) -> list[float]:
        """Forward and backward of each step."""
        return [computed - begun for begun, computed, *_ in self.steps]


def train(
    training: Training,
    engine: Engine,
    path_of: Callable[[int], Path],
    steps: int,
    interval: int,
    apart: bool = False,
) -> Timed:
    """Run steps with a checkpoint after every `interval`-th, except after the last step.

    apart: a checkpoint begins when the one before is on the storage; that wait counts as blocked for none.
    """
    blocked: list[float] = []
    marks, losses = [], []
    clock = time.monotonic
    begun = clock()
    for step in range(1, steps + 1):
        start = clock()
        losses.append(training.gradients())
        computed = clock()
        engine.before_update()
        waited = clock()
        if blocked:
            blocked[-1] += waited - computed
        training.update()
        if step % interval == 0 and step < steps:
            if apart:
                engine.finish()
            asked = clock()
            engine.save(training.state(), path_of(training.steps))
            blocked.append(clock() - asked)
        else:
            asked = clock()
        marks.append((start, computed, waited, asked, clock()))
    engine.finish()
    return Timed(tuple(blocked), tuple(marks), tuple(losses), clock() - begun)


def rows_for(shape: Shape, text: Tensor, seconds: float, device: str = "cpu") -> int:
    """Rows of a batch with which forward and backward take about so long on this machine; at least one."""
    rows = 1
    while True:
        training = Training(shape, text, 0, rows, device)
        training.gradients()
        times = []
        for _ in range(3):
            begun = time.monotonic()
            training.gradients()
            times.append(time.monotonic() - begun)
        taken = min(times)
        if taken >= 0.8 * seconds or rows >= 4096:
            return rows
        rows = max(rows + 1, min(4 * rows, round(rows * seconds / taken)))
