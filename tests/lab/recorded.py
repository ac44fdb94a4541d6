"""Records to test with: the toy's, made in this process, and claims made by hand."""

from typing import Any

from common.lab.arms import ALL, OURS, run_arms
from common.lab.card import Card
from common.lab.config import compose
from common.lab.evaluate import measure
from common.lab.project import Project
from common.lab.record import ArmRecord, ClaimRecord, Provenance, Record
from common.lab.recording import commit_record


def record_toy(project: Project, profile: str = "default") -> Record:
    """Run the toy with all its arms and commit its record."""
    card, composed = Card.load(project.card("toy")), compose(project, "toy", profile)
    ours = measure(project, composed)
    under = run_arms(project, card, composed, ours.seen, ALL)
    return commit_record(project, composed, {OURS: ours.seen, **under}, dict(ours.known))


def claim(name: str, **fields: Any) -> ClaimRecord:
    """A published number of 2 (no effect: 1) that came out at 1.9, but for what is given."""
    whole: dict[str, Any] = {
        "id": name,
        "metric": "gain",
        "evidence": "simulated",
        "kind": "value",
        "paper_value": 2.0,
        "unit": "ratio",
        "values": [1.85, 1.9, 1.95],
        "mean": 1.9,
        "interval": (1.78, 2.03),
        "effect": 0.9,
        "effect_interval": (0.78, 1.03),
        "verdict": "reproduced",
    }
    whole |= {"judged_as": fields.get("kind", "value"), **fields}
    return ClaimRecord(**whole)


def broken(name: str, outcome: str = "breaks it") -> ArmRecord:
    """What a control did to a claim."""
    return ArmRecord(name=name, values=[1.0], mean=1.0, verdict="inconclusive", left=0.0, outcome=outcome)


def paper(slug: str, *claims: ClaimRecord, awaiting: str = "") -> Record:
    """A record of these claims."""
    sha = "0" * 64
    provenance = Provenance(
        observed=sha,
        judged=sha,
        sources=sha,
        lock=sha,
        config={},
        seeds=[0, 1, 2],
        data={},
        machine={"processor": "one"},
        python="3.11.7",
        started="2026-11-30T22:00:00+00:00",
        seconds=12.3,
        peak_rss_bytes=0,
    )
    return Record(
        paper=slug, profile="default", awaiting=awaiting, claims=list(claims), provenance=provenance
    )
