"""What is trained, how it is laid out, and on which text: a job that any layout of processes can take up."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.training.sharded.layout import Layout
from common.training.sharded.parameters import Shape
from common.training.sharded.trainer import Recipe

LETTERS = 65  # distinct characters of Tiny Shakespeare


@dataclass(frozen=True)
class Schedule:
    """Factor on the rate: up over `warmup` steps, then down in a straight line to `least` at step `total`."""

    warmup: int = 10
    total: int = 1000
    least: float = 0.1

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(self.least, 1.0 - (1.0 - self.least) * (step - self.warmup) / (self.total - self.warmup))


@dataclass(frozen=True)
class Job:
    """A decoder, how it is laid out and trained, and on what: `rows` windows of a text each step.

    text: a file, or None for a text drawn from a chain of letters.
    """

    shape: Shape
    layout: Layout
    recipe: Recipe
    rows: int
    text: str | None = None


def letters(text: str | None) -> np.ndarray:
    """The text as numbers from 0 to LETTERS - 1."""
    if text is not None:
        found = np.frombuffer(Path(text).read_bytes(), np.uint8)
        return np.searchsorted(np.unique(found), found).astype(np.int64)
    rng = np.random.default_rng(0)
    likely = rng.integers(0, LETTERS, (LETTERS, 4))  # four successors a letter: something to learn
    choices, state, chain = rng.integers(0, 4, 50_000), 0, np.empty(50_000, np.int64)
    for i, choice in enumerate(choices):
        state = chain[i] = likely[state, choice]
    return chain


class Data:
    """Windows of a text; the row of number n is the same whoever reads it, and `consumed` rows are gone."""

    def __init__(self, job: Job) -> None:
        self._letters, self._job, self.consumed = letters(job.text), job, 0

    def batch(self) -> Tensor:
        """The next rows, int64 of shape (rows, context + 1)."""
        job, length = self._job, self._job.shape.context + 1
        rows = []
        for n in range(self.consumed, self.consumed + job.rows):
            start = int(np.random.default_rng([job.recipe.seed, n]).integers(len(self._letters) - length))
            rows.append(self._letters[start : start + length])
        self.consumed += job.rows
        return torch.from_numpy(np.stack(rows))
