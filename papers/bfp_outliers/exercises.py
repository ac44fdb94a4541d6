"""The notebook's exercises and their solutions."""

from itertools import combinations

import numpy as np

from common.lab.exercises import Exercise

MAGNITUDES = (1.0, 1.2, 8.0, 0.9, 6.0, 7.0, 1.1, 0.8)  # of a head's channels, in its own order
BLOCK = 4


def sum_of_steps(order: tuple[int, ...]) -> float:
    """Sum over blocks of four of the power of two at or below the largest magnitude, for an order of MAGNITUDES."""
    rows = np.array(MAGNITUDES)[list(order)].reshape(-1, BLOCK)
    return float(np.sum(2.0 ** np.floor(np.log2(rows.max(axis=1)))))


def by_size() -> tuple[int, ...]:
    """The channels from the smallest to the largest: K-sort's order."""
    return tuple(int(channel) for channel in np.argsort(MAGNITUDES))


def least_of_all() -> float:
    """The least sum of steps of any way to put four of the eight channels into the first block."""
    channels = range(len(MAGNITUDES))
    return min(
        sum_of_steps((*first, *(c for c in channels if c not in first)))
        for first in combinations(channels, BLOCK)
    )


def bytes_an_element(bits: int, block: int) -> float:
    """Bytes of an element with a mantissa of `bits` and an exponent of eight bits a block."""
    return (bits + 8 / block) / 8


EXERCISES = {
    "exercise-1": Exercise(
        question=(
            "Eight channels have the magnitudes MAGNITUDES, two blocks of four. What is the sum of the blocks' steps "
            "(powers of two at or below the largest) in K-sort's order?"
        ),
        hint="`sum_of_steps(by_size())`; `least_of_all()` tries every way and finds nothing smaller.",
        answer=lambda lab: sum_of_steps(by_size()),
        tolerance=1e-9,
    ),
    "exercise-2": Exercise(
        question="By what factor is BFP12 smaller than BFP16 with blocks of 32, exponents counted?",
        hint="`bytes_an_element(8, 32) / bytes_an_element(4, 32)`: the exponents are on both sides.",
        answer=lambda lab: bytes_an_element(8, 32) / bytes_an_element(4, 32),
        tolerance=0.001,
    ),
}
