"""What controls, placebos, settings and free constants say of a verdict. Pure functions of card and values."""

import math
from collections.abc import Mapping

from common.lab.card import GAINS, Baseline, Claim, Control, Outcome
from common.lab.effect import Sample, on_effect
from common.lab.verdict import UPHELD, Verdict, band

QUARTER, HALF = 0.25, 0.5  # of our effect that a control may leave
NOTHING = 1e-9  # of the effect: rounding
DRAWS = 19  # of a placebo, for a claim without chance: one in twenty is ours if the choice says nothing


def control_outcome(
    claim: Claim, control: Control, ours: Verdict, theirs: Verdict, placebo: bool = False
) -> tuple[Outcome, float | None]:
    """What a control did to a claim, and the share of our effect that is left under it (of a cost or count: None).

    Compared seed by seed where both have the same seeds. A placebo of a claim without chance takes 19 draws, none of
    which may reach ours. What is capped is a bound from below: theirs breaks nothing, of ours it can't be said that
    much of it is left. Nothing can be said where this run itself saw no effect (a verdict over recordings may).
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
        return ("could not tell" if theirs.capped else "identity"), 0.0
    if _mean(own) <= NOTHING:
        return "could not tell", None
    left = _mean(under) / _mean(own)
    surely = _surely_less_than_half(ours, theirs) and not (placebo and _may_be_a_draw(ours, theirs))
    if surely and (left <= QUARTER or control.partial) and not theirs.capped:
        return "breaks it", left
    return ("does not break it" if left > HALF and not ours.capped else "could not tell"), left


def _surely_less_than_half(ours: Verdict, theirs: Verdict) -> bool:
    """Whether the whole interval of theirs - ours / 2 lies below zero."""
    from common.stats.student import difference_below, student_interval

    under, own = theirs.effects, ours.effects
    if len(under) == len(own) > 1:
        return difference_below(under, own, HALF)
    # one of them without chance, or on other seeds: each by its own interval
    highest = under[0] if theirs.note == "deterministic" else student_interval(under)[1]
    lowest = own[0] if ours.note == "deterministic" else student_interval(own)[0]
    return highest < HALF * lowest


def _may_be_a_draw(ours: Verdict, placebo: Verdict) -> bool:
    """Whether a result without chance could be one of the placebo's: too few draws, or one that reaches it."""
    if ours.note != "deterministic":
        return False
    own = ours.effects[0]
    return len(placebo.effects) < DRAWS or max(placebo.effects) >= own - NOTHING * max(1.0, abs(own))


def revival(claim: Claim, ours: Verdict, under: Verdict) -> str:
    """What became of an explanation under the setting that tests it: revived, in part, refuted, or not run.

    A number that is judged as a direction under the setting (another operating point) is revived in part at most.
    """
    if under.verdict == "not run":
        return "not run"
    if under.verdict == "reproduced" and under.judged_as in (claim.paper.kind, ours.judged_as):
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
    here = _side(claim, ours, ours.judged_as)
    return [end for end, there in ends.items() if _side(claim, there, ours.judged_as) != here]


def _side(claim: Claim, verdict: Verdict, judged_as: str) -> tuple[object, ...]:
    """Which side of each line that decides a mean lies on."""
    if verdict.mean is None:
        return ("not seen",)
    kind, m = claim.paper.kind, verdict.effect
    if kind == "at_most":
        assert claim.paper.value is not None
        return (verdict.mean <= claim.paper.value + NOTHING,)
    if kind == "parity":
        assert claim.margin is not None and claim.no_effect is not None
        nothing = 1.0 if isinstance(claim.no_effect, Baseline) else claim.no_effect
        return tuple(side * (verdict.mean - nothing) > claim.margin + NOTHING for side in (1, -1))
    if m is None:
        return (verdict.verdict,)
    if judged_as == "direction":
        least = on_effect(claim, claim.least) if claim.least is not None else 0.0
        return (m > NOTHING, m < -NOTHING, m > least + NOTHING)
    low, high = band(claim)
    return (m > NOTHING, m < -NOTHING, m < low - NOTHING, m > high + NOTHING)


def sample_of_recordings(hours: Mapping[str, float]) -> Sample:
    """Means of recordings, one an hour, as the values of a claim that reads a clock."""
    return Sample(tuple(hours.values()), tuple(range(len(hours))))


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values)
