"""From a composed config to judged claims: run the experiment, and judge the card on what its arms observed."""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from common.lab.arms import DRAWN, OURS, Arm, Arms, arms_of, end_name
from common.lab.bare import check_device, observe
from common.lab.card import Card, Claim
from common.lab.config import Composed
from common.lab.effect import elsewhere, floors_missed, settings
from common.lab.errors import LabError
from common.lab.outcome import control_outcome, depends_on, revival, sample_of_recordings
from common.lab.project import Project
from common.lab.record import ArmRecord, ClaimRecord, Provenance, Record, arm_record
from common.lab.runtime import Observations, Progress, Runtime
from common.lab.typed import plain
from common.lab.verdict import Verdict, judge, not_run
from common.lab.workers import warm_up

# profiles under which every claim is observed, unless its card says what it needs
COMPLETE = ("default", "full")
RECORDINGS = 3  # from different hours, that a verdict on a clock rests on
Recordings = Mapping[str, Mapping[str, float]]  # claim -> hour -> mean of what was recorded in it


@dataclass(frozen=True)
class Measurement:
    """What a run saw, and the part of its provenance that only the run knows."""

    seen: Observations
    known: Mapping[str, Any]  # sources, machine, python, data, started, seconds, peak_rss_bytes


def measure(
    project: Project,
    composed: Composed,
    progress: Progress | None = None,
    kept: dict[Hashable, Any] | None = None,
) -> Measurement:
    """Run the experiment once over all seeds."""
    check_device(composed.device)
    runtime = Runtime(composed.seeds, composed.device, progress, kept=kept)
    if runtime.workers > 1:
        warm_up(project, composed.slug)
    experiment = project.experiment(composed.slug).run
    return Measurement(*observe(project, composed.slug, experiment, composed.config, runtime))


def claim_verdict(
    card: Card, claim: Claim, composed: Composed, seen: Observations, arm: str = OURS
) -> Verdict:
    """The verdict on one claim; `not run` with its reason where its metric was not observed or a floor was missed.

    Of ours LabError where a complete profile, as it stands, does not observe a metric and the card does not say why.
    """
    samples = settings(claim, seen, composed.seeds)
    if not samples and arm != OURS:
        return not_run(f"{arm} does not observe it")
    if not samples:
        return not_run(_why_not_observed(card, claim, composed, seen))
    if missed := floors_missed(claim, seen):
        return not_run("; ".join(missed))
    try:
        return judge(claim, samples, _off(claim, composed, seen))
    except ValueError as error:
        raise LabError(f"papers/{card.slug}/paper.yaml: claims.{claim.id}: {error}") from error


def _off(claim: Claim, composed: Composed, seen: Observations) -> dict[str, object]:
    points = elsewhere(claim, plain(dict(composed.tree)), seen)
    return {name: point for name, point in points.items() if point["off"]}


def _why_not_observed(card: Card, claim: Claim, composed: Composed, seen: Observations) -> str:
    changed = " with " + " ".join(composed.overrides) if composed.overrides else ""
    left_out = f"profile {composed.profile}{changed} does not observe it"
    if claim.needs:
        return left_out if _is_at_hand(card, claim.needs, composed) else f"needs {claim.needs}"
    if composed.profile in COMPLETE and not composed.overrides:
        raise LabError(
            f"papers/{composed.slug}/paper.yaml: claims.{claim.id}.metric: run() does not observe {claim.metric!r} "
            f"under {composed.profile}; it observes {', '.join(seen.metrics) or 'nothing'} "
            "(a claim that needs more than this run has says so under `needs`)"
        )
    return left_out


def _is_at_hand(card: Card, needs: str, composed: Composed) -> bool:
    """Whether what a claim needs was there, so that it is the profile that left it out."""
    if "a GPU" in needs:
        return composed.device == "cuda"
    if "data set" in needs:
        registry = import_module("common.data")
        named = [name for name in card.data if name in needs] or card.data
        return all(registry.find(name) is not None for name in named)
    return False


def assess(
    card: Card, composed: Composed, arms: Arms, recordings: Recordings | None = None
) -> list[ClaimRecord]:
    """Every claim of the card judged on ours, with what its other arms (where they were run) say of it."""
    return [
        _assess(card, claim, composed, arms, (recordings or {}).get(claim.id, {})) for claim in card.claims
    ]


