"""Stage II of the search: shares of the execution units under interference, and the order that suits them (4.1.3).

Simulated annealing over priorities and shares on the list schedule, from Stage I's order; the best drafts are polished
by the mixed-integer program of polish.py and accepted only if replay.py finds nothing wrong. Everything is counted in
evaluations and nodes, never in seconds, so that the same seed gives the same schedule.
"""

import math
from typing import NamedTuple

import numpy as np

from papers.nanoflow.cost_model import COMPUTE, MEMORY, NETWORK
from papers.nanoflow.interference import Interference
from papers.nanoflow.list_schedule import Choice, Evaluator
from papers.nanoflow.nano_batches import Layer
from papers.nanoflow.polish import Schedule, polish
from papers.nanoflow.replay import violations

# Twentieths, for a collective needs about 0.05 (the paper's step is 0.1).
LEVELS = tuple(k / 20 for k in range(1, 21))
# Where annealing starts: shares at which the three streams nearly fit together.
_START = {COMPUTE: 0.75, MEMORY: 0.2, NETWORK: 0.1}
_HOT, _COLD = 0.02, 0.0005  # temperatures, relative to the period


class Found(NamedTuple):
    """A pipeline: the choice behind it (for other batches), and its checked schedule."""

    layer: Layer
    choice: Choice
    schedule: Schedule


def staggered(layer: Layer, batch: int) -> tuple[float, ...]:
    """Priorities that let nano-batches follow one another through the chain at equal distances."""
    chain = list(dict.fromkeys(op.operator for op in layer.ops))
    return tuple(chain.index(op.operator) / len(chain) + op.low / batch for op in layer.ops)


def order_of(schedule: Schedule) -> tuple[float, ...]:
    """Priorities of a schedule: its starts, in layers."""
    return tuple(start / schedule.period for start in schedule.starts)


def anneal(
    layer: Layer,
    curves: Interference,
    priorities: tuple[float, ...],
    rng: np.random.Generator,
    evaluations: int,
    shares: tuple[float, ...] | None = None,
) -> tuple[Choice, float]:
    """The best choice met on a walk that starts at these priorities, and its period (us)."""
    evaluator = Evaluator(layer, curves)
    ops, count, top = layer.ops, len(layer.ops), len(LEVELS)
    current = Choice(priorities, shares or tuple(_START[op.stream] for op in ops))
    value = evaluator.period(current)
    best, lowest = current, value
    for step in range(evaluations):
        temperature = lowest * _HOT * (_COLD / _HOT) ** (step / evaluations)
        order, parts = list(current.priorities), list(current.shares)
        op, kind = int(rng.integers(count)), rng.random()
        if kind < 0.35:
            order[op] += rng.normal(0, 0.15)
        elif kind < 0.45:  # a whole nano-batch, or all copies of an operator
            shift, by_batch = rng.normal(0, 0.15), rng.random() < 0.5
            for other in range(count):
                alike = ops[other].low == ops[op].low if by_batch else ops[other].operator == ops[op].operator
                order[other] += shift if alike else 0.0
        elif kind < 0.8:
            parts[op] = _moved(parts[op], int(rng.choice([-2, -1, 1, 2])), top)
        else:
            change = int(rng.choice([-1, 1]))
            for other in range(count):
                if ops[other].stream == ops[op].stream:
                    parts[other] = _moved(parts[other], change, top)
        candidate = Choice(tuple(order), tuple(parts))
        period = evaluator.period(candidate)
        if period < value or rng.random() < math.exp(-(period - value) / temperature):
            current, value = candidate, period
            if period < lowest:
                best, lowest = candidate, period
    return best, lowest


def checked(layer: Layer, curves: Interference, choice: Choice, nodes: int) -> Found | None:
    """The choice's schedule, polished and replayed; None where it is not periodic or breaks a rule.

    nodes: of the program that chooses shares anew; 0 keeps the choice's and finds the best starts.
    """
    draft = Evaluator(layer, curves).draft(choice)
    levels = [LEVELS] * len(layer.ops) if nodes else [(share,) for share in choice.shares]
    schedule = draft and polish(layer, curves, draft, levels, nodes=max(nodes, 1))
    if schedule is None or violations(
        layer.ops, *schedule, curves.exponents, dependent=bool(layer.dependencies)
    ):
        return None
    return Found(layer, choice, schedule)


def one_after_another(layer: Layer) -> Found:
    """The schedule that overlaps nothing: always feasible."""
    starts = tuple(float(s) for s in np.cumsum([0.0, *(op.work for op in layer.ops[:-1])]))
    shares = (1.0,) * len(layer.ops)
    schedule = Schedule(layer.sequential, starts, shares)
    return Found(layer, Choice(order_of(schedule), shares), schedule)


def random_schedule(
    layer: Layer, curves: Interference, rng: np.random.Generator, draws: int = 100
) -> Found | None:
    """A feasible schedule with priorities and shares drawn blindly; None where no draw becomes periodic.

    Starts are the best for the drawn order and shares; the same replay checks it.
    """
    for _ in range(draws):
        shares = tuple(LEVELS[int(rng.integers(1, len(LEVELS)))] for _ in layer.ops)
        choice = Choice(tuple(rng.uniform(0.0, 1.0, len(layer.ops))), shares)
        if found := checked(layer, curves, choice, 0):
            return found
    return None


def _moved(share: float, levels: int, top: int) -> float:
    return LEVELS[min(top, max(1, round(share * top) + levels)) - 1]
