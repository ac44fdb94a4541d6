"""Verdicts: what our values say about a claim of the paper. Pure functions of the card and the values.

With the effect's mean m, its 95% interval [a, b] (Student's t over seeds), its half-width h, and the band of the claim
(1 - t to 1 + t of a number, 1 and beyond of a bound, its ends of a range), the first that fits:

    contradicted   b < 0
    reproduced     a > 0, m inside the band, and the interval is narrow enough: h at most t
    weaker         a > 0, m short of the band, b short of the paper's number
    stronger       a > 0, m beyond the band, a beyond the paper's number
    absent         a <= 0 and b < 1/2: half of the paper's effect would have been seen
    inconclusive   else

Narrow enough means, for every kind, that half of what the paper says would not have been taken for it: the interval
also lies above half of the band's nearest number. Directions, parities, costs and counts have rules of their own below.
A ratio whose rival stands on a floor (capped) is a bound from below: only that it lies above nothing can be decided.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from common.lab.card import BANDED, GAINS, PUBLISHED, Baseline, Claim
from common.lab.effect import Sample, Scale, on_effect, scale_of

Name = Literal["reproduced", "stronger", "weaker", "absent", "inconclusive", "contradicted", "not run"]
UPHELD = ("reproduced", "stronger", "weaker")  # verdicts that something is left to break of
CONFIDENCE = 0.95
SLACK = 1e-9  # a ratio of equal sums may differ from 1 by rounding
SEEDS = 5  # the fewest that anything random is recorded with
WIDEST_BOUND = 0.5  # half-width of the effect under a bound or a direction
WIDEST_RANGE = 0.25  # of a range that is narrower itself
COARSE = "as wide as a step of its metric"
HARDLY = 0.1  # of the paper's cost: below it the cost is hardly modelled


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it rests on: values and mean in the metric's unit, half-width on the effect."""

    verdict: Name
    values: tuple[float, ...] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    effect: float | None = None
    effect_interval: tuple[float, float] | None = None
    half_width: float | None = None
    seeds_needed: int | None = None
    capped: bool = False  # some of its values only bound the true ratio from below
    settings: int = 1  # of a maximum: among how many it was the best
    judged_as: str = ""
    note: str = ""  # "deterministic", "one seed"
    reason: str = ""  # why it was not run, or what would decide it
    marks: tuple[str, ...] = ()  # what a reader must know beside it
    effects: tuple[float, ...] = field(default=(), repr=False)  # one a value


def not_run(reason: str) -> Verdict:
    return Verdict("not run", reason=reason)


def judge(claim: Claim, samples: Sequence[Sample], off: Mapping[str, object] | None = None) -> Verdict:
    """The verdict on a claim's samples: one, or one a setting of `up_to`, whose best mean counts.

    off: the parts of the operating point that are not the paper's; with any, a number is judged as a direction. The
    interval of the best of k settings is taken at 1 - 0.05 / k. ValueError for values that can't be judged.
    """
    scale = scale_of(claim)
    confidence = 1 - (1 - CONFIDENCE) / len(samples)
    best = max(samples, key=lambda sample: _mean_effect(scale, sample))
    verdict = _measured(claim, best, scale, confidence)
    a, b = verdict.effect_interval or (-math.inf, math.inf)
    named = _name(claim, verdict, a, b, direction=bool(off) or verdict.capped)
    if verdict.capped and named in ("contradicted", "absent"):
        named = "inconclusive"  # a bound from below never says that nothing is there
    verdict = replace(verdict, verdict=named, settings=len(samples))
    return _finished(claim, verdict, off or {}, confidence)


