"""From observations to the numbers that are judged: one a seed, and the scale on which 0 is nothing and 1 the paper.

    x = (ours - no_effect) / (paper's number - no_effect)

A ratio (more is better, 1 means nothing) is averaged on logarithms, and mean and interval are then set on x. A score
bounded at 1 is judged by what is left of it, (1 - no_effect) / (1 - score), which is a ratio; so is a metric over the
baseline's metric, seed by seed. Of a range the paper's number is its middle. A direction has no number: x is then the
distance from no_effect in the metric's own unit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.lab.card import Baseline, Claim, Point
from common.lab.errors import LabError
from common.lab.runtime import Coordinate, Observation, Observations

LEAST_LEFT = 1e-12  # of a score: one that leaves nothing counts as leaving so much
FURTHEST = 300.0  # on a logarithm: what lies beyond is shown as this
CAPPED = "capped"  # the coordinate of a ratio whose rival stands on a floor: the true one is larger


@dataclass(frozen=True)
class Sample:
    """One value a seed, or the one value of a metric without chance (`seeds` empty); `capped` of them are bounds."""

    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    capped: int = 0

    @property
    def deterministic(self) -> bool:
        return not self.seeds


@dataclass(frozen=True)
class Scale:
    """A claim's scales: value -> coordinate, on which means are taken -> effect; and back to the value."""

    nothing: float
    unit: float  # the paper's effect on the scale that begins at `nothing`; of a direction 1 (signed)
    logarithmic: bool = False
    left: bool = False

    def coordinate(self, value: float) -> float:
        """Where means are taken. ValueError for a ratio that is not positive, and for a score over 1."""
        if self.left:
            if value > 1 + LEAST_LEFT:
                raise ValueError(f"a score that is judged by what is left of it is at most 1, not {value:g}")
            return math.log((1 - self.nothing) / max(1 - value, LEAST_LEFT))
        if not self.logarithmic:
            return value
        if value <= 0:
            raise ValueError(f"a ratio must be positive, not {value:g}: observe a floor and say capped")
        return math.log(value)

    def effect(self, coordinate: float) -> float:
        if self.left or self.logarithmic:
            return math.expm1(min(coordinate, FURTHEST)) / self.unit
        return (coordinate - self.nothing) / self.unit

    def value(self, coordinate: float) -> float:
        """The metric's value again."""
        if not (self.left or self.logarithmic):
            return coordinate
        factor = math.exp(max(-FURTHEST, min(coordinate, FURTHEST)))
        return 1 - (1 - self.nothing) / factor if self.left else factor

    def step(self, coordinate: float, resolution: float, relative: bool) -> tuple[float, float]:
        """Half a step of the metric to each side of a coordinate; the step is the metric's own, or relative to it."""
        if self.logarithmic:
            half = math.log1p(resolution) / 2
        elif self.left:
            value = self.value(coordinate)
            return self.coordinate(value - resolution / 2), self.coordinate(min(1.0, value + resolution / 2))
        else:
            half = resolution / 2 * (abs(coordinate) if relative else 1.0)
        return coordinate - half, coordinate + half

    def effects(self, sample: Sample) -> tuple[float, ...]:
        """The effect of each value."""
        return tuple(self.effect(self.coordinate(value)) for value in sample.values)


def scale_of(claim: Claim) -> Scale:
    """The scale of a claim. Of costs, counts and parity, which have no effect, the value itself."""
    sign = 1.0 if claim.better == "higher" else -1.0
    paper, nothing = claim.paper, claim.no_effect
    number = paper.value
    if paper.low is not None and paper.high is not None:
        number = (paper.low + paper.high) / 2
    if paper.kind in ("at_most", "exact", "invariant") or nothing is None:
        return Scale(0.0, 1.0)
    if isinstance(nothing, Baseline):
        if number is None or paper.baseline is None:
            return Scale(1.0, 1.0, logarithmic=True)
        over = number / paper.baseline if claim.better == "higher" else paper.baseline / number
        return Scale(1.0, over - 1, logarithmic=True)
    if paper.kind == "parity":
        return Scale(nothing, 1.0)
    if claim.left:
        unit = 1.0 if number is None else (1 - nothing) / (1 - number) - 1
        return Scale(nothing, unit, left=True)
    if paper.unit == "ratio" and sign > 0 and nothing == 1.0:
        return Scale(1.0, 1.0 if number is None else number - 1, logarithmic=True)
    return Scale(nothing, sign if number is None else number - nothing)


def on_effect(claim: Claim, value: float) -> float:
    """A value of the metric (a range's end, a direction's least) on the claim's effect."""
    scale = scale_of(claim)
    return scale.effect(scale.coordinate(value))


def settings(claim: Claim, seen: Observations, seeds: Sequence[int] = ()) -> list[Sample]:
    """The values of a claim's metric, one a seed: one sample, or of `up_to` without `at` one a setting; none: [].

    Over the baseline's where no_effect is a metric. LabError where a metric has several rows a seed, rows with and
    without a seed, or (given `seeds`) not every seed.
    """
    rows = seen.rows(claim.metric)
    if rows and claim.at:
        matching = [row for row in rows if all(row.at.get(key) == value for key, value in claim.at.items())]
        if not matching:
            known = sorted({f"{key}={value}" for row in rows for key, value in row.at.items()})
            wanted = ", ".join(f"{key}={value}" for key, value in claim.at.items())
            raise LabError(f"claim {claim.id}: at {wanted}: {claim.metric} is observed at {', '.join(known)}")
        rows = matching
    if claim.paper.kind == "up_to":
        groups: dict[tuple[tuple[str, Coordinate], ...], list[Observation]] = {}
        for row in rows:
            place = tuple(sorted((key, value) for key, value in row.at.items() if key != CAPPED))
            groups.setdefault(place, []).append(row)
        return [_sample(claim, group, seen, seeds) for group in groups.values()]
    return [_sample(claim, rows, seen, seeds)] if rows else []


