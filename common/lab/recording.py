"""Committed records: made from a run here, or from what a bare machine measured; and whether one is still true."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.lab.card import Card
from common.lab.closure import code_digest
from common.lab.config import Composed, compose, control_config
from common.lab.errors import LabError
from common.lab.evaluate import assess, broken_controls, controlled_metrics, make_record
from common.lab.project import Project
from common.lab.record import Record
from common.lab.runtime import Observations
from common.lab.typed import plain
from common.lab.verdict import Verdict, control_holds, judge

RECORDED = ("default", "cuda")  # profiles that have a committed record


def commit_record(project: Project, record: Record) -> Path:
    """Write papers/<slug>/results.json (results.cuda.json of profile cuda).

    LabError where the profile has no record, was changed by overrides, or a negative control failed to break its
    claim; then the earlier record stands.
    """
    check_recordable(record.profile, record.overrides)
    broken = broken_controls(record)
    if broken:
        raise LabError(f"not recorded, for a negative control does not break its claim: {'; '.join(broken)}")
    path = project.record(record.paper, record.profile)
    record.save(path)
    return path


def check_recordable(profile: str, overrides: list[str]) -> None:
    """LabError where a run under this profile could not be committed."""
    if profile not in RECORDED:
        raise LabError(f"records are made under PROFILE={' or '.join(RECORDED)}, not {profile}")
    if overrides:
        raise LabError(f"a record is of a profile as it stands; drop SET={' '.join(overrides)!r}")


def bare_config(project: Project, composed: Composed) -> dict[str, Any]:
    """What `python -m common.lab.bare` needs: the config, and the config and metrics of every control."""
    card = Card.load(project.card(composed.slug))
    controls = {
        name: {"config": dict(control_config(composed, card, name).tree), "metrics": metrics}
        for name, metrics in controlled_metrics(card).items()
    }
    return {**composed.as_json(), "controls": controls}


def record_of_bare(project: Project, slug: str, source: Path) -> Record:
    """Judge what a bare machine measured. LabError where it is of another paper, config or code than stands here."""
    try:
        given = json.loads(source.read_text(encoding="utf-8"))
        profile, overrides, seen = given["profile"], given["overrides"], given["observations"]
        under, known, settings, seeds = given["under"], given["measured"], given["config"], given["seeds"]
    except OSError as error:
        raise LabError(f"{source}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{source}: no observations of `python -m common.lab.bare`: {error!r}") from error
    if given.get("paper") != slug:
        raise LabError(f"{source}: was measured for {given.get('paper')!r}, not for {slug!r}")
    if known.get("code") != code_digest(project, slug):
        raise LabError(f"{source}: was measured with other code than stands here; run it again with this")
    composed = compose(project, slug, profile, overrides)
    if dict(composed.tree) != settings or list(composed.seeds) != seeds:
        raise LabError(f"{source}: was measured under another config than {slug}/{profile} is now")
    card = Card.load(project.card(slug))
    try:
        observed = _observations(seen)
        claims = assess(card, composed, observed, {name: _observations(rows) for name, rows in under.items()})
    except ValueError as error:
        raise LabError(f"{source}: {error}") from error
    return make_record(project, composed, claims, known)


def _observations(rows: Any) -> Observations:
    return Observations.from_json(json.dumps(rows))


def stale(project: Project, path: Path) -> list[str]:
    """Why a committed record is no longer true: changed code, config or card; empty where it is."""
    record = Record.load(path)
    reasons = []
    if record.provenance.code != code_digest(project, record.paper):
        reasons.append("its code has changed since")
    composed = compose(project, record.paper, record.profile)
    recorded = (record.provenance.config, record.provenance.seeds)
    if recorded != (plain(dict(composed.tree)), list(composed.seeds)):
        reasons.append(f"conf/paper/{record.paper}/{record.profile}.yaml has changed since")
    card = Card.load(project.card(record.paper))
    if [claim.id for claim in card.claims] != [claim.id for claim in record.claims]:
        reasons.append("the claims of its card have changed since")
    elif any(c.paper.number != r.paper_value for c, r in zip(card.claims, record.claims, strict=True)):
        reasons.append("a paper's number in its card has changed since")
    again = f"make record PAPER={record.paper} PROFILE={record.profile}"
    return [f"{path}: {reason}: {again}" for reason in reasons]


def misjudged(project: Project, path: Path) -> list[str]:
    """Claims and controls of a record whose verdict does not follow from their recorded values."""
    record = Record.load(path)
    card = Card.load(project.card(record.paper))
    wrong = []
    for kept in record.claims:
        claim = card.claim(kept.id)
        ours = Verdict("not run")
        if kept.values:
            ours = judge(claim, kept.values, deterministic=kept.note == "deterministic")
        same = _close((*(ours.interval or ()), ours.mean), (*(kept.interval or ()), kept.mean))
        if ours.verdict != kept.verdict or not same:
            wrong.append(f"{path}: {kept.id}: recorded {kept.verdict}, its values give {ours.verdict}")
        if kept.control is None or not kept.control.values:
            continue
        theirs = judge(claim, kept.control.values)
        holds = control_holds(claim, card.controls[kept.control.name], ours, theirs)
        if (theirs.verdict, holds) != (kept.control.verdict, kept.control.holds):
            wrong.append(f"{path}: {kept.id}: its control's values give {theirs.verdict}, holds: {holds}")
    return wrong


def _close(ours: Sequence[float | None], kept: Sequence[float | None]) -> bool:
    """Equal but for the rounding of another processor."""
    return len(ours) == len(kept) and all(
        a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6))
        for a, b in zip(ours, kept, strict=True)
    )


def problems(project: Project, slug: str) -> list[str]:
    """Everything that is wrong with a paper's card, configs, notebook and records, one line each."""
    found: list[str] = []
    try:
        card = Card.load(project.card(slug))
        if not project.profiles(slug):
            found.append(f"conf/paper/{slug}/: no profile")
        for profile in project.profiles(slug):
            composed = compose(project, slug, profile)
            for name in card.controls:
                control_config(composed, card, name)
    except LabError as error:
        return [str(error)]
    if not project.notebook(slug).is_file():
        found.append(f"notebooks/{slug}.ipynb: is missing")
    for profile in RECORDED:
        path = project.record(slug, profile)
        if path.is_file():
            try:
                found += stale(project, path) + misjudged(project, path)
            except LabError as error:
                found.append(str(error))
    return found