def _measured(claim: Claim, sample: Sample, scale: Scale, confidence: float) -> Verdict:
    """Mean, interval and effect; the verdict is still open."""
    from common.stats.student import student_interval  # brings scipy, which an experiment does without

    at = [scale.coordinate(value) for value in sample.values]
    mean = _mean(at)
    low, high = (mean, mean) if sample.deterministic else student_interval(at, confidence)
    coarse = False
    if claim.resolution:
        down, up = scale.step(mean, claim.resolution, relative=claim.paper.unit == "ratio")
        coarse = down < low or high < up
        low, high = min(low, down), max(high, up)
    seen = math.isfinite(low)
    a, b = sorted((scale.effect(low), scale.effect(high))) if seen else (-math.inf, math.inf)
    marks = (
        [f"capped in {sample.capped} of {len(sample.values)}: the true ratio is larger"]
        if sample.capped
        else []
    )
    marks += [COARSE] if coarse else []
    values = sorted((scale.value(low), scale.value(high))) if seen else None
    return Verdict(
        "inconclusive",
        values=sample.values,
        mean=scale.value(mean),
        interval=None if values is None else (values[0], values[1]),
        effect=scale.effect(mean),
        effect_interval=(a, b) if seen else None,
        half_width=(b - a) / 2 if seen else None,
        note="deterministic" if sample.deterministic else "one seed" if len(at) == 1 else "",
        marks=tuple(marks),
        capped=bool(sample.capped),
        effects=scale.effects(sample),
    )


def _mean_effect(scale: Scale, sample: Sample) -> float:
    return scale.effect(_mean([scale.coordinate(value) for value in sample.values]))


def _name(claim: Claim, seen: Verdict, a: float, b: float, direction: bool) -> Name:
    kind = claim.paper.kind
    m = seen.effect
    assert m is not None
    if direction and kind in ("exact", "at_most"):
        return "inconclusive"
    if kind in ("exact", "invariant"):
        assert claim.paper.value is not None
        near = (math.isclose(value, claim.paper.value, rel_tol=SLACK, abs_tol=SLACK) for value in seen.values)
        return "reproduced" if all(near) else "contradicted"
    if kind == "at_most":
        bound = claim.paper.value
        assert bound is not None
        return _of_cost(bound, a, b)
    if kind == "parity":
        return _of_parity(claim, a, b)
    if kind == "direction" or direction:
        return _of_direction(claim, a, b)
    return _of_gain(claim, m, a, b)


def _of_gain(claim: Claim, m: float, a: float, b: float) -> Name:
    low, high = band(claim)
    if b < -SLACK:
        return "contradicted"
    if a > SLACK:
        narrow = (b - a) / 2 <= widest(claim) + SLACK and a >= low_number(claim) / 2 - SLACK
        if low - SLACK <= m <= high + SLACK and narrow:
            return "reproduced"
        if m < low - SLACK and b < 1:
            return "weaker"
        if m > high + SLACK and a > 1:
            return "stronger"
        return "inconclusive"
    return "absent" if b < 0.5 else "inconclusive"


def _of_direction(claim: Claim, a: float, b: float) -> Name:
    least = on_effect(claim, claim.least) if claim.least is not None else 0.0
    if b < -SLACK:
        return "contradicted"
    if a > least + SLACK:
        return "reproduced"
    return "absent" if claim.least is not None and b < least - SLACK else "inconclusive"


def _of_parity(claim: Claim, a: float, b: float) -> Name:
    margin = claim.margin or 0.0
    if -margin - SLACK <= a and b <= margin + SLACK:
        return "reproduced"
    above, below = a > margin, b < -margin
    up = claim.better == "higher" or isinstance(claim.no_effect, Baseline)  # ours over theirs: more is better
    better, worse = (above, below) if up else (below, above)
    return "stronger" if better else "contradicted" if worse else "inconclusive"


def _of_cost(bound: float, a: float, b: float) -> Name:
    slack = SLACK * max(1.0, abs(bound))
    return "reproduced" if b <= bound + slack else "contradicted" if a > bound + slack else "inconclusive"


def band(claim: Claim) -> tuple[float, float]:
    """The means that reproduce a gain, on the effect."""
    if claim.paper.kind == "range":
        assert claim.paper.low is not None and claim.paper.high is not None
        low, high = sorted((on_effect(claim, claim.paper.low), on_effect(claim, claim.paper.high)))
        return low, high
    if claim.paper.kind in BANDED:
        tolerance = claim.tolerance or 0.0
        return 1 - tolerance, 1 + tolerance
    return 1.0, math.inf