def _sample(claim: Claim, rows: list[Observation], seen: Observations, seeds: Sequence[int]) -> Sample:
    ours = _by_seed(claim, claim.metric, rows)
    capped = sum(bool(row.at.get(CAPPED)) for row in rows)
    if None not in ours and not set(seeds) <= set(ours):
        raise LabError(
            f"claim {claim.id}: metric {claim.metric} has {len(ours)} of {len(seeds)} seeds; it needs a row for each"
        )
    if isinstance(claim.no_effect, Baseline):
        baseline = _at_the_same(rows[0], seen.rows(claim.no_effect.metric))
        theirs = _by_seed(claim, claim.no_effect.metric, baseline)
        capped = max(capped, sum(bool(row.at.get(CAPPED)) for row in baseline))
        ours = {seed: _over(claim, value, theirs.get(seed, theirs.get(None))) for seed, value in ours.items()}
    values = tuple(ours.values())
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"claim {claim.id}: a verdict needs finite values, not {list(values)}")
    return Sample(values, tuple(seed for seed in ours if seed is not None), capped)


def _at_the_same(ours: Observation, rows: list[Observation]) -> list[Observation]:
    """The baseline's rows at the coordinates of ours, where they have them."""
    return [
        row
        for row in rows
        if all(key == CAPPED or row.at.get(key, value) == value for key, value in ours.at.items())
    ]


def _by_seed(claim: Claim, metric: str, rows: list[Observation]) -> dict[int | None, float]:
    values: dict[int | None, float] = {}
    for row in rows:
        if row.seed in values:
            raise LabError(
                f"claim {claim.id}: metric {metric} has several rows for seed {row.seed}; a claim reads exactly one "
                "a seed (several settings are for kind up_to)"
            )
        values[row.seed] = row.value
    if None in values and len(values) > 1:
        raise LabError(f"claim {claim.id}: metric {metric} has rows with a seed and rows without")
    # by seed, not by appearance: a control is compared with ours pair by pair
    return values if None in values else dict(sorted(values.items(), key=lambda one: one[0] or 0))


def _over(claim: Claim, ours: float, theirs: float | None) -> float:
    if theirs is None:
        raise LabError(f"claim {claim.id}: no_effect: a seed has no row of the baseline's metric")
    if ours <= 0 or theirs <= 0:
        raise ValueError(f"claim {claim.id}: ours {ours:g} and the baseline's {theirs:g} must be positive")
    return ours / theirs if claim.better == "higher" else theirs / ours


def elsewhere(claim: Claim, tree: Mapping[str, object], seen: Observations) -> dict[str, dict[str, object]]:
    """The operating point as {name: {paper, ours, off}}; `off` where ours differs by over a factor of two, or in word.

    tree: the config as plain values. LabError for a field that is not there: a wrong key must not turn a number into a
    direction (nor may a metric that was not observed, which `floors_missed` tells).
    """
    return {
        name: {"paper": point.paper, "ours": ours, "off": not _near(point.paper, ours)}
        for name, point in claim.operating_point.items()
        for ours in [_ours(claim, point, tree, seen)]
    }


def _ours(claim: Claim, point: Point, tree: Mapping[str, object], seen: Observations) -> object:
    if point.metric is not None:
        values = seen.values(point.metric, **point.at)
        return math.fsum(values) / len(values) if values else None
    assert point.config is not None
    inside: object = tree
    for step in point.config.split("."):
        if not isinstance(inside, Mapping) or step not in inside:
            raise LabError(f"claim {claim.id}: operating_point: the config has no {point.config}")
        inside = inside[step]
    return inside


def _near(paper: object, ours: object) -> bool:
    if isinstance(ours, (list, tuple)):
        return any(_near(paper, each) for each in ours)
    numbers = [
        each for each in (paper, ours) if isinstance(each, (int, float)) and not isinstance(each, bool)
    ]
    if len(numbers) < 2:
        return paper == ours
    a, b = numbers
    return a == b or (a * b > 0 and 0.5 <= a / b <= 2.0)


def floors_missed(claim: Claim, seen: Observations) -> list[str]:
    """Which of a claim's `requires` this run does not meet, and what of its operating point it did not observe."""
    missed = [
        f"{point.metric}, which decides it, was not observed"
        for point in claim.operating_point.values()
        if point.metric is not None and not seen.rows(point.metric, **point.at)
    ]
    for name, bound in claim.requires.items():
        values = seen.values(name)
        low, high = bound if isinstance(bound, list) else (bound, math.inf)
        if not values:
            missed.append(f"{name} was not observed")
        elif min(values) < low:
            missed.append(f"{name} is {min(values):g}, below its floor of {low:g}")
        elif max(values) > high:
            missed.append(f"{name} is {max(values):g}, above {high:g}")
    return missed
