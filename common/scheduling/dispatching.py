"""Priority dispatching rules: an idle machine takes the waiting job of highest priority.

A rule is a function of the shop that scores its candidates; `dispatch` lets it decide until the shop is done. SRPT and
LRPT are other names of LWKR and MWKR. Sources: Panwalkar and Iskander, Operations Research 25, 45 (1977), and the
rules with which Park et al. (arXiv 2106.01086) compare.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from common.scheduling import job_shop_events as events
from common.scheduling.job_shop import Schedule, Shop


class Rule(Protocol):
    """Scores of shop.candidates, shape (candidates,); the highest is taken, the first of equal ones."""

    def __call__(self, shop: Shop) -> np.ndarray: ...


def _next(shop: Shop) -> np.ndarray:
    """The operation that each candidate waits with."""
    return shop.jobs[events.STARTED, shop.candidates]


def shortest_operation(shop: Shop) -> np.ndarray:
    """SPT."""
    return -shop.instance.durations[shop.candidates, _next(shop)]


def longest_operation(shop: Shop) -> np.ndarray:
    """LPT."""
    return shop.instance.durations[shop.candidates, _next(shop)]


def longest_waiting(shop: Shop) -> np.ndarray:
    """FIFO."""
    return -shop.jobs[events.READY, shop.candidates]


def shortest_waiting(shop: Shop) -> np.ndarray:
    """LIFO."""
    return shop.jobs[events.READY, shop.candidates]


def most_work(shop: Shop) -> np.ndarray:
    """MWKR: most work left, the operation at hand included."""
    return shop.instance.work_left[shop.candidates, _next(shop)]


def least_work(shop: Shop) -> np.ndarray:
    """LWKR."""
    return -shop.instance.work_left[shop.candidates, _next(shop)]


def most_work_after(shop: Shop) -> np.ndarray:
    """LRM: most work left after the operation at hand."""
    return shop.instance.work_left[shop.candidates, _next(shop) + 1]


def least_work_after(shop: Shop) -> np.ndarray:
    """SRM."""
    return -shop.instance.work_left[shop.candidates, _next(shop) + 1]


def most_operations(shop: Shop) -> np.ndarray:
    """MOR: most operations left."""
    return -_next(shop)


def fewest_operations(shop: Shop) -> np.ndarray:
    """LOR."""
    return _next(shop)


def shortest_job(shop: Shop) -> np.ndarray:
    """STPT: least work in total."""
    return -shop.instance.work_left[shop.candidates, 0]


def longest_job(shop: Shop) -> np.ndarray:
    """LTPT."""
    return shop.instance.work_left[shop.candidates, 0]


def shortest_next_queue(shop: Shop) -> np.ndarray:
    """SQN: fewest jobs wait for the candidate's next machine; the way out has no queue."""
    instance, started, state = shop.instance, shop.jobs[events.STARTED], shop.jobs[events.STATE]
    waits = np.flatnonzero((state == events.OUTSIDE) | (state == events.HOLDING))
    queues = np.bincount(instance.machines[waits, started[waits]], minlength=instance.stations + 1)
    after = _next(shop) + 1
    last = after == instance.stations
    following = instance.machines[shop.candidates, np.minimum(after, instance.stations - 1)]
    return -queues[np.where(last, instance.stations, following)]


def longest_next_queue(shop: Shop) -> np.ndarray:
    """LQN."""
    return -shortest_next_queue(shop)


RULES: dict[str, Rule] = {
    "SPT": shortest_operation,
    "LPT": longest_operation,
    "FIFO": longest_waiting,
    "LIFO": shortest_waiting,
    "MWKR": most_work,
    "LWKR": least_work,
    "LRM": most_work_after,
    "SRM": least_work_after,
    "MOR": most_operations,
    "LOR": fewest_operations,
    "STPT": shortest_job,
    "LTPT": longest_job,
    "SQN": shortest_next_queue,
    "LQN": longest_next_queue,
}


def random_rule(rng: np.random.Generator) -> Rule:
    """RANDOM: every candidate is as likely."""

    def rule(shop: Shop) -> np.ndarray:
        return rng.random(len(shop.candidates))

    return rule


def dispatch(shop: Shop, rule: Rule | Callable[[Shop], np.ndarray]) -> Schedule:
    """Let a rule decide until the shop is done (or stuck: see `shop.deadlocked`)."""
    while not shop.done:
        shop.take(int(shop.candidates[np.argmax(rule(shop))]))
    return shop.schedule()
