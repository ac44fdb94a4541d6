"""What a run of the server counts: swaps, stalls, and how many requests were swapped out."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Swap:
    """One swap, counted from the block tables.

    blocks: moved. pieces: that they lay in, each a copy call a layer and K or V. held: blocks of the whole request.
    """

    out: bool
    blocks: int
    pieces: int
    held: int
    turn_ended: bool = False  # not a preemption: an answer is complete, and its KV leaves for the next turn


@dataclass
class Ledger:
    """What a run counted."""

    swaps: list[Swap] = field(default_factory=list)
    stepped: list[tuple[float, float]] = field(
        default_factory=list
    )  # (seconds, stall in them) of one iteration
    stretches: list[tuple[float, float, int]] = field(default_factory=list)  # first, increment, iterations
    live_seconds: float = 0.0  # requests x seconds
    swapped_seconds: float = 0.0
    recomputed: int = 0  # preemptions without room on the host

    def iterations(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of every iteration, stall included, and the stall in it, arrays of shape (iterations,)."""
        smooth = [first + increment * np.arange(n) for first, increment, n in self.stretches]
        stepped = np.array(self.stepped).reshape(-1, 2)
        seconds = np.concatenate([stepped[:, 0], *smooth])
        stall = np.concatenate([stepped[:, 1], np.zeros(len(seconds) - len(stepped))])
        return seconds, stall

    @property
    def swapped_share(self) -> float:
        """Share of the live requests that were swapped out, on average over time."""
        return self.swapped_seconds / self.live_seconds if self.live_seconds else 0.0
