"""Priorities that change while requests run, drawn offline: the k-th update is the same whatever a server does.

Fair policies (token counters, service classes) move priorities at run time; the paper replaces them by two patterns.
"""

from collections.abc import Callable

import numpy as np

Update = Callable[[int], np.ndarray]  # the k-th update's priorities, one a conversation, higher first


def random_priorities(
    rng: np.random.Generator, conversations: int, kept: float = 0.0, exponent: float = 2.0
) -> Update:
    """Every update draws all priorities anew, uniform in [0, 1); the rest is for Markov alone."""
    return _remembered(lambda _: rng.random(conversations))


def markov_priorities(
    rng: np.random.Generator, conversations: int, kept: float = 0.8, exponent: float = 2.0
) -> Update:
    """Each priority stays with probability `kept` at an update, else is drawn anew from a Zipf distribution.

    Both constants are inferred. Raises ValueError for a probability beyond [0, 1] or an exponent of at most 1.
    """
    if not 0 <= kept <= 1 or not 1 < exponent < float("inf"):
        raise ValueError(f"kept ({kept}) is a probability, exponent ({exponent}) is above 1")

    def following(before: np.ndarray | None) -> np.ndarray:
        drawn = rng.zipf(exponent, conversations).astype(np.float64)
        keeps = rng.random(conversations) < kept
        return drawn if before is None else np.where(keeps, before, drawn)

    return _remembered(following)


def _remembered(following: Callable[[np.ndarray | None], np.ndarray]) -> Update:
    """Updates 0, 1, ... of a chain, each drawn once, in order, and kept."""
    drawn: list[np.ndarray] = []

    def update(k: int) -> np.ndarray:
        while len(drawn) <= k:
            drawn.append(following(drawn[-1] if drawn else None))
        return drawn[k]

    return update


PATTERNS = {"random": random_priorities, "markov": markov_priorities}
