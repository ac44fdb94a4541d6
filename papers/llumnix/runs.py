"""What all simulated studies share: the cluster of a config, rates at the knee, and runs that arms have in common."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from common.lab.runtime import Runtime
from common.serving.workload import Workload
from papers.llumnix.cluster import Outcome, Setup, serve, what_matters
from papers.llumnix.config import Config
from papers.llumnix.lengths import draw_trace, means

Result = TypeVar("Result")

MOST_REQUESTS = 10_000  # of a run: the artifact's num_prompts

# Middle of the seven rates that the artifact serves each trace at, requests/s (63_serving_performance/run.sh).
AUTHORS_RATES = {"128-128": 35.0, "256-256": 7.7, "512-512": 2.9, "128-512": 4.25, "512-128": 16.0}


@dataclass(frozen=True)
class Job:
    """One run of a seed. at: what tells its requests from other runs'; told: priorities as the system is told them."""

    at: tuple[Hashable, ...]
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


def setup_of(config: Config, policy: str, seed: int) -> Setup:
    """The cluster that a policy runs on."""
    return Setup(
        policy=policy,
        instances=config.instances,
        migration=config.migration,
        queued_demand=config.queued_demand,
        headroom=config.headroom,
        prioritises=config.prioritises,
        drain_by_migration=config.drain_by_migration,
        random_pairs=seed if config.pairing == "random" else -1,
        start_seconds=config.start_seconds,
        bytes_per_s=config.bytes_per_s,
        memory_share=config.memory_share,
    )


def run_once(lab: Runtime, function: Callable[[Job], Result], jobs: list[Job], label: str) -> list[Result]:
    """`lab.map` over jobs, each once for all arms in which it is the same."""
    known: dict[Hashable, Result] = lab.once(f"llumnix: {label}", dict)
    keys = []
    for job in jobs:
        setup = job.setup
        if setup.policy == "llumnix" and not setup.migration and job.priority is None:
            setup = replace(setup, policy="infaas++")  # the same to the bit, as a test holds
        keys.append((job.at, job.seed, job.rate, what_matters(setup)))
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in known}
    for key, result in zip(missing, lab.map(function, missing.values(), label), strict=True):
        known[key] = result
    return [known[key] for key in keys]


def requests_of(config: Config, trace: str) -> int:
    """Requests of a run: more where answers are short, for such a run is over sooner.

    The longest requests take four minutes; a run much shorter than a quarter of an hour never fills up, and its search
    would find rates far beyond what the cluster sustains.
    """
    return min(MOST_REQUESTS, config.requests * 512 // means(trace)[1])


@dataclass(frozen=True)
class Search:
    """Find the rate at which `level` of the memory is held or asked for under `setup`, mean over the workloads."""

    level: float
    workloads: tuple[Workload, ...]
    setup: Setup
    start: float  # requests/s
    steps: int = 4


def rate_at(search: Search) -> float:
    """Requests/s at which the mean memory demand is `level`: a bracket from `start` by halving or doubling, bisected.

    Memory held alone does not find the knee: scattered free blocks keep it below 0.9 however long the queues get.
    Workloads too short to fill the cluster end the search at eight times `start`.
    """

    def demanded(rate: float) -> float:
        runs = [serve(one.scaled(rate), search.setup) for one in search.workloads]
        return float(np.mean([run.mean_of("demanded") for run in runs]))

    low = high = search.start
    if demanded(low) < search.level:
        while high < 8 * search.start and demanded(high := 2 * low) < search.level:
            low = high
    else:
        while high > search.start / 8 and demanded(low := high / 2) >= search.level:
            high = low
    for _ in range(search.steps):
        middle = (low * high) ** 0.5
        if demanded(middle) < search.level:
            low = middle
        else:
            high = middle
    return low


def find_rates(
    config: Config, lab: Runtime, wanted: Iterable[tuple[str, float]]
) -> dict[tuple[str, float], float]:
    """Requests/s of (trace, level), searched on requests that no seed evaluates."""
    known: dict[Hashable, float] = lab.once("llumnix: rates", dict)
    shared = (config.instances, config.homogeneous, config.memory_share, config.knee_draws)
    keys = {one: (*one, requests_of(config, one[0]), *shared) for one in wanted}
    missing = [(one, key) for one, key in keys.items() if key not in known]
    searches = []
    for (trace, level), _ in missing:
        workloads = tuple(
            draw_trace(
                trace,
                lab.rng(draw, "knee", trace),
                requests_of(config, trace),
                homogeneous=config.homogeneous,
            )
            for draw in range(config.knee_draws)
        )
        setup = Setup("infaas++", config.instances, memory_share=config.memory_share)
        searches.append(Search(level, workloads, setup, AUTHORS_RATES[trace] * config.instances / 16))
    for (_, key), rate in zip(missing, lab.map(rate_at, searches, "rates at the knee"), strict=True):
        known[key] = rate
    return {one: known[key] for one, key in keys.items()}


def ratio(theirs: float, ours: float, floor: float = 1e-3) -> float:
    """How many times smaller ours is; values below `floor` count as it."""
    return max(theirs, floor) / max(ours, floor)
