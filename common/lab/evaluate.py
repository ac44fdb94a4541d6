"""From a composed config to judged claims: run the experiment, its negative controls, and the verdicts on both."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.lab.bare import check_device, observe
from common.lab.card import Card, Claim
from common.lab.config import Composed, control_config
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.record import ClaimRecord, Provenance, Record, control_record
from common.lab.runtime import Observations, Progress, Runtime
from common.lab.verdict import Verdict, control_holds, judge, sample
from common.lab.workers import warm_up

COMPLETE = (
    "default",
    "full",
)  # profiles under which every claim is observed, unless its card says what it needs


@dataclass(frozen=True)
class Measurement:
    """What a run saw, and the part of its provenance that only the run knows."""

    seen: Observations
    known: Mapping[str, Any]  # code, machine, python, data, started, seconds, peak_rss_bytes


def measure(project: Project, composed: Composed, progress: Progress | None = None) -> Measurement:
    """Run the experiment once over all seeds."""
    check_device(composed.device)
    runtime = Runtime(composed.seeds, composed.device, progress)
    if runtime.workers > 1:
        warm_up(project, composed.slug)
    experiment = project.experiment(composed.slug).run
    return Measurement(*observe(project, composed.slug, experiment, composed.config, runtime))


def run_controls(
    project: Project,
    card: Card,
    composed: Composed,
    seen: Observations | None,
    progress: Progress | None = None,
) -> dict[str, Observations]:
    """Run every negative control whose claims were observed (all, without `seen`); observations by control's name."""
    check_device(composed.device)
    under = {}
    for name, metrics in controlled_metrics(card, seen).items():
        switched_off = control_config(composed, card, name)
        runtime = Runtime(composed.seeds, composed.device, progress, wanted=metrics)
        under[name] = project.experiment(card.slug).run(switched_off.config, runtime)
    return under


def controlled_metrics(card: Card, seen: Observations | None = None) -> dict[str, list[str]]:
    """For each control the metrics that its claims read; given observations, only of claims that were observed."""
    observed = None if seen is None else set(seen.metrics)
    metrics: dict[str, list[str]] = {}
    for claim in card.claims:
        if observed is None or claim.metric in observed:
            metrics.setdefault(claim.control, []).append(claim.metric)
    return metrics


def claim_verdict(claim: Claim, composed: Composed, seen: Observations) -> Verdict:
    """The verdict on one claim; `not run` with its reason where its metric was not observed.

    LabError where a complete profile, as it stands, does not observe a metric and the card does not say why.
    """
    ours = sample(claim, seen, composed.seeds)
    if ours is not None:
        return judge(claim, ours.values, deterministic=not ours.seeds)
    if claim.needs:
        return Verdict("not run", reason=f"needs {claim.needs}")
    if composed.profile in COMPLETE and not composed.overrides:
        raise LabError(
            f"papers/{composed.slug}/paper.yaml: claims.{claim.id}.metric: run() does not observe {claim.metric!r} "
            f"under {composed.profile}; it observes {', '.join(seen.metrics) or 'nothing'} "
            "(a claim that needs more than this run has says so under `needs`)"
        )
    changed = " with " + " ".join(composed.overrides) if composed.overrides else ""
    return Verdict("not run", reason=f"profile {composed.profile}{changed} does not observe it")


def assess(
    card: Card, composed: Composed, seen: Observations, under: Mapping[str, Observations]
) -> list[ClaimRecord]:
    """Every claim of the card judged, with what its control (where it was run) did."""
    return [_assess(card, claim, composed, seen, under) for claim in card.claims]


def _assess(
    card: Card, claim: Claim, composed: Composed, seen: Observations, under: Mapping[str, Observations]
) -> ClaimRecord:
    ours = claim_verdict(claim, composed, seen)
    control = None
    if ours.verdict != "not run" and claim.control in under:
        values = sample(claim, under[claim.control], composed.seeds)
        theirs = Verdict("not run") if values is None else judge(claim, values.values, not values.seeds)
        holds = control_holds(claim, card.controls[claim.control], ours, theirs)
        control = control_record(claim.control, theirs, holds)
    return ClaimRecord(
        id=claim.id,
        metric=claim.metric,
        evidence=claim.evidence,
        kind=claim.paper.kind,
        paper_value=claim.paper.number,
        unit=claim.paper.unit,
        values=list(ours.values),
        mean=ours.mean,
        interval=ours.interval,
        verdict=ours.verdict,
        note=ours.note,
        reason=ours.reason,
        setting=claim.setting,
        control=control,
    )


def make_record(
    project: Project, composed: Composed, claims: list[ClaimRecord], known: Mapping[str, Any]
) -> Record:
    """The record of a run: its judged claims and its whole provenance."""
    config = dict(composed.tree)
    provenance = Provenance(
        **known,
        lock=lock_digest(project),
        config=config,
        config_digest=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        seeds=list(composed.seeds),
    )
    return Record(
        paper=composed.slug,
        profile=composed.profile,
        overrides=list(composed.overrides),
        claims=claims,
        provenance=provenance,
    )


def lock_digest(project: Project) -> str:
    """sha256 of requirements.lock. LabError where it is missing."""
    try:
        return hashlib.sha256(project.lock.read_bytes()).hexdigest()
    except OSError as error:
        raise LabError(f"{project.lock}: {error.strerror}") from error


def broken_controls(record: Record) -> list[str]:
    """One line for each claim that its negative control failed to break."""
    return [
        f"{claim.id}: under control {claim.control.name} the claim is still {claim.control.verdict}"
        if claim.control.verdict != "not run"
        else f"{claim.id}: control {claim.control.name} does not observe {claim.metric}, so it shows nothing"
        for claim in record.claims
        if claim.control is not None and not claim.control.holds
    ]