def _assess(
    card: Card, claim: Claim, composed: Composed, arms: Arms, hours: Mapping[str, float]
) -> ClaimRecord:
    seen = arms[OURS]
    ours = claim_verdict(card, claim, composed, seen)
    ran = ours.verdict != "not run"
    points = elsewhere(claim, plain(dict(composed.tree)), seen) if ran else {}
    if ran and claim.reads_a_clock:
        ours = _over_recordings(claim, ours, hours, {k: v for k, v in points.items() if v["off"]})
    under = {
        arm.name: claim_verdict(card, claim, arm.composed(composed), arms[arm.name], arm.name)
        for arm in (arms_of(card, seen) if ran else [])
        if claim in arm.claims and arm.name in arms
    }
    ends = {
        name: under[name]
        for f, e in claim.free.items()
        for name in (end_name(f, x) for x in e)
        if name in under
    }
    dependent = depends_on(claim, ours, ends)
    if dependent:
        ours = replace(ours, verdict="inconclusive", reason=f"depends on {', '.join(dependent)}")

    def control(name: str, placebo: bool = False) -> ArmRecord | None:
        names = (name + DRAWN, name) if placebo else (name, name + DRAWN)
        drawn = next((one for one in names if one in under), None)
        if drawn is None:
            return None
        outcome, left = control_outcome(claim, card.controls[name], ours, under[drawn], placebo)
        return arm_record(drawn, under[drawn], outcome, left)

    revived = None
    if claim.revived_by in under:
        there = under[claim.revived_by]
        revived = arm_record(claim.revived_by, there, revival(claim, ours, there))
    return ClaimRecord(
        id=claim.id,
        headline=claim.headline,
        metric=claim.metric,
        evidence=claim.evidence,
        clock=claim.reads_a_clock,
        kind=claim.paper.kind,
        paper_value=claim.paper.number,
        unit=claim.paper.unit,
        values=list(ours.values),
        mean=ours.mean,
        interval=ours.interval,
        effect=ours.effect,
        effect_interval=ours.effect_interval,
        half_width=ours.half_width,
        seeds_needed=ours.seeds_needed,
        judged_as=ours.judged_as,
        verdict=ours.verdict,
        note=ours.note,
        reason=ours.reason,
        capped=ours.capped,
        marks=list(ours.marks),
        setting=quoted(claim.setting, composed),
        operating_point=points,
        free=dependent,
        recordings=max(1, len(hours)) if claim.reads_a_clock else 1,
        control=control(claim.control),
        also=[arm for name in claim.also if (arm := control(name)) is not None],
        placebo=control(claim.placebo, placebo=True) if isinstance(claim.placebo, str) else None,
        revived_by=revived,
        because=quoted(claim.because, composed),
        revised=[revision.field for revision in claim.revised],
    )


def _over_recordings(
    claim: Claim, ours: Verdict, hours: Mapping[str, float], off: Mapping[str, object]
) -> Verdict:
    """The verdict of the means of all recordings, three at least; of this run alone, marked, where there are fewer.

    The effects by which controls are compared stay this run's own, for both sides of it met the same moment. A maximum
    stays this run's too: the means of recordings would each be the best of all settings, and the best of a few that
    are worth nothing looks like a gain.
    """
    if ours.settings > 1:
        among = (
            f"provisional: the best of {ours.settings} settings in one recording; more need one under `at`"
        )
        return replace(ours, marks=(*ours.marks, among))
    if len(hours) < RECORDINGS:
        count = max(1, len(hours))
        return replace(ours, marks=(*ours.marks, f"provisional: {count} of {RECORDINGS} recordings"))
    return replace(judge(claim, [sample_of_recordings(hours)], off), effects=ours.effects)


def quoted(text: str, composed: Composed) -> str:
    """A text of the card with {fields} of the config filled in. LabError where a field is not there."""
    if "{" not in text:
        return text
    try:
        return text.format(**{"seeds": len(composed.seeds), **dict(composed.tree)})
    except (KeyError, IndexError, ValueError) as error:
        raise LabError(f"papers/{composed.slug}/paper.yaml: {text!r} quotes {error} of the config") from error


def make_record(
    project: Project, card: Card, composed: Composed, claims: list[ClaimRecord], known: Mapping[str, Any]
) -> Record:
    """The record of a run: its judged claims and its whole provenance."""
    config = plain(dict(composed.tree))
    provenance = Provenance(
        **known,
        observed=observed_digest(card, known["sources"], config, composed.seeds, known["data"]),
        judged=judged_digest(card),
        lock=lock_digest(project),
        config=config,
        seeds=list(composed.seeds),
    )
    return Record(
        paper=composed.slug,
        profile=composed.profile,
        overrides=list(composed.overrides),
        awaiting=card.awaiting,
        claims=claims,
        provenance=provenance,
    )


def observed_digest(
    card: Card, sources: str, config: Mapping[str, Any], seeds: Sequence[int], data: Mapping[str, str]
) -> str:
    """sha256 of what observations rest on: sources, config, seeds, data, and what each arm sets."""
    arms: list[Arm] = arms_of(card)
    changed = {arm.name: [dict(arm.set), arm.metrics] for arm in arms}
    return _sha256([sources, plain(dict(config)), list(seeds), dict(sorted(data.items())), changed])


def judged_digest(card: Card) -> str:
    """sha256 of the fields of the card that the judge reads."""
    partial = {name: control.partial for name, control in card.controls.items()}
    return _sha256([[claim.judged() for claim in card.claims], partial])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def lock_digest(project: Project) -> str:
    """sha256 of requirements.lock. LabError where it is missing."""
    try:
        return hashlib.sha256(project.lock.read_bytes()).hexdigest()
    except OSError as error:
        raise LabError(f"{project.lock}: {error.strerror}") from error
