"""The authors' power protocol: run the profiler to its end, and then read the board's power.

A configuration keeps the board busy for 13 launches (3 to warm up, 10 profiled), 0.5 ms for a small product. The first
reading comes after the process has ended. Where the board has gone back to idle by then the reading says nothing of the
kernel; where it has not, it does. In the authors' prediction figure 32 of 36 sizes read about 30 W (brief). Three of
the other four are the longest kernels, so that who was caught goes with how long a size keeps the board busy.
"""

from dataclasses import dataclass

import numpy as np

LAUNCHES = 3 + 10
# The sizes that read well above idle in the authors' prediction figure: m, n, k (brief).
CAUGHT = ((512, 512, 512), (128256, 2048, 512), (128256, 2048, 1024), (128256, 2048, 2048))
POLL_SECONDS = 1.0  # of nvidia-smi, as they call it


@dataclass(frozen=True)
class Trace:
    """One configuration's power over time: busy from `begin` to `end` at `active` watts, read at `polls` seconds."""

    begin: float
    end: float
    active: float
    idle: float
    polls: tuple[float, ...]

    def readings(self) -> list[float]:
        """Watts at each poll, of a sensor without delay."""
        return [self.active if self.begin <= at < self.end else self.idle for at in self.polls]


def after_the_end(seconds: float, active: float, idle: float, start: float = 0.5) -> Trace:
    """The authors' order: LAUNCHES launches of `seconds` each, then polls for two seconds."""
    end = start + LAUNCHES * seconds
    return Trace(start, end, active, idle, (end + 0.01, end + 0.01 + POLL_SECONDS))


def during(seconds: float, active: float, idle: float, start: float = 0.5, least: float = 1.0) -> Trace:
    """The sound order: launches repeated for `least` seconds, polled meanwhile."""
    end = start + max(least, LAUNCHES * seconds)
    polls = tuple(np.arange(start + 0.2, end, 0.2).tolist())
    return Trace(start, end, active, idle, polls)


def caught_as_in_the_figure(sizes: np.ndarray) -> np.ndarray:
    """Which of the sizes, (rows, 3), were read while the board was still active. Boolean, (rows,)."""
    return np.array([tuple(size) in CAUGHT for size in sizes.tolist()])


def caught_at_random(sizes: int, rng: np.random.Generator) -> np.ndarray:
    """The same share of sizes, drawn: chance, and nothing of the size. Boolean, (sizes,); at least one."""
    caught = np.zeros(sizes, dtype=bool)
    caught[rng.choice(sizes, max(1, round(sizes * len(CAUGHT) / 36)), replace=False)] = True
    return caught


def read_after_the_end(size: np.ndarray, active: np.ndarray, idle: float, caught: np.ndarray) -> np.ndarray:
    """Watts that the protocol writes down for each row: of its kernel where its size was caught, else idle."""
    return np.where(caught[size], active, idle)
