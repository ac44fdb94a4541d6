"""Committed records: written from a run and all its arms, judged again from their rows, and whether they still hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.lab.arms import ALL, OURS, Arms, arms_of, load_arms, save_arms
from common.lab.bounds import inferred
from common.lab.card import Card
from common.lab.closure import sources_digest
from common.lab.config import Composed, compose
from common.lab.confirmations import Confirmations, append, close
from common.lab.errors import LabError
from common.lab.evaluate import (
    assess,
    judged_digest,
    lock_digest,
    make_record,
    observed_digest,
    quoted,
)
from common.lab.project import Project
from common.lab.record import Record
from common.lab.runtime import Observations

RECORDED = ("default", "full", "cuda")  # profiles that have a committed record
EXPLAINED = ("reproduced", "not run")  # verdicts that need no `because`


def check_recordable(profile: str, overrides: Sequence[str]) -> None:
    """LabError where a run under this profile could not be committed."""
    if profile not in RECORDED:
        raise LabError(f"records are made under PROFILE={' or '.join(RECORDED)}, not {profile}")
    if overrides:
        raise LabError(f"a record is of a profile as it stands; drop SET={' '.join(overrides)!r}")


def commit_record(project: Project, composed: Composed, arms: Arms, known: dict[str, Any]) -> Record:
    """Judge all arms and write papers/<slug>/results.json, the rows beside it, and the run into confirmations.json.

    LabError where the profile has no record or was changed by overrides; then everything stands as it was.
    """
    check_recordable(composed.profile, composed.overrides)
    slug, profile = composed.slug, composed.profile
    card = Card.load(project.card(slug))
    path = project.record(slug, profile)
    standing = Record.load(path) if path.is_file() else None
    first = make_record(project, card, composed, assess(card, composed, arms), known)
    append(project, first, "recorded", standing if _same(first, standing) else None)
    save_arms(project.observations(slug, profile), arms)
    record = judged(project, card, composed, arms, first)
    record.save(path)
    return record


def _same(record: Record, standing: Record | None) -> bool:
    return standing is not None and standing.provenance.observed == record.provenance.observed


def judged(project: Project, card: Card, composed: Composed, arms: Arms, record: Record) -> Record:
    """A record with its claims judged anew: a function of card, rows and recordings."""
    runs = Confirmations.load(project.confirmations(record.paper), record.paper)
    hours = runs.recordings(record.profile, record.provenance.observed)
    claims = assess(card, composed, arms, hours)
    provenance = record.provenance.model_copy(update={"judged": judged_digest(card)})
    return record.model_copy(update={"claims": claims, "provenance": provenance, "awaiting": card.awaiting})


def judge_again(project: Project, slug: str, profile: str) -> Record:
    """Judge a committed record's rows by the card as it stands, and write it."""
    path = project.record(slug, profile)
    record = _again(project, slug, profile)
    record.save(path)
    return record


def _again(project: Project, slug: str, profile: str) -> Record:
    standing = Record.load(project.record(slug, profile))
    arms = load_arms(project.observations(slug, profile))
    return judged(project, Card.load(project.card(slug)), compose(project, slug, profile), arms, standing)


def state(project: Project, slug: str, profile: str) -> tuple[str, str]:
    """What a committed record needs, and why: ("", ""), ("judge", reason) or ("run", reason)."""
    record = Record.load(project.record(slug, profile))
    known = record.provenance
    composed = compose(project, slug, profile)
    card = Card.load(project.card(slug))
    if known.sources != sources_digest(project, slug):
        return "run", "its code has changed since"
    if known.observed != observed_digest(
        card, known.sources, composed.tree, composed.seeds, _data_now(known.data)
    ):
        return "run", "its config, its data or what an arm sets has changed since"
    if known.judged != judged_digest(card):
        return "judge", "what its card is judged by has changed since"
    if misjudged(project, slug, profile):
        return "judge", "its verdicts are not those that card, rows and recordings give"
    return "", ""


def other_lock(project: Project, slugs: Sequence[str]) -> str:
    """One line on records that were made with other versions of packages; empty where there are none.

    Such a record holds: what a version changes shows when it is run again, and no run is asked for in advance.
    """
    now = lock_digest(project)
    made = [
        slug
        for slug in slugs
        for profile in recorded(project, slug)
        if Record.load(project.record(slug, profile)).provenance.lock != now
    ]
    return f"recorded under another requirements.lock: {', '.join(dict.fromkeys(made))}" if made else ""


def _data_now(used: dict[str, str]) -> dict[str, str]:
    """The digests that the registry names today for the data that a record rests on."""
    from common.data import DATASETS

    return {name: DATASETS[name].sha256 if name in DATASETS else sha256 for name, sha256 in used.items()}


def recorded(project: Project, slug: str) -> list[str]:
    """The profiles under which a paper has a record."""
    return [profile for profile in RECORDED if project.record(slug, profile).is_file()]


def standing_record(project: Project, slug: str) -> Record | None:
    """What a paper's records say together: `full` replaces `default` claim by claim, also where it is worse."""
    records = {profile: Record.load(project.record(slug, profile)) for profile in recorded(project, slug)}
    base = records.get("default") or records.get("full") or records.get("cuda")
    if base is None:
        return None
    better = {
        claim.id: claim
        for profile in ("cuda", "full")
        if profile in records
        for claim in records[profile].claims
        if claim.verdict != "not run"
    }
    return base.model_copy(update={"claims": [better.get(claim.id, claim) for claim in base.claims]})


