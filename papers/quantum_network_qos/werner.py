"""Werner states: what swapping and distilling do to a pair's fidelity, and what they ask of the pairs that go in.

A Werner state of fidelity F is the mixture F |Phi+><Phi+| + (1 - F)/3 (the other three Bell states). All functions
take and return fidelities; the formulas are exact for perfect local operations (Bennett et al., PRL 76, 722, 1996).
"""

from math import inf, sqrt


def swap(left: float, right: float) -> float:
    """The pair that is left when a repeater measures two halves in the Bell basis."""
    return (4 * left * right - left - right + 1) / 3


def unswap(target: float) -> float:
    """Two equal pairs of this fidelity swap to `target`: the root of 4/3 x^2 - 2/3 x + 1/3 = target."""
    return (1 + sqrt(12 * target - 3)) / 4


def succeeds(first: float, second: float) -> float:
    """The probability that distilling two pairs succeeds: both ends see the same outcome."""
    b, c = (1 - first) / 3, (1 - second) / 3
    return first * second + first * c + second * b + 5 * b * c


def distil(first: float, second: float) -> float:
    """The pair that is left when two pairs are distilled and it succeeds (Bennett's protocol)."""
    b, c = (1 - first) / 3, (1 - second) / 3
    return (first * second + b * c) / succeeds(first, second)


def pump(fidelity: float, times: int) -> float:
    """Distil a pair `times` times with fresh pairs of the fidelity that it began with."""
    current = fidelity
    for _ in range(times):
        current = distil(current, fidelity)
    return current


def pumpings(fidelity: float, target: float) -> float:
    """How many pumpings reach `target`; inf where pumping ends below it."""
    current, times = fidelity, 0
    while current < target:
        better = distil(current, fidelity)
        if fidelity <= 0.5 or better <= current + 1e-9:
            return inf
        current, times = better, times + 1
    return times


def before_pumpings(target: float, times: int) -> float | None:
    """The smallest fidelity (to 1e-9) that reaches `target` with at most `times` pumpings.

    None where target <= 0.5: pumping gains nothing there.
    """
    if times == 0:
        return target
    if target <= 0.5:
        return None
    low, high = 0.5, target
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if pump(middle, times) >= target else (middle, high)
    return high


def levels(fidelity: float, target: float, most: int = 12) -> float:
    """How many levels of nested distillation (2^n pairs) reach `target`; inf where `most` don't."""
    current = fidelity
    for level in range(most + 1):
        if current >= target:
            return level
        current = distil(current, current)
    return inf
