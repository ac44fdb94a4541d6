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


@dataclass
class Ledger:
    """What a run counted."""

    swaps: list[Swap] = field(default_factory=list)
    stepped: list[tuple[float, float]] = field(default_factory=list)  # seconds of an iteration, stall in them
    stretches: list[tuple[float, float, int]] = field(default_factory=list)  # first, increment, iterations
    live_seconds: float = 0.0  # requests x seconds
    swapped_seconds: float = 0.0

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


def granularity(swaps: list[Swap]) -> float:
    """Mean blocks that one copy call moves (of a layer, K or V); 1 where nothing was copied."""
    calls = sum(swap.pieces for swap in swaps)
    return sum(swap.blocks for swap in swaps) / calls if calls else 1.0


def saving(swaps: list[Swap]) -> float:
    """Share of the blocks of all swap-outs that needed no copy, because the host had them; 0 without a swap-out."""
    held = sum(swap.held for swap in swaps if swap.out)
    return 1 - sum(swap.blocks for swap in swaps if swap.out) / held if held else 0.0
