"""The project's summary: what share of the published numbers came out, and how far, over all recorded papers.

A published number is judged as one where a run was at the paper's operating point; elsewhere it was a direction, and
counts apart. Claims of one paper are not independent: the intervals are those of a cluster bootstrap, which draws whole
papers with replacement (2,000 draws from a fixed seed, percentiles) and takes share and median of all their claims
anew. Under five papers there is no interval.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from common.lab.card import GAINS, PUBLISHED, Evidence
from common.lab.record import ArmRecord, ClaimRecord, Record

CAME_OUT = ("reproduced", "stronger")
VERDICTS = ("reproduced", "stronger", "weaker", "inconclusive", "absent", "contradicted", "not run")
CLASSES: tuple[Evidence, ...] = get_args(Evidence)
DRAWS, SEED, LEAST_PAPERS = 2_000, 0, 5
CONFIDENCE = 0.95
FALSE_DIRECTIONS = 0.025  # of directions without effect that a 95% interval calls reproduced
Sort = Literal["number", "elsewhere", "direction", "parity", "invariant"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A share or a median over claims, None of none, with its interval over papers where there are enough."""

    value: float | None
    claims: int
    papers: int
    interval: Interval | None = None


@dataclass(frozen=True)
class Group:
    """The published numbers of some claims: how many came out of those that were judged, and the median effect."""

    came_out: int
    share: Estimate
    effect: Estimate  # ours over the paper's


@dataclass(frozen=True)
class Broken:
    """How many upheld claims an arm of this kind breaks, of those on which it was tried."""

    breaks: int
    tried: int


@dataclass(frozen=True)
class Summary:
    """What all records say together."""

    papers: int
    claims: int
    verdicts: dict[Sort, Counter[str]]
    groups: dict[str, tuple[Group, Group]]  # "all" and each evidence class: of headline claims, of all claims
    upheld: int
    control: Broken
    placebo: Broken
    not_shown: int  # upheld, and neither a control nor a placebo that was tried breaks it
    untried: int  # upheld, and nothing was tried
    directions: int  # judged as one
    false_directions: float  # expected among them if none had an effect
    revised: int
    provisional: int
    awaiting: int
    awaiting_papers: int


def sort_of(claim: ClaimRecord) -> Sort:
    """What a claim counts as: a published number is one only at the paper's operating point."""
    if claim.kind in PUBLISHED:
        return "elsewhere" if claim.judged_as == "direction" else "number"
    return claim.kind  # type: ignore[return-value]


def judged_numbers(claims: Sequence[ClaimRecord]) -> list[ClaimRecord]:
    """The published numbers among these that were judged as numbers."""
    return [claim for claim in claims if sort_of(claim) == "number" and claim.verdict != "not run"]


def came_out(claims: Sequence[ClaimRecord]) -> int:
    """How many of these came out: reproduced or stronger."""
    return sum(claim.verdict in CAME_OUT for claim in claims)


def is_provisional(claim: ClaimRecord) -> bool:
    """Whether it reads a clock and rests on too few recordings yet."""
    return any(mark.startswith("provisional") for mark in claim.marks)


def summarise(records: Sequence[Record]) -> Summary:
    """The summary of standing records, one a paper."""
    claims = [claim for record in records for claim in record.claims]
    verdicts: dict[Sort, Counter[str]] = {sort: Counter() for sort in get_args(Sort)}
    for claim in claims:
        verdicts[sort_of(claim)][claim.verdict] += 1
    upheld = [claim for claim in claims if claim.upheld]
    control, placebo = broken(upheld)
    directions = sum(
        claim.judged_as == "direction" and claim.kind != "at_most" and claim.verdict != "not run"
        for claim in claims
    )
    waiting = [record for record in records if record.awaiting]
    return Summary(
        papers=len(records),
        claims=len(claims),
        verdicts=verdicts,
        groups={name: _groups(records, name) for name in ("all", *CLASSES)},
        upheld=len(upheld),
        control=control,
        placebo=placebo,
        not_shown=sum(claim.not_shown for claim in upheld),
        untried=sum(not claim.controls for claim in upheld),
        directions=directions,
        false_directions=FALSE_DIRECTIONS * directions,
        revised=sum(bool(claim.revised) for claim in claims),
        provisional=sum(map(is_provisional, claims)),
        awaiting=sum(len(record.claims) for record in waiting),
        awaiting_papers=len(waiting),
    )


def broken(upheld: Sequence[ClaimRecord]) -> tuple[Broken, Broken]:
    """How many of these upheld claims a control breaks, and how many a placebo."""
    controls = [[arm for arm in (claim.control, *claim.also) if arm is not None] for claim in upheld]
    placebos = [[claim.placebo] if claim.placebo is not None else [] for claim in upheld]
    return _broken(controls), _broken(placebos)


def _broken(tried: Sequence[Sequence[ArmRecord]]) -> Broken:
    breaks = sum(any(arm.outcome == "breaks it" for arm in arms) for arms in tried)
    return Broken(breaks, sum(map(bool, tried)))


