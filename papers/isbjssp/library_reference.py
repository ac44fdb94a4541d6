"""The library's MaskablePPO on the same shops, through a view of fixed size: what a policy without a graph learns.

An observation is one row of features for each job (zeros for those that are not candidates): processing time, work and
operations left, time waited, and queue and state of the job's next machine. An action is a job.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from common.rl.masked_ppo import play, train_masked
from common.scheduling import job_shop_events as events
from common.scheduling.job_shop import Shop
from papers.isbjssp.evaluation import Case
from papers.isbjssp.training import Lessons, cost, reference_makespan, sampled

COLUMNS = 7


def view(shop: Shop, jobs: int) -> np.ndarray:
    """Features of the candidates, float32 (jobs * COLUMNS,). ValueError for a shop with more jobs."""
    instance = shop.instance
    if instance.jobs > jobs:
        raise ValueError(f"a shop of {instance.jobs} jobs does not fit a view of {jobs}")
    rows = np.zeros((jobs, COLUMNS), dtype=np.float32)
    unit = 2.0 * float(instance.durations.mean())
    state, started, _, ready, _ = shop.jobs
    waits = np.flatnonzero((state == events.OUTSIDE) | (state == events.HOLDING))
    queue = np.bincount(instance.machines[waits, started[waits]], minlength=instance.stations)
    for job in shop.candidates:
        k = int(started[job])
        rows[job, :5] = (
            1.0,
            instance.durations[job, k] / unit,
            instance.work_left[job, k] / unit / instance.stations,
            (instance.stations - k) / instance.stations,
            (shop.time - ready[job]) / unit,
        )
        if k + 1 < instance.stations:
            following = instance.machines[job, k + 1]
            rows[job, 5:] = queue[following] / instance.jobs, shop.stations[events.HOLDER, following] >= 0
    return rows.ravel()


@cache
def environment_class() -> Any:
    """The Gymnasium environment (the extra `rl`)."""
    import gymnasium

    class ShopEnvironment(gymnasium.Env):
        """One shop an episode: a random one, or those that are given, in turn."""

        def __init__(self, lessons: Lessons, jobs: int, given: Sequence[Case] = (), seed: int = 0) -> None:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (jobs * COLUMNS,), np.float32)
            self.action_space = gymnasium.spaces.Discrete(jobs)
            self.lessons, self.jobs, self.given, self.turn = lessons, jobs, list(given), 0
            self.rng = np.random.default_rng(seed)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            if seed is not None:
                self.rng = np.random.default_rng(seed)
            if self.given:
                self.shop = self.given[self.turn % len(self.given)].shop()
                self.turn += 1
            else:
                self.shop = sampled(self.lessons, self.rng)
            self.reference = reference_makespan(self.shop)
            self.spent = cost(self.shop, self.lessons.reward, self.reference)
            return view(self.shop, self.jobs), {"done": self.shop.done}

        def action_masks(self) -> np.ndarray:
            allowed = np.zeros(self.jobs, dtype=bool)
            allowed[self.shop.candidates] = True
            return allowed

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
            self.shop.take(int(action))
            now = cost(self.shop, self.lessons.reward, self.reference)
            reward, self.spent = self.spent - now, now
            info = {"makespan": self.shop.makespan} if self.shop.done else {}
            return view(self.shop, self.jobs), reward, self.shop.done, False, info

    return ShopEnvironment


def library_makespans(lessons: Lessons, given: Sequence[Case], steps: int, seed: int) -> np.ndarray:
    """Makespans (cases,) by MaskablePPO trained for so many steps on random shops."""
    jobs = max(lessons.jobs[1], *(one.instance.jobs for one in given))
    make = environment_class()
    model = train_masked(make(lessons, jobs, seed=seed), steps, seed)
    on = make(lessons, jobs, given)
    return np.array([play(model, on).info["makespan"] for _ in given], dtype=float)
