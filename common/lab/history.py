"""Bounds come first: what git says of a claim's bounds before it was first recorded.

The parent of the commit that first records a claim holds the same bounds as the card does now; a later change needs a
line under the claim's `revised`, and every table marks it.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.lab.card import BOUNDS, Card
from common.lab.errors import LabError
from common.lab.project import Project

PAPER = ("kind", "value", "low", "high", "baseline")
PLAIN = tuple(name for name in BOUNDS if name != "paper")


def is_shallow(root: Path) -> bool:
    """Whether git has no whole history here (a shallow clone, or no repository)."""
    try:
        return _git(root, "rev-parse", "--is-shallow-repository").strip() != "false"
    except LabError:
        return True


def changed_bounds(project: Project, slug: str) -> list[tuple[str, str, Any, Any]]:
    """(claim, field, then, now) for each bound that is not what it was before the claim was first recorded.

    A claim that no card held before it was recorded has the field `claim` here.
    Claims that were never recorded have no history. LabError where git can't tell.
    """
    card = Card.load(project.card(slug))
    now = {claim.id: bounds_of(claim.model_dump(mode="json", by_alias=True)) for claim in card.claims}
    found: list[tuple[str, str, Any, Any]] = []
    for claim_id, then in first_bounds(project.root, slug).items():
        if claim_id in now and then is None:
            found.append((claim_id, "claim", None, "there"))
        elif claim_id in now and then is not None:
            found += [
                (claim_id, field, then.get(field), now[claim_id].get(field))
                for field in sorted(then.keys() | now[claim_id].keys())
                if then.get(field) != now[claim_id].get(field)
            ]
    return found


def unexcused(project: Project, slug: str) -> list[str]:
    """Bounds that changed without a line under `revised`, one line each."""
    card = Card.load(project.card(slug))
    revised = {(claim.id, revision.field) for claim in card.claims for revision in claim.revised}
    return [
        f"papers/{slug}/paper.yaml: claims.{claim}.{field} was {then!r} before it was first recorded and is {now!r}: "
        "say so under revised (field, from, to, why)"
        for claim, field, then, now in changed_bounds(project, slug)
        if (claim, field) not in revised and (claim, field.split(".")[0]) not in revised
    ]


def bounds_of(claim: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds of a claim as its YAML holds them, flat, without what is empty."""
    paper = claim.get("paper") or {}
    flat = {f"paper.{name}": paper.get(name) for name in PAPER}
    flat |= {name: claim.get(name) for name in PLAIN}
    return {name: _plain(value) for name, value in flat.items() if not _is_empty(value)}


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def first_bounds(root: Path, slug: str) -> dict[str, dict[str, Any] | None]:
    """Of each claim that was ever recorded the bounds that its card held in the parent of the first such commit.

    None where the parent's card had no such claim.
    """
    found: dict[str, dict[str, Any] | None] = {}
    records = [f"papers/{slug}/results{end}.json" for end in ("", ".full", ".cuda")]
    commits = _git(root, "log", "--reverse", "--format=%H", "--", *records).split()
    for commit in commits:
        for path in records:
            ids = [claim["id"] for claim in _json(root, commit, path).get("claims", [])]
            if set(ids) <= found.keys():
                continue
            before = _claims(root, f"{commit}^", slug)
            for claim_id in ids:
                if claim_id not in found:
                    found[claim_id] = bounds_of(before[claim_id]) if claim_id in before else None
    return found


def _claims(root: Path, revision: str, slug: str) -> dict[str, Any]:
    try:
        card = yaml.safe_load(_git(root, "show", f"{revision}:papers/{slug}/paper.yaml"))
    except (LabError, yaml.YAMLError):
        return {}
    return {claim["id"]: claim for claim in card.get("claims", [])}


def _json(root: Path, revision: str, path: str) -> dict[str, Any]:
    try:
        return json.loads(_git(root, "show", f"{revision}:{path}"))  # type: ignore[no-any-return]
    except (LabError, ValueError):
        return {}


def _git(root: Path, *arguments: str) -> str:
    ended = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise LabError(f"git {arguments[0]}: {ended.stderr.strip() or 'failed'}")
    return ended.stdout
