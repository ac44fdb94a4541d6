"""The two-stage search: number and sizes of the nano-batches, their order, and their shares (Section 4.1)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from papers.nanoflow.cost_model import Operator
from papers.nanoflow.interference import Interference
from papers.nanoflow.list_schedule import Choice
from papers.nanoflow.nano_batches import UNIT, Layer, even_cuts, split_layer
from papers.nanoflow.polish import Schedule
from papers.nanoflow.stage_one import best_order
from papers.nanoflow.stage_two import (
    Found,
    anneal,
    checked,
    one_after_another,
    order_of,
    random_schedule,
    staggered,
)

Cuts = Mapping[str, tuple[int, ...]]


class Effort(NamedTuple):
    """How hard to look: sizes tried by Stage I, walks of Stage II and their length, nodes of each integer program."""

    splits: int = 3
    walks: int = 6
    evaluations: int = 2500
    refined: int = 5000
    nodes: int = 20


class Structure(NamedTuple):
    """Cuts of each operator, what Stage I makes of them."""

    cuts: Cuts
    layer: Layer
    schedule: Schedule


class Walk(NamedTuple):
    """Where an annealing begins, and how long it may take."""

    layer: Layer
    curves: Interference
    priorities: tuple[float, ...]
    rng: np.random.Generator
    evaluations: int
    shares: tuple[float, ...] | None


class Pipeline(NamedTuple):
    """What the search returns."""

    cuts: Cuts
    stage_one: Schedule | None  # None where the structure was given
    found: Found

    @property
    def period(self) -> float:
        """Microseconds of one layer."""
        return self.found.schedule.period


def halves(ops: Mapping[str, Operator], batch: int, effort: Effort) -> list[Cuts]:
    """Every operator in two, at the sizes that Stage I tries."""
    at = even_cuts(batch, 2)
    if batch >= 8 * UNIT:
        half = at[0]
        at = tuple(dict.fromkeys((half, half - half // 4 // UNIT * UNIT, half - UNIT, half + UNIT)))
    return [dict.fromkeys(ops, (cut,)) for cut in at[: effort.splits]]


def quarters(cuts: Cuts, batch: int, effort: Effort) -> list[Cuts]:
    """The same with attention, or what feeds it as well, in four, where the batch has room for that."""
    if (
        effort.splits == 1 or 2 * UNIT <= batch < 4 * UNIT
    ):  # multiples of 128 apply, and there are fewer than four
        return []
    finer = tuple(sorted({*even_cuts(batch, 4), *cuts["Attn"]}))
    return [{**cuts, **dict.fromkeys(names, finer)} for names in (("Attn",), ("KQV", "Attn"))]


def structures(
    ops: Mapping[str, Operator], batch: int, effort: Effort, *, dependent: bool = True
) -> list[Structure]:
    """Stage I: cuts tried and their periods without interference, the best first.

    Two nano-operations each, at several sizes; then the operators in front of and behind attention in four, kept only
    if that shortens the period (bubbles of the compute stream remain in all of them).
    """

    def solved(cuts: Cuts) -> Structure:
        layer = split_layer(ops, batch, cuts, dependent=dependent)
        return Structure(cuts, layer, best_order(layer, effort.nodes))

    found = [solved(cuts) for cuts in halves(ops, batch, effort)]
    found.sort(key=lambda one: one.schedule.period)
    best = found[0]
    found += [solved(cuts) for cuts in quarters(best.cuts, batch, effort)]
    found.sort(key=lambda one: one.schedule.period)  # stable: fewer nano-operations first among equals
    return found


def walk(job: Walk) -> Found | None:
    """One annealing and its check; None where it ended in no periodic schedule."""
    choice, _ = anneal(job.layer, job.curves, job.priorities, job.rng, job.evaluations, job.shares)
    return checked(job.layer, job.curves, choice, 0)


def search(
    ops: Mapping[str, Operator],
    batch: int,
    curves: Interference,
    rng: np.random.Generator,
    effort: Effort,
    *,
    dependent: bool = True,
    start: tuple[Cuts, Choice] | None = None,
    tried: Sequence[Structure] = (),
) -> Pipeline:
    """Both stages, never worse than one after another without a split.

    start: a pipeline of the same operators and batch, which takes the place of Stage I and of the walks' first half.
    tried: what `structures` gives, which no seed changes.
    """
    if start is None:
        tried = tried or structures(ops, batch, effort, dependent=dependent)
        jobs = []
        for k, child in enumerate(rng.spawn(effort.walks)):
            structure = tried[(k // 2) % len(tried)]
            order = order_of(structure.schedule) if k % 2 else staggered(structure.layer, batch)
            jobs.append(Walk(structure.layer, curves, order, child, effort.evaluations, None))
        good = sorted((found for job in jobs if (found := walk(job))), key=_period)[:2]
    else:
        cuts, choice = start
        layer = split_layer(ops, batch, cuts, dependent=dependent)
        same = checked(layer, curves, choice, 0)
        good = [same] if same else []
    again = [
        Walk(f.layer, curves, f.choice.priorities, child, effort.refined, f.schedule.shares)
        for f, child in zip(good, rng.spawn(len(good)), strict=True)
    ]
    good += [found for job in again if (found := walk(job))]
    best = min(good, key=_period, default=None)
    polished = best and checked(best.layer, curves, best.choice, effort.nodes)
    good += [polished] if polished else []
    cuts_of = {structure.layer: structure.cuts for structure in tried} if start is None else {layer: cuts}
    good.append(one_after_another(split_layer(ops, batch, {}, dependent=dependent)))
    best = min(good, key=_period)
    return Pipeline(cuts_of.get(best.layer, {}), tried[0].schedule if tried else None, best)


def drawn(
    ops: Mapping[str, Operator], batch: int, curves: Interference, rng: np.random.Generator, effort: Effort
) -> Pipeline:
    """A pipeline drawn blindly from what the search chooses among: cuts, order and shares; the same replay checks it.

    Where no draw becomes periodic the drawn nano-batches run one after another.
    """
    known = halves(ops, batch, effort)
    known += [finer for cuts in known for finer in quarters(cuts, batch, effort)]
    cuts = known[int(rng.integers(len(known)))]
    layer = split_layer(ops, batch, cuts)
    found = random_schedule(layer, curves, rng) or one_after_another(layer)
    return Pipeline(cuts, one_after_another(layer).schedule, found)


def _period(found: Found) -> float:
    return found.schedule.period


def plain(ops: Mapping[str, Operator], batch: int) -> Layer:
    """The layer that is not split: non-overlap."""
    return split_layer(ops, batch, {})


def halved(ops: Mapping[str, Operator], batch: int) -> Layer:
    """Two nano-operations of everything: nano-batch-only, where they run one after another."""
    return split_layer(ops, batch, {name: even_cuts(batch, 2) for name in ops})
