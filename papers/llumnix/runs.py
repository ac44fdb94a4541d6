"""What all simulated studies share: the cluster of a config, rates at the knee, and runs that arms have in common."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from common.lab.runtime import Runtime
from common.serving.workload import Workload
from papers.llumnix.cluster import Outcome, serve
from papers.llumnix.config import Config
from papers.llumnix.global_scheduler import Setup
from papers.llumnix.lengths import draw_trace

Result = TypeVar("Result")

MOST_REQUESTS = 10_000  # of a run: the artifact's num_prompts
SAMPLE = 2.0  # seconds between two looks at the memory of a cluster under load

# Middle of the seven rates that the artifact serves each trace at, requests/s (63_serving_performance/run.sh).
AUTHORS_RATES = {"128-128": 35.0, "256-256": 7.7, "512-512": 2.9, "128-512": 4.25, "512-128": 16.0}


@dataclass(frozen=True)
class Job:
    """One run of a seed, for a policy's results.

    at: what tells its requests from other runs'; told: priorities as the system is told them.
    """

    at: tuple[Hashable, ...]
    policy: str
    seed: int
    rate: float  # requests/s
    setup: Setup
    workload: Workload  # at one request a second
    priority: np.ndarray | None = None
    told: np.ndarray | None = None

    def serve(self) -> Outcome:
        """Its outcome."""
        return serve(
            self.workload.scaled(self.rate), self.setup, self.priority if self.told is None else self.told
        )


def setup_of(
    config: Config, policy: str, seed: int, sample_seconds: float = 0.0, priorities: bool = False
) -> Setup:
    """The cluster that a policy runs on, with what it looks at of the config: arms that change the rest share its runs.

    priorities: whether some requests are important. Llumnix with a part switched off is its rival, as tests hold.
    """
    if policy == "llumnix" and priorities and not config.prioritises:
        policy = "llumnix-base"
    if policy == "llumnix" and not priorities and not config.migration:
        policy = "infaas++"
    names = ["instances", "start_seconds", "memory_share"]
    pairs = -1
    if policy in ("llumnix", "llumnix-base"):
        names += ["migration", "move_running", "queued_demand", "drain_by_migration", "bytes_per_s"]
        pairs = seed if config.pairing == "random" else -1
    if policy == "llumnix" and priorities:
        names.append("headroom")
    looked_at = {name: getattr(config, name) for name in names}
    return Setup(policy, random_pairs=pairs, sample_seconds=sample_seconds, **looked_at)


def run_once(lab: Runtime, function: Callable[[Job], Result], jobs: list[Job], label: str) -> list[Result]:
    """`lab.map` over jobs, each once for all arms in which it is the same."""
    known: dict[Hashable, Result] = lab.once(f"llumnix: {label}", dict)
    keyed = {(job.at, job.seed, job.rate, job.setup): job for job in jobs}
    missing = {key: job for key, job in keyed.items() if key not in known}
    for key, result in zip(missing, lab.map(function, missing.values(), label), strict=True):
        known[key] = result
    return [known[job.at, job.seed, job.rate, job.setup] for job in jobs]


def requests_of(config: Config, trace: str) -> int:
    """Requests of a run: as many as arrive in the time that `requests` of 512-512 take, at the authors' rates.

    The longest requests take four minutes, and a run that is over sooner never fills up.
    """
    return min(MOST_REQUESTS, round(config.requests * AUTHORS_RATES[trace] / AUTHORS_RATES["512-512"]))


class Rate(NamedTuple):
    """Requests/s, and whether the level that was searched for is reached at any rate."""

    per_s: float
    reached: bool


@dataclass(frozen=True)
class Search:
    """Find the rates at which these shares of the memory are held or asked for under `setup`, mean over workloads."""

    levels: tuple[float, ...]
    workloads: tuple[Workload, ...]
    setup: Setup
    start: float  # requests/s
    steps: int = 4

    def rates(self) -> list[Rate]:
        """The rate of each level: a bracket from `start` by halving or doubling, bisected.

        Memory held alone does not find the knee: scattered free blocks keep it below 0.9 however long the queues get.
        Workloads too short to fill the cluster end the search at eight times `start`: not reached.
        """
        known: dict[float, float] = {}

        def demanded(rate: float) -> float:
            if rate not in known:
                runs = [serve(one.scaled(rate), self.setup) for one in self.workloads]
                known[rate] = float(np.mean([run.mean_of("demanded") for run in runs]))
            return known[rate]

        return [self._bisect(demanded, level) for level in self.levels]

    def _bisect(self, demanded: Callable[[float], float], level: float) -> Rate:
        low = high = self.start
        if demanded(low) < level:
            while demanded(high := 2 * low) < level:
                low = high
                if high >= 8 * self.start:
                    return Rate(high, False)
        else:
            while high > self.start / 8 and demanded(low := high / 2) >= level:
                high = low
        for _ in range(self.steps):
            middle = (low * high) ** 0.5
            if demanded(middle) < level:
                low = middle
            else:
                high = middle
        return Rate(low, True)


def find_rates(
    config: Config, lab: Runtime, wanted: Iterable[tuple[str, float]]
) -> dict[tuple[str, float], Rate]:
    """The rate of each (trace, level), searched on requests that no seed evaluates; one search a trace."""
    known: dict[Hashable, Rate] = lab.once("llumnix: rates", dict)
    shared = (config.instances, config.homogeneous, config.memory_share, config.knee_draws)
    keys = {one: (*one, requests_of(config, one[0]), *shared) for one in wanted}
    missing: dict[str, list[float]] = {}
    for one, key in keys.items():
        if key not in known:
            missing.setdefault(one[0], []).append(one[1])
    searches = []
    for trace, levels in missing.items():
        workloads = tuple(
            draw_trace(
                trace,
                lab.rng(draw, "knee", trace),
                requests_of(config, trace),
                homogeneous=config.homogeneous,
            )
            for draw in range(config.knee_draws)
        )
        setup = Setup("infaas++", config.instances, memory_share=config.memory_share, sample_seconds=SAMPLE)
        searches.append(Search(tuple(levels), workloads, setup, AUTHORS_RATES[trace] * config.instances / 16))
    found = lab.map(Search.rates, searches, "rates at the knee")
    for (trace, levels), rates in zip(missing.items(), found, strict=True):
        known |= {keys[trace, level]: rate for level, rate in zip(levels, rates, strict=True)}
    return {one: known[key] for one, key in keys.items()}


def ratio(theirs: float, ours: float, floor: float = 1e-3) -> float:
    """How many times smaller ours is; values below `floor` count as it."""
    return max(theirs, floor) / max(ours, floor)
