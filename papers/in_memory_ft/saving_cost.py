"""Seconds until a state is safe, by engine, on devices of any rates; how often that allows a save, and what it saves.

W bytes are replicated on the m data-parallel peers of a sharding group, each on a node of its own with a copy engine, a
network card and storage of its own. Young (1974) and Daly (2006) say how often to save.
"""

from dataclasses import dataclass

import numpy as np

ENGINES = ("torch.save", "CheckFreq", "TorchSnapshot", "REFT")


@dataclass(frozen=True)
class Rates:
    """Bytes per second of one node's copy engine (device to host), network card (each way) and storage.

    The defaults are the brief's: PCIe 3 x16 as it is reached (12 GB/s), 25 Gbit Ethernet (3 GB/s), 0.3 GB/s of storage.
    """

    copy: float = 12e9
    network: float = 3e9
    disk: float = 0.3e9

    def __post_init__(self) -> None:
        if not min(self.copy, self.network, self.disk) > 0:
            raise ValueError(f"rates are positive, not {self}")

    def slower(self, factor: float) -> "Rates":
        """The same node with everything `factor` times slower, so that a small machine's own work does not show."""
        return Rates(self.copy / factor, self.network / factor, self.disk / factor)


# The H100 machine of this project's tables: 4 GiB to pinned memory at 55.1 GB/s, to disk with fsync at 1.25 GB/s
# (checkpoint.csv); its network is taken to be InfiniBand HDR, which was not measured.
H100 = Rates(copy=55.1e9, network=25e9, disk=1.25e9)


def copied_bytes(engine: str, state_bytes: float, peers: int) -> float:
    """Bytes that one device copies to its host for a save."""
    return state_bytes if engine in ("torch.save", "CheckFreq") else state_bytes / peers


def saving_seconds(engine: str, state_bytes: float, peers: int, rates: Rates, persist: bool = False) -> float:
    """Seconds until the save is safe. persist: of REFT; others are on disk by nature.

    CheckFreq and TorchSnapshot overlap copying and writing, so that the slower of both counts; REFT encodes after it
    has copied (its parity could be overlapped too: then the slower of both would count).
    KeyError for an engine that is none of ENGINES.
    """
    share = copied_bytes(engine, state_bytes, peers)
    if engine == "torch.save":
        return share / rates.copy + share / rates.disk
    if engine in ("CheckFreq", "TorchSnapshot"):
        return max(share / rates.copy, share / rates.disk)
    if engine != "REFT":
        raise KeyError(f"no engine {engine!r}; there is {', '.join(ENGINES)}")
    parity = share / rates.network if peers > 1 else 0.0
    return share / rates.copy + parity + (share / rates.disk if persist else 0.0)


def loading_seconds(source: str, state_bytes: float, peers: int, rates: Rates) -> float:
    """Seconds until every peer has its whole state again.

    memory: each copies its shard up and all gather. sharded disk: each reads its shard, then the same. whole disk: each
    reads everything from the network file system, as Megatron-LM's ranks do. KeyError for another source.
    """
    share = state_bytes / peers
    if source == "whole disk":
        return state_bytes / rates.disk + state_bytes / rates.copy
    read = {"memory": 0.0, "sharded disk": share / rates.disk}[source]
    return read + share / rates.copy + (state_bytes - share) / rates.network


def saves_per_hour(saving: float, stall: float, step: float, budget: float) -> float:
    """The most saves in an hour of which none overlaps the next, at most one a step, and stalls stay in the budget.

    saving: seconds until a save is safe. stall: seconds for which it stops training. step: seconds of a step. budget:
    share of the time that stalls may take (CheckFreq's own rule is 3.5%). ValueError for another share.
    """
    if not 0 < budget < 1:
        raise ValueError(f"a budget is a share between 0 and 1, not {budget}")
    return 3600 / max(step, saving, stall / budget)


@dataclass(frozen=True)
class Protection:
    """One way to save. Seconds: stall of training a save, time until it is safe, restart from it.

    After a failure training goes on from the last save that is safe: up to an interval and `saving` old.
    """

    stall: float
    saving: float
    restart: float

    def __post_init__(self) -> None:
        if min(self.stall, self.saving, self.restart) < 0:
            raise ValueError(f"seconds are not negative: {self}")


def interval_of(one: Protection, mean: float, step: float) -> float:
    """Young's interval between saves, sqrt(2 stall mean), but no shorter than a step or than a save takes to be safe.

    mean: seconds between failures. ValueError where it is not positive.
    """
    if mean <= 0:
        raise ValueError(f"the mean time between failures is positive, not {mean}")
    return max(float(np.sqrt(2 * one.stall * mean)), one.saving, step)


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
