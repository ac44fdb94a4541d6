"""How often to save, and what share of the time trains: Young (1974) and Daly (2006), and simulated failures.

Every `interval` seconds of training a save stops it for `stall` seconds. After a failure training restarts from the
last save that is safe, which is up to an interval and the seconds that the save itself takes (`saving`) old.
"""

from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Failures:
    """Mean seconds between failures of the job, and the share of them that only the disk outlives."""

    mean: float
    to_disk: float = 0.0


def young_daly(stall: float, mean: float) -> float:
    """Young's interval between saves, seconds: sqrt(2 stall mean)."""
    if stall < 0 or mean <= 0:
        raise ValueError("a stall is not negative and the mean time between failures is positive")
    return float(np.sqrt(2 * stall * mean))


def interval_of(one: Protection, mean: float, step: float) -> float:
    """Young's interval, but no shorter than a step or than a save takes to be safe."""
    return max(young_daly(one.stall, mean), one.saving, step)


def effective_share(
    memory: Protection | None, disk: Protection, failures: Failures, step: float, rare: float = 0.0
) -> float:
    """Expected share of the time that trains for good; first order in interval over mean.

    memory: None where only the disk protects. rare: seconds between disk checkpoints beside memory (0: Young's interval
    for the failures that need them).
    """
    if memory is None:
        interval = interval_of(disk, failures.mean, step)
        lost = (interval / 2 + disk.saving + disk.restart) / failures.mean
        return max(0.0, 1 - disk.stall / (interval + disk.stall)) * max(0.0, 1 - lost)
    fatal = failures.to_disk / failures.mean
    kept = (1 - failures.to_disk) / failures.mean
    near = interval_of(memory, failures.mean, step)
    far = rare or interval_of(disk, failures.mean / max(failures.to_disk, 1e-12), step)
    lost = kept * (near / 2 + memory.saving + memory.restart) + fatal * (far / 2 + disk.saving + disk.restart)
    stalls = memory.stall / (near + memory.stall) + disk.stall / (far + disk.stall)
    return max(0.0, 1 - stalls) * max(0.0, 1 - lost)


def simulated_share(
    protection: Protection, mean: float, step: float, hours: float, rng: np.random.Generator
) -> tuple[float, list[tuple[float, float]]]:
    """Share of `hours` that trained for good with one protection, and (start, end) of all time lost, in seconds.

    Failures strike at exponential gaps, also during restarts. A save that was not safe yet when it struck is lost.
    """
    interval = interval_of(protection, mean, step)
    end = 3600 * hours
    now, trained, safe, lost = 0.0, 0.0, 0.0, []
    strikes = rng.exponential(mean)
    while now < end:
        cycle = interval + protection.stall
        run = min(strikes, end) - now  # seconds until it strikes
        full = int(run // cycle)
        done = safe + full * interval + min(run - full * cycle, interval)
        # of the saves begun, those that are safe: the last one may still be on its way
        begun = full if protection.saving <= run - full * cycle + protection.stall else full - 1
        if strikes >= end:
            trained = done
            break
        safe += max(0, begun) * interval
        now = strikes
        redo = done - safe
        lost.append((max(0.0, now - redo), now + protection.restart))
        now += protection.restart
        strikes += rng.exponential(mean)
        while strikes < now:  # struck again before it was up: the restart begins anew
            now = strikes + protection.restart
            lost[-1] = (lost[-1][0], now)
            strikes += rng.exponential(mean)
        trained = safe
    return trained / end, lost


def free(one: Protection) -> Protection:
    """The same protection with stalls that cost nothing."""
    return replace(one, stall=0.0)
