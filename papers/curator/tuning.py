"""Every index at the same recall: the smallest setting of its search knob that reaches it, then counts and times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from papers.curator.search import Found
from papers.curator.workload import recall

Search = Callable[[int], Found]  # of the queries with a value of the knob


@dataclass(frozen=True)
class Tuned:
    """An index at its cheapest setting."""

    knob: int
    recall: float
    touched: np.ndarray  # (queries,) entries
    found: Found


def cheapest(search: Search, truth: np.ndarray, least: int, most: int, wanted: float) -> Tuned:
    """The smallest knob whose recall is at least `wanted`, found by doubling steps and bisection; `most` if none is.

    More of the knob means more work and, but for ties, more recall. truth: (queries, k), -1 where a tenant sees fewer.
    """
    low, step, high = least, max(1, least // 4), least
    while high < most and recall(search(high).ids, truth) < wanted:
        low, high, step = high + 1, min(most, high + step), 2 * step
    while low < high:
        middle = (low + high) // 2
        if recall(search(middle).ids, truth) < wanted:
            low = middle + 1
        else:
            high = middle
    found = search(low)
    return Tuned(low, recall(found.ids, truth), found.touched, found)


def seconds(searches: Mapping[str, Callable[[], Found]], rounds: int) -> dict[str, np.ndarray]:
    """The time of each query in every index: its median over rounds in which the indexes take turns.

    Each turn begins with a run that does not count, so that every index finds the caches as it left them itself, and
    none what another that reads the same vectors has just brought in.
    """
    times: dict[str, list[np.ndarray]] = {name: [] for name in searches}
    for number in range(rounds):
        for name in list(searches)[:: -1 if number % 2 else 1]:
            searches[name]()
            times[name].append(searches[name]().seconds)
    return {name: np.median(runs, axis=0) for name, runs in times.items()}
