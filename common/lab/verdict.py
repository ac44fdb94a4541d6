"""Verdicts: what our values say about a claim of the paper. Pure functions of the card and the values.

`judge` turns one value a seed into a verdict, `control_holds` says whether a negative control broke the claim.

Everything is judged on the axis "better": for `better: lower` all signs are flipped first. With the interval [a, b] of
our values, the claim's band [low, high] and no_effect below low (the card refuses anything else):

    contradicted   b < no_effect
    inconclusive   a <= no_effect <= b
    weaker         no_effect < a, and short of the band
    reproduced     no_effect < a, and the band is met
    stronger       no_effect < a, and beyond the band

Where the claim is a number (value, up_to) the band is value x (1 +- tolerance) and is met where the interval overlaps
it. Where it is a bound, a range or exact, the whole interval must be inside; an interval that is nowhere worse than the
range and somewhere better than it is `stronger`. A direction has the band (no_effect, infinity).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.lab.card import BANDED, Claim, Control
from common.lab.errors import LabError
from common.lab.runtime import Observations

Name = Literal["reproduced", "stronger", "weaker", "inconclusive", "contradicted", "not run"]
Note = Literal["", "deterministic", "one seed"]
UPHELD = ("reproduced", "stronger", "weaker")  # verdicts that a negative control must not reach
CONFIDENCE = 0.95
SLACK = 1e-9  # relative; a ratio of equal sums may differ from 1 by rounding


@dataclass(frozen=True)
class Sample:
    """One value a seed, or the one value of a deterministic metric (`seeds` empty)."""

    values: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it rests on; without values where the claim was not run, for the `reason` given."""

    verdict: Name
    values: tuple[float, ...] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    note: Note = ""
    reason: str = ""


def sample(claim: Claim, seen: Observations, seeds: Sequence[int] = ()) -> Sample | None:
    """The values of a claim's metric, one a seed; None where it was not observed.

    Of `up_to` each seed's best value over the settings counts. LabError where a metric has several rows a seed, rows
    with and without a seed, or (given `seeds`) not every seed.
    """
    rows = seen.rows(claim.metric)
    if not rows:
        return None
    by_seed: dict[int | None, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row.seed, []).append(row.value)
    if None in by_seed and len(by_seed) > 1:
        raise LabError(f"claim {claim.id}: metric {claim.metric} has rows with a seed and rows without")
    best = max if claim.better == "higher" else min
    for seed, values in by_seed.items():
        if len(values) > 1 and claim.paper.kind != "up_to":
            raise LabError(
                f"claim {claim.id}: metric {claim.metric} has {len(values)} rows for seed {seed}; "
                "a claim reads exactly one a seed (several settings are for kind up_to)"
            )
    observed = tuple(seed for seed in by_seed if seed is not None)
    if observed and set(seeds) - set(observed):
        missing = ", ".join(str(seed) for seed in sorted(set(seeds) - set(observed)))
        raise LabError(f"claim {claim.id}: metric {claim.metric} has no value for seed {missing}")
    return Sample(tuple(best(values) for values in by_seed.values()), observed)


def judge(claim: Claim, values: Sequence[float], deterministic: bool = False) -> Verdict:
    """The verdict on a claim from one value a seed (or the one value of a deterministic metric).

    The interval is a 95% bootstrap interval of the mean over seeds; of one value it is that value.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"claim {claim.id}: a verdict needs finite values, not {list(values)}")
    low, high = (values[0], values[0]) if len(values) == 1 else _interval(values)
    note: Note = "deterministic" if deterministic else "one seed" if len(values) == 1 else ""
    return Verdict(_name(claim, low, high), tuple(values), math.fsum(values) / len(values), (low, high), note)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    from common.stats.intervals import bootstrap_interval  # brings scipy, which a single seed does not need

    return bootstrap_interval(values, confidence=CONFIDENCE, seed=0)


def _name(claim: Claim, low: float, high: float) -> Name:
    sign = 1.0 if claim.better == "higher" else -1.0
    a, b = sorted((sign * low, sign * high))
    nothing = sign * claim.no_effect
    if _reaches(nothing, a):
        return "contradicted" if not _reaches(b, nothing) else "inconclusive"
    worst, best = band(claim)
    if claim.paper.kind in BANDED:
        return "weaker" if not _reaches(b, worst) else "stronger" if not _reaches(best, a) else "reproduced"
    return "weaker" if not _reaches(a, worst) else "stronger" if not _reaches(best, b) else "reproduced"


def _reaches(a: float, b: float) -> bool:
    """a >= b, but for rounding."""
    return a >= b - SLACK * max(abs(a), abs(b)) if math.isfinite(a) and math.isfinite(b) else a >= b


def band(claim: Claim) -> tuple[float, float]:
    """What reproduces the claim on the axis "better" (signs flipped for `better: lower`): its worst and best value."""
    sign = 1.0 if claim.better == "higher" else -1.0
    paper, kind = claim.paper, claim.paper.kind
    if kind == "direction":
        return sign * claim.no_effect, math.inf
    if kind == "range":
        assert paper.low is not None and paper.high is not None
        worst, best = sorted((sign * paper.low, sign * paper.high))
        return worst, best
    assert paper.value is not None
    centre = sign * paper.value
    if kind in BANDED:
        half = abs(centre) * (claim.tolerance or 0.0)
        return centre - half, centre + half
    return centre, centre if kind == "exact" else math.inf


def control_holds(claim: Claim, control: Control, ours: Verdict, under_control: Verdict) -> bool:
    """Whether the negative control broke the claim: nothing of it is upheld, or, of a partial control, at most half.

    Half of an effect is lost where the mean under the control lies at most half as far on the better side of
    no_effect as ours does. A control under which nothing was observed does not hold: it shows nothing.
    """
    if under_control.verdict == "not run":
        return False
    if under_control.verdict not in UPHELD:
        return True
    if not control.partial or ours.mean is None or under_control.mean is None:
        return False
    sign = 1.0 if claim.better == "higher" else -1.0
    effect = sign * (ours.mean - claim.no_effect)
    left = sign * (under_control.mean - claim.no_effect)
    return effect > 0 and left <= effect / 2
