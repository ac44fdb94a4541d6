"""Priorities that change while requests run, drawn offline: the k-th update is the same whatever a server does.

Fair policies (token counters, service classes) move priorities at run time; the paper replaces them by two patterns.
"""

from collections.abc import Callable

import numpy as np

KEPT = 0.8  # probability that Markov keeps a priority at an update (inferred)
ZIPF_EXPONENT = 2.0  # of Markov's new priorities: few users are very important, most are alike (inferred)

Update = Callable[[int], np.ndarray]  # the k-th update's priorities, one a conversation, higher first


def random_priorities(rng: np.random.Generator, conversations: int) -> Update:
    """Every update draws all priorities anew, uniform in [0, 1)."""
    return _remembered(lambda _: rng.random(conversations))


def markov_priorities(rng: np.random.Generator, conversations: int) -> Update:
    """Each priority stays with probability KEPT at an update, else is drawn anew from a Zipf distribution."""

    def following(before: np.ndarray | None) -> np.ndarray:
        drawn = rng.zipf(ZIPF_EXPONENT, conversations).astype(np.float64)
        keeps = rng.random(conversations) < KEPT
        return drawn if before is None else np.where(keeps, before, drawn)

    return _remembered(following)


PATTERNS = {"random": random_priorities, "markov": markov_priorities}


def _remembered(following: Callable[[np.ndarray | None], np.ndarray]) -> Update:
    """Updates 0, 1, ... of a chain, each drawn once, in order, and kept."""
    drawn: list[np.ndarray] = []

    def update(k: int) -> np.ndarray:
        while len(drawn) <= k:
            drawn.append(following(drawn[-1] if drawn else None))
        return drawn[k]

    return update
