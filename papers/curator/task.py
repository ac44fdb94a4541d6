"""A part of the experiment on one seed, as a process gets it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from papers.curator.config import Config


@dataclass(frozen=True)
class Task:
    """wanted: the metrics asked for, None for all."""

    part: str
    config: Config
    seed: int
    rng: np.random.Generator
    wanted: frozenset[str] | None
    path: Path | None = None

    def wants(self, metric: str) -> bool:
        return self.wanted is None or metric in self.wanted

    def compared(
        self, pairs: dict[str, tuple[str, str]], measures: Iterable[str] = ("",)
    ) -> dict[str, tuple[str, str]]:
        """The pairs of which some metric is wanted."""
        return {
            name: pair
            for name, pair in pairs.items()
            if any(self.wants(f"{name}_{measure}".rstrip("_")) for measure in measures)
        }
