"""How often to save, and what share of the time trains: Young (1974) and Daly (2006), and simulated failures.

Every `interval` seconds of training a save stops it for `stall` seconds. After a failure training restarts from the
last save that is safe, which is up to an interval and the seconds that the save itself takes (`saving`) old.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Protection:
    """One way to save. Seconds: stall of training a save, time until it is safe, restart from it."""

    stall: float
    saving: float
    restart: float

    def __post_init__(self) -> None:
        if min(self.stall, self.saving, self.restart) < 0:
            raise ValueError(f"seconds are not negative: {self}")


def young_daly(stall: float, mean: float) -> float:
    """Young's interval between saves, seconds: sqrt(2 stall mean)."""
    if stall < 0 or mean <= 0:
        raise ValueError("a stall is not negative and the mean time between failures is positive")
    return float(np.sqrt(2 * stall * mean))


def interval_of(one: Protection, mean: float, step: float) -> float:
    """Young's interval, but no shorter than a step or than a save takes to be safe."""
    return max(young_daly(one.stall, mean), one.saving, step)


@dataclass(frozen=True)
class History:
    """A simulated stretch of training. share: of its time that trained for good. redone: seconds, by failure."""

    share: float
    redone: np.ndarray
    lost: list[tuple[float, float]]  # when time was lost, from and until, in seconds


def simulated(one: Protection, mean: float, step: float, hours: float, rng: np.random.Generator) -> History:
    """Training with one protection through exponential failures, which also strike during restarts.

    A save that was not safe yet when a failure struck is lost; training goes on from the one before.
    """
    interval = interval_of(one, mean, step)
    end, cycle = 3600 * hours, interval + one.stall
    now, safe, strike = 0.0, 0.0, rng.exponential(mean)
    lost: list[tuple[float, float]] = []
    redone: list[float] = []
    while True:
        whole, rest = divmod(min(strike, end) - now, cycle)
        trained = whole * interval + min(rest, interval)
        if strike >= end:
            return History((safe + trained) / end, np.array(redone), lost)
        # a save begins with each cycle's end, and is safe when `saving` seconds have passed since
        saved = max(0.0, (strike - now - one.saving + one.stall) // cycle)
        kept = saved * interval
        redone.append(trained - kept)
        safe += kept
        up = strike + one.restart
        strike += rng.exponential(mean)
        while strike < up:  # struck again before it was up
            up = strike + one.restart
            strike += rng.exponential(mean)
        lost.append((up - one.restart - redone[-1], up))
        now = up
        if now >= end:
            return History(min(safe, end) / end, np.array(redone), lost)
