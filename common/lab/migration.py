"""Once: records of the first judging carried over to the second. `python -m common.lab.migration BASE` at the root.

BASE is a checkout of the last commit of the first judging. There `python -m common.lab check` must say that every
record holds: only then are its values those of the code, and only then are they carried over. What has moved between
files since was shown to observe the same bytes under smoke. A card that was not written for the second contract is
marked as awaiting it; bounds that git saw changing get their line.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.lab.arms import OURS, save_arms
from common.lab.card import Card
from common.lab.closure import sources_digest
from common.lab.config import compose
from common.lab.confirmations import append
from common.lab.evaluate import assess, make_record
from common.lab.history import changed_bounds
from common.lab.project import Project
from common.lab.recording import judged
from common.lab.runtime import Observations
from common.lab.typed import plain

AWAITING = """\
awaiting: >-
  its second judging (headline claims, operating points, placebos, explanations); its values are those of the first,
  maxima over settings the best of each seed

"""
WHY = "changed after it was first recorded, when no reason was asked for"


def main(base: Path) -> None:
    project = Project.current()
    ended = subprocess.run(
        [sys.executable, "-m", "common.lab", "check"], cwd=base, env={"PYTHONPATH": str(base), "PATH": ""}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise SystemExit(f"the records at {base} do not hold: {ended.stderr}")
    print(f"{base.name}: {ended.stdout.strip()}")
    for slug in project.slugs:
        if not (project.root / "papers" / slug / "config.py").is_file():
            continue  # recorded anew
        card = project.card(slug)
        text = card.read_text(encoding="utf-8")
        if "\nawaiting:" not in text and "\nfinding:" not in text:
            card.write_text(text.replace("\nclaims:\n", f"\n{AWAITING}claims:\n", 1), encoding="utf-8")
            _revise(project, slug)
        for profile in ("default", "cuda"):
            path = project.record(slug, profile)
            if path.is_file():
                old = json.loads(path.read_text(encoding="utf-8"))
                if "observed" not in old["provenance"]:
                    _carry_over(project, slug, profile, old)


def _revise(project: Project, slug: str) -> None:
    """A line under `revised` for each bound that changed after its claim was first recorded."""
    card = project.card(slug)
    for claim, field, then, now in changed_bounds(project, slug):
        text = card.read_text(encoding="utf-8")
        entry = json.dumps({"field": field, "from": then, "to": now, "why": WHY})
        start = text.index(f"  - id: {claim}\n")
        end = text.index("\n", text.index("    no_effect:", start)) + 1
        have = "    revised:\n" in text[start : text.find("  - id:", start + 5)]
        assert not have
        card.write_text(f"{text[:end]}    revised:\n      - {entry}\n{text[end:]}", encoding="utf-8")


def _carry_over(project: Project, slug: str, profile: str, old: dict[str, Any]) -> None:
    card, composed = Card.load(project.card(slug)), compose(project, slug, profile)
    known = old["provenance"]
    assert known["config"] == plain(dict(composed.tree)), slug
    assert known["seeds"] == list(composed.seeds), slug
    arms: dict[str, Observations] = {OURS: Observations()}
    for claim in old["claims"]:
        certain = claim["note"] == "deterministic"
        _add(arms[OURS], claim["metric"], claim["values"], certain)
        control = claim["control"]
        if control and control["values"]:
            # of a claim without chance there is one value; so there is of a control that knows none
            _add(arms.setdefault(control["name"], Observations()), claim["metric"], control["values"],
                 certain or len(control["values"]) < len(known["seeds"]))  # fmt: skip
    kept = {
        name: known[name] for name in ("data", "machine", "python", "started", "seconds", "peak_rss_bytes")
    }
    kept["sources"] = sources_digest(project, slug)
    record = make_record(project, card, composed, assess(card, composed, arms), kept)
    record = record.model_copy(
        update={"provenance": record.provenance.model_copy(update={"lock": known["lock"]})}
    )
    save_arms(project.observations(slug, profile), arms)
    append(project, record, "recorded", None)
    record = judged(project, card, composed, arms, record)
    record.save(project.record(slug, profile))
    before = {claim["id"]: claim["verdict"] for claim in old["claims"]}
    for claim in record.claims:
        if before[claim.id] != claim.verdict:
            print(
                f"{slug:24} {claim.id:40} {before[claim.id]:13} -> {claim.verdict:13} {claim.reason} {claim.marks}"
            )


def _add(seen: Observations, metric: str, values: list[float], certain: bool) -> None:
    if not values or metric in seen.metrics:
        assert not values or seen.values(metric) == values, metric
        return
    for seed, value in enumerate(values):
        seen.add(metric, value, None if certain else seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