def low_number(claim: Claim) -> float:
    """The least that the paper claims, on the effect: 1, or a range's nearer end."""
    return band(claim)[0] if claim.paper.kind == "range" else 1.0


def widest(claim: Claim) -> float:
    """The half-width of the effect's interval up to which a gain may be called reproduced."""
    low, high = band(claim)
    if claim.paper.kind == "range":
        return max(WIDEST_RANGE, (high - low) / 2)
    return claim.tolerance or 0.0 if claim.paper.kind in BANDED else WIDEST_BOUND


def _finished(claim: Claim, verdict: Verdict, off: Mapping[str, object], confidence: float) -> Verdict:
    """With what it was judged as, how many seeds it takes, and what would decide an inconclusive one."""
    from common.stats.student import quantile, values_needed

    kind = claim.paper.kind
    judged_as = "direction" if kind in PUBLISHED and (off or verdict.capped) else kind
    n = len(verdict.values)
    random = verdict.note != "deterministic" and kind not in ("exact", "invariant")

    def seeds(width: float | None) -> int | None:
        if not random or n == 1 or verdict.half_width is None or width is None:
            return None
        spread = verdict.half_width * math.sqrt(n) / quantile(n, confidence)
        return values_needed(spread, width, SEEDS, confidence)

    deciding = _deciding_width(claim, verdict, judged_as)
    needed = seeds(widest(claim) if judged_as in GAINS else deciding)  # of a gain for width alone
    if judged_as in GAINS and deciding is not None:
        deciding = min(deciding, widest(claim))
    reason, marks = verdict.reason, list(verdict.marks)
    if off and kind in ("at_most", "exact"):
        reason = "another operating point, at which no number is judged"
    elif verdict.verdict == "inconclusive":
        reason = _what_would_decide(verdict, n, seeds(deciding), random)
    if kind == "at_most" and verdict.verdict == "reproduced" and _hardly_modelled(claim, verdict):
        marks.append("cost hardly modelled")
    effect = verdict.effect if kind in (*GAINS, "direction") else None
    return replace(
        verdict,
        judged_as=judged_as,
        seeds_needed=needed,
        reason=reason,
        marks=tuple(marks),
        effect=effect,
        effect_interval=verdict.effect_interval if effect is not None else None,
    )


def _deciding_width(claim: Claim, verdict: Verdict, judged_as: str) -> float | None:
    """The half-width at which a claim with this mean is decided, on its effect."""
    m = verdict.effect
    kind = claim.paper.kind
    if m is None or kind in ("exact", "invariant") or (kind == "at_most" and judged_as != kind):
        return None
    if judged_as == "direction":
        least = on_effect(claim, claim.least) if claim.least is not None else 0.0
        return abs(m - least)
    if judged_as == "parity":
        return abs((claim.margin or 0.0) - abs(m))
    if judged_as == "at_most":
        return abs((claim.paper.value or 0.0) - m)
    low, high = band(claim)
    if low <= m <= high:
        return min(widest(claim), m - low_number(claim) / 2)
    if m > high:
        return m - 1
    return min(m, 1 - m) if m >= 0.25 else 0.5 - m  # weaker; or absent


def _what_would_decide(verdict: Verdict, n: int, needed: int | None, random: bool) -> str:
    if verdict.capped:
        return "the rival stands on a floor: only a bound is known"
    if COARSE in verdict.marks:
        return "needs a metric of finer steps"
    if not random:
        return (
            "nothing gained and nothing lost"
            if verdict.effect is not None and abs(verdict.effect) <= SLACK
            else ""
        )
    if n == 1:
        return f"one seed has no interval; needs {SEEDS} seeds"
    if needed is None:
        return "over a thousand seeds would not decide it"
    return f"needs about {max(needed, n + 1)} seeds"


def _hardly_modelled(claim: Claim, verdict: Verdict) -> bool:
    """A cost below a tenth of the paper's; of a ratio what lies above 1."""
    assert claim.paper.value is not None and verdict.mean is not None
    nothing = 1.0 if claim.paper.unit == "ratio" and claim.paper.value >= 1 else 0.0
    paper = claim.paper.value - nothing
    return paper > 0 and (verdict.mean - nothing) / paper < HARDLY


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