def _groups(records: Sequence[Record], name: str) -> tuple[Group, Group]:
    by_paper = [
        [claim for claim in judged_numbers(record.claims) if name in ("all", claim.evidence)]
        for record in records
    ]
    headlines = [[claim for claim in claims if claim.headline] for claims in by_paper]
    return _group(headlines), _group(by_paper)


def _group(by_paper: Sequence[Sequence[ClaimRecord]]) -> Group:
    outcomes = [[float(claim.verdict in CAME_OUT) for claim in claims] for claims in by_paper]
    effects = [
        [
            claim.effect
            for claim in claims
            if claim.effect is not None and claim.kind in GAINS and not claim.capped
        ]
        for claims in by_paper
    ]
    return Group(
        sum(came_out(claims) for claims in by_paper),
        estimate(outcomes, np.mean),
        estimate(effects, np.median),
    )


def estimate(clusters: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], object]) -> Estimate:
    """A statistic of all values, with the interval of a bootstrap over clusters (those that have a value)."""
    filled = [np.asarray(cluster, dtype=float) for cluster in clusters if len(cluster)]
    if not filled:
        return Estimate(None, 0, 0)
    interval = None
    if len(filled) >= LEAST_PAPERS:
        draws = np.random.default_rng(SEED).integers(0, len(filled), (DRAWS, len(filled)))
        found = [statistic(np.concatenate([filled[place] for place in draw])) for draw in draws]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(np.asarray(found, dtype=float), [tail, 1 - tail])
        interval = (float(low), float(high))
    whole = np.concatenate(filled)
    return Estimate(float(statistic(whole)), len(whole), len(filled), interval)  # type: ignore[arg-type]


def verdicts_text(verdicts: Counter[str]) -> str:
    """Counts in the order of VERDICTS: '3 reproduced, 1 weaker'; of none 'none'."""
    return ", ".join(f"{verdicts[name]} {name}" for name in VERDICTS if verdicts[name]) or "none"


def share_text(group: Group) -> str:
    """'12 of 20: 60% [45%, 75%]'."""
    share = group.share
    if share.value is None:
        return "–"
    interval = f" [{100 * share.interval[0]:.0f}%, {100 * share.interval[1]:.0f}%]" if share.interval else ""
    return f"{group.came_out} of {share.claims}: {100 * share.value:.0f}%{interval}"


def effect_text(group: Group) -> str:
    """'0.91 [0.80, 1.1]'."""
    effect = group.effect
    if effect.value is None:
        return "–"
    interval = f" [{effect.interval[0]:.2f}, {effect.interval[1]:.2f}]" if effect.interval else ""
    return f"{effect.value:.2f}{interval}"


def in_words(summary: Summary) -> list[str]:
    """What the records say together, a sentence or two each; the shares by class are `groups`."""
    numbers, elsewhere = summary.verdicts["number"], summary.verdicts["elsewhere"]
    judged = sum(numbers.values()) - numbers["not run"]
    out = Counter({name: numbers[name] for name in CAME_OUT})
    short = Counter({name: numbers[name] for name in VERDICTS if name not in (*CAME_OUT, "not run")})
    control, placebo = summary.control, summary.placebo
    lines = [
        f"{_many(summary.claims, 'claim')} of {_many(summary.papers, 'paper')}. Of {_many(judged, 'published number')} "
        f"judged as numbers {sum(out.values())} came out ({verdicts_text(out)}); the others: "
        f"{verdicts_text(short)}." + (f" {numbers['not run']} not run." if numbers["not run"] else "")
    ]
    if summary.awaiting:
        lines.append(
            f"{_many(summary.awaiting, 'claim')} of {_many(summary.awaiting_papers, 'paper')} awaiting a second "
            "judging: whether they ran at the paper's operating point is not checked yet."
        )
    if elsewhere:
        lines.append(
            f"Published numbers run at another operating point, of which only the direction is judged: "
            f"{verdicts_text(elsewhere)}."
        )
    lines += [
        f"Directions, where the paper has no comparable number: {verdicts_text(summary.verdicts['direction'])}. "
        f"Of {_many(summary.directions, 'direction')} judged in all, {summary.false_directions:.1f} would be called "
        f"reproduced if none had an effect ({100 * FALSE_DIRECTIONS:.1f}%).",
        f"{_many(summary.upheld, 'claim')} upheld (reproduced, stronger or weaker): a control breaks {control.breaks} "
        f"of {control.tried} on which one was run, a placebo {placebo.breaks} of {placebo.tried}. {summary.not_shown} "
        "not shown to be the method's: nothing that was tried breaks them."
        + (f" On {summary.untried} nothing was tried." if summary.untried else ""),
    ]
    apart: tuple[tuple[Sort, str], ...] = (
        ("parity", "Parities, where nothing may be lost"),
        ("invariant", "Invariants of our own"),
    )
    lines += [
        f"{text}: {verdicts_text(summary.verdicts[sort])}." for sort, text in apart if summary.verdicts[sort]
    ]
    told = [
        (summary.revised, "with a bound that was revised after the first record"),
        (summary.provisional, "provisional, for fewer than three recordings of what a clock reads"),
    ]
    lines += [f"{_many(count, 'claim')} {text}." for count, text in told if count]
    return lines


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