def bare_config(project: Project, composed: Composed) -> dict[str, Any]:
    """What `python -m common.lab.bare` needs: the config, and the config and metrics of every arm."""
    card = Card.load(project.card(composed.slug))
    arms = {
        arm.name: {
            "config": dict(changed.tree),
            "seeds": list(changed.seeds),
            "metrics": arm.metrics,
        }
        for arm in arms_of(card, None, ALL)
        for changed in [arm.composed(composed)]
    }
    return {**composed.as_json(), "arms": arms}


def record_of_bare(
    project: Project, slug: str, source: Path
) -> tuple[Composed, dict[str, Observations], dict[str, Any]]:
    """What a bare machine measured. LabError where it is of another paper, config or code than stands here."""
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
    if known.get("sources") != sources_digest(project, slug):
        raise LabError(f"{source}: was measured with other code than stands here; run it again with this")
    composed = compose(project, slug, profile, overrides)
    if dict(composed.tree) != settings or list(composed.seeds) != seeds:
        raise LabError(f"{source}: was measured under another config than {slug}/{profile} is now")
    try:
        arms = {name: _observations(rows) for name, rows in under.items()}
        return composed, {OURS: _observations(seen), **arms}, known
    except ValueError as error:
        raise LabError(f"{source}: {error}") from error


def _observations(rows: Any) -> Observations:
    return Observations.from_json(json.dumps(rows))


def misjudged(project: Project, slug: str, profile: str) -> list[str]:
    """Claims of a record whose verdict does not follow from card, committed rows and recordings."""
    kept = Record.load(project.record(slug, profile))
    again = _again(project, slug, profile)
    where = project.record(slug, profile)
    wrong = []
    for ours, theirs in zip(again.claims, kept.claims, strict=False):
        same = (ours.id, ours.verdict, ours.reason, ours.free) == (
            theirs.id,
            theirs.verdict,
            theirs.reason,
            theirs.free,
        )
        outcomes = [[(arm.name, arm.outcome) for arm in claim.controls] for claim in (ours, theirs)]
        numbers = close(
            [*ours.values, ours.mean or 0, ours.effect or 0],
            [*theirs.values, theirs.mean or 0, theirs.effect or 0],
        )
        if not same or outcomes[0] != outcomes[1] or not numbers:
            wrong.append(
                f"{where}: {theirs.id}: recorded {theirs.verdict}, its rows give {ours.id} {ours.verdict}"
            )
    if len(again.claims) != len(kept.claims):
        wrong.append(f"{where}: holds {len(kept.claims)} claims, the card {len(again.claims)}")
    return wrong


def problems(project: Project, slug: str) -> list[str]:
    """Everything that is wrong with a paper's card, configs, notebook and records, one line each."""
    found: list[str] = []
    place = f"papers/{slug}/paper.yaml"
    try:
        card = Card.load(project.card(slug))
        if not project.profiles(slug):
            found.append(f"conf/paper/{slug}/: no profile")
        for profile in project.profiles(slug):
            composed = compose(project, slug, profile)
            for arm in arms_of(card):
                arm.composed(composed)
            found += [f"{place}: {line}" for line in _loose_ends(project, card, composed)]
    except LabError as error:
        return [str(error)]
    if not project.notebook(slug).is_file():
        found.append(f"notebooks/{slug}.ipynb: is missing")
    for profile in recorded(project, slug):
        try:
            what, why = state(project, slug, profile)
            if what:
                found.append(f"{project.record(slug, profile)}: {why}: make refresh PAPER={slug}")
            found += misjudged(project, slug, profile) if what != "run" else []
            if not card.awaiting:
                found += unexplained(project, slug, profile)
        except LabError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _loose_ends(project: Project, card: Card, composed: Composed) -> list[str]:
    """Fields that the card names and the Config does not have; inferred ones that a whole card says nothing of."""
    found = []
    said = " ".join([*card.not_reproduced, *(control.why for control in card.controls.values())])
    for claim in card.claims:
        for text in (claim.setting, claim.because):
            quoted(text, composed)
        for name, point in claim.operating_point.items():
            top = (point.config or "").split(".")[0]
            if point.config is not None and top not in composed.tree:
                found.append(
                    f"claims.{claim.id}.operating_point.{name}: the config has no {point.config}; it has "
                    f"{', '.join(composed.tree)}"
                )
    named = {field for claim in card.claims for field in claim.free}
    if not card.awaiting:
        for field, mark in inferred(project.experiment(card.slug).config).items():
            if field not in named and field not in said:
                found.append(
                    f"free: {field} is inferred ({mark.source}): a claim names it `free`, or not_reproduced says why "
                    "it decides nothing"
                )
    return found


def unexplained(project: Project, slug: str, profile: str) -> list[str]:
    """Verdicts without the `because` that each but reproduced must have."""
    record = Record.load(project.record(slug, profile))
    because = {claim.id: claim.because for claim in Card.load(project.card(slug)).claims}
    return [
        f"papers/{slug}/paper.yaml: claims.{claim.id}.because: is missing, and the verdict is {claim.verdict}"
        for claim in record.claims
        if claim.verdict not in EXPLAINED and not because.get(claim.id, "").strip()
    ]
