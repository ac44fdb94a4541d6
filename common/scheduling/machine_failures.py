"""Random shutdowns of machines by common random numbers: drawn for each machine and tick, whatever is decided.

Every rule that meets the same draw meets the same shutdowns, so that what differs between two rules is the rules.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Failures:
    """When each machine shuts down, and for how long: drawn per machine and tick, whatever is decided.

    mode: "on take": a machine that is about to take an operation looks at the tick at hand, once for each operation,
    and is down for `table` ticks first; what runs is not lost. "any time": at each tick an up machine may go down; its
    operation pauses, and nothing is taken or finished. table: int (machines, ticks); beyond its end it begins again.
    """

    table: np.ndarray
    mode: str = "on take"

    def windows(self, machine: int, until: int) -> list[tuple[int, int]]:
        """The [from, to) during which a machine is down before `until`, of "any time" (else none are known ahead)."""
        if self.mode != "any time":
            return []
        found, tick, ticks = [], 0, self.table.shape[1]
        while tick < until:
            lasts = int(self.table[machine, tick % ticks])
            if lasts:
                found.append((tick, tick + lasts))
            tick += max(lasts, 1)
        return found


def draw_failures(
    rng: np.random.Generator,
    machines: int,
    ticks: int,
    probability: float,
    longest: int = 50,
    mode: str = "on take",
) -> Failures:
    """Failures of a probability a draw, uniform durations 1..longest. The same generator gives nested failures: all of
    a lower probability are there at a higher one too. ValueError for a probability outside [0, 1] or another mode."""
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability lies in [0, 1], not {probability}")
    if mode not in ("on take", "any time"):
        raise ValueError(f'mode is "on take" or "any time", not {mode!r}')
    chance = rng.random((machines, ticks))
    table = np.where(chance < probability, rng.integers(1, longest + 1, (machines, ticks)), 0).astype(
        np.int64
    )
    if mode == "any time":
        begins = table
        table = np.zeros_like(begins)
        for machine in range(machines):
            tick = 0
            while tick < ticks:
                lasts = min(int(begins[machine, tick]), ticks - tick)
                table[machine, tick : tick + lasts] = np.arange(lasts, 0, -1)
                tick += max(lasts, 1)
    return Failures(table, mode)
