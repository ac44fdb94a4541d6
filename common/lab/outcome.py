"""What controls, placebos, settings and free constants say of a verdict. Pure functions of card and values."""

import math
from collections.abc import Mapping

from common.lab.card import GAINS, Claim, Control, Outcome
from common.lab.effect import Sample
from common.lab.verdict import UPHELD, Verdict, band

QUARTER, HALF = 0.25, 0.5  # of our effect that a control may leave
NOTHING = 1e-9  # of the effect: rounding
DRAWS = 19  # of a placebo, for a claim without chance: one in twenty is ours if the choice says nothing


def control_outcome(
    claim: Claim, control: Control, ours: Verdict, theirs: Verdict
) -> tuple[Outcome, float | None]:
    """What a control did to a claim, and the share of our effect that is left under it (of a cost or count: None).

    Compared seed by seed where both have the same seeds. The 19 draws of a placebo, for a claim without chance, break
    it where none reaches ours and at most a quarter is left on average.
    """
    if ours.verdict not in UPHELD:
        return "nothing to break", None
    if theirs.verdict == "not run":
        return "could not tell", None
    if claim.paper.kind not in (*GAINS, "direction"):
        if theirs.verdict == "contradicted":
            return "breaks it", None
        return ("does not break it" if theirs.verdict in UPHELD else "could not tell"), None
    under, own = theirs.effects, ours.effects
    if all(abs(x) <= NOTHING for x in under):
        return "identity", 0.0
    left = _mean(under) / _mean(own)
    surely = _surely_less_than_half(ours, theirs)
    if surely and (left <= QUARTER or control.partial):
        return "breaks it", left
    return ("does not break it" if left > HALF else "could not tell"), left


def _surely_less_than_half(ours: Verdict, theirs: Verdict) -> bool:
    """Whether the whole interval of theirs - ours / 2 lies below zero."""
    from common.stats.student import difference_below, student_interval

    under, own = theirs.effects, ours.effects
    certain = ours.note == "deterministic"
    if certain and theirs.note == "deterministic":
        return under[0] < HALF * own[0]
    if certain:
        return len(under) >= DRAWS and max(under) < own[0]
    if len(under) == len(own) > 1:
        return difference_below(under, own, HALF)
    if len(own) > 1:  # theirs without chance, or on other seeds: ours alone is uncertain
        return _mean(under) < HALF * student_interval(own)[0]
    return False


def revival(claim: Claim, ours: Verdict, under: Verdict) -> str:
    """What became of an explanation under the setting that tests it: revived, in part, refuted, or not run."""
    if under.verdict == "not run":
        return "not run"
    if under.verdict == "reproduced":
        return "revived"
    ours_gap, gap = _gap(claim, ours), _gap(claim, under)
    if ours_gap is not None and gap is not None and gap <= ours_gap / 2:
        return "in part"
    return "refuted"


def _gap(claim: Claim, verdict: Verdict) -> float | None:
    """How far a verdict's mean is from what the paper says."""
    if claim.paper.kind == "at_most" and verdict.mean is not None and claim.paper.value is not None:
        return max(0.0, verdict.mean - claim.paper.value)
    if claim.paper.kind in GAINS and verdict.effect is not None:
        return max(0.0, 1 - verdict.effect) if claim.paper.kind == "at_least" else abs(1 - verdict.effect)
    return None


def depends_on(claim: Claim, ours: Verdict, ends: Mapping[str, Verdict]) -> list[str]:
    """The free ends ("alpha=0.1") at which the mean crosses no_effect or an edge of the band, or nothing was seen."""
    if ours.verdict in ("not run", "inconclusive"):
        return []
    return [end for end, there in ends.items() if _side(claim, there) != _side(claim, ours)]


def _side(claim: Claim, verdict: Verdict) -> tuple[object, ...]:
    """Which side of each line that decides a mean lies on."""
    if verdict.mean is None:
        return ("not seen",)
    kind, m = claim.paper.kind, verdict.effect
    if kind == "at_most":
        assert claim.paper.value is not None
        return (verdict.mean <= claim.paper.value + NOTHING,)
    if m is None:
        return (verdict.verdict,)
    if verdict.judged_as == "direction":
        return (m > NOTHING, m < -NOTHING)
    low, high = band(claim)
    return (m > NOTHING, m < -NOTHING, m < low - NOTHING, m > high + NOTHING)


def sample_of_recordings(hours: Mapping[str, float]) -> Sample:
    """Means of recordings, one an hour, as the values of a claim that reads a clock."""
    return Sample(tuple(hours.values()), tuple(range(len(hours))))


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values)
