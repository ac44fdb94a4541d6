"""What the last run of a paper under a profile saw, used again where nothing that it rests on has changed.

A student who reopens a notebook, or reproduces twice, need not wait twice. Records, controls' checks and CI always
compute (FRESH=1), and so does any run that read a clock: a time is of its moment.
"""

import hashlib
import json
import os
from pathlib import Path

from common.lab.arms import OURS, load_arms, save_arms
from common.lab.card import Card
from common.lab.closure import sources_digest
from common.lab.config import Composed
from common.lab.errors import LabError
from common.lab.evaluate import Measurement
from common.lab.files import write_atomically
from common.lab.project import Project
from common.lab.typed import plain

FRESH = "FRESH"  # environment variable: compute in any case


def kept_run(project: Project, card: Card, composed: Composed) -> Measurement | None:
    """What the last run saw, or None where there is none, it rests on something else, or computing is asked for."""
    if os.environ.get(FRESH) or os.environ.get("CI"):
        return None
    folder = _folder(project, composed)
    try:
        known = json.loads((folder / "known.json").read_text(encoding="utf-8"))
        if known.pop("key") != _key(project, card, composed):
            return None
        return Measurement(load_arms(folder / "observations.json.gz")[OURS], known)
    except (OSError, ValueError, KeyError, LabError):
        return None


def keep(project: Project, card: Card, composed: Composed, measured: Measurement) -> None:
    """Keep what a run saw for the next one, unless it read a clock."""
    clocks = {claim.metric for claim in card.claims if claim.reads_a_clock}
    if clocks & set(measured.seen.metrics) or os.environ.get("CI"):
        return
    folder = _folder(project, composed)
    (folder / "known.json").unlink(missing_ok=True)
    save_arms(folder / "observations.json.gz", {OURS: measured.seen})
    content = {**measured.known, "key": _key(project, card, composed)}
    write_atomically(
        folder / "known.json", json.dumps(content) + "\n"
    )  # last: it says that the rows are whole


def _folder(project: Project, composed: Composed) -> Path:
    return project.outputs / ".runs" / composed.slug / composed.profile


def _key(project: Project, card: Card, composed: Composed) -> str:
    """sha256 of code, config, seeds, and the data sets that are at hand."""
    at_hand = {}
    if card.data:
        from common.data import DATASETS, find

        at_hand = {name: DATASETS[name].sha256 for name in card.data if find(name) is not None}
    rests_on = [
        sources_digest(project, composed.slug),
        plain(dict(composed.tree)),
        list(composed.seeds),
        composed.device,
        at_hand,
    ]
    return hashlib.sha256(json.dumps(rests_on, sort_keys=True).encode()).hexdigest()
