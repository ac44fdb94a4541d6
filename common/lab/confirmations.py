"""confirmations.json: every recording and confirmation of a paper, on whatever machine. The file only grows.

A claim that reads a clock is judged on the means of its recordings under one digest, one an hour: what a machine does
in one moment is no property of a method. All other claims come out the same everywhere; here stands whether they did.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from common.lab.card import Strict, explain
from common.lab.errors import LabError
from common.lab.files import locked, write_atomically
from common.lab.project import Project
from common.lab.record import ClaimRecord, Record

HOUR = len("2026-11-30T22")  # of an ISO 8601 moment
ROUNDING = 1e-6  # relative; another processor's


class Outcome(Strict):
    """One claim in one run: its mean, its verdict there, and whether it agrees with the record (None: no record)."""

    mean: float
    verdict: str
    agrees: bool | None = None


class Run(Strict):
    """One run of a paper as its profile stands: when, where, under which digest, and what came out."""

    kind: Literal["recorded", "confirmed"]
    profile: str
    observed: str
    started: str  # UTC, ISO 8601
    seconds: float
    machine: dict[str, str | int | float]
    claims: dict[str, Outcome]


class Confirmations(Strict):
    """The whole file."""

    paper: str
    runs: list[Run] = []

    @classmethod
    def load(cls, path: Path, slug: str) -> "Confirmations":
        """Read and check; empty where there is none. LabError names file, field and reason."""
        if not path.is_file():
            return cls(paper=slug)
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise LabError(f"{path}: {error.strerror}") from error
        except ValidationError as error:
            raise LabError(f"{path}: {explain(error)}") from error

    def recordings(self, profile: str, observed: str) -> dict[str, dict[str, float]]:
        """Of each claim the mean of what was recorded in each hour, under this profile and digest."""
        hours: dict[str, dict[str, list[float]]] = {}
        for run in self.runs:
            if (run.profile, run.observed) == (profile, observed):
                for claim, outcome in run.claims.items():
                    hours.setdefault(claim, {}).setdefault(run.started[:HOUR], []).append(outcome.mean)
        return {
            claim: {hour: math.fsum(means) / len(means) for hour, means in sorted(by_hour.items())}
            for claim, by_hour in hours.items()
        }

    def machines(self, observed: str) -> int:
        """On how many different machines all claims without a clock came out as recorded."""
        places = {
            json.dumps([run.machine.get(key) for key in ("processor", "cores", "gpu")])
            for run in self.runs
            if run.observed == observed and all(o.agrees is not False for o in run.claims.values())
        }
        return len(places)


def append(
    project: Project, record: Record, kind: Literal["recorded", "confirmed"], standing: Record | None
) -> None:
    """Add a run to the paper's file, under a lock."""
    path = project.confirmations(record.paper)
    known = record.provenance
    claims = {
        claim.id: Outcome(mean=claim.mean, verdict=claim.verdict, agrees=agreement(claim, standing))
        for claim in record.claims
        if claim.mean is not None
    }
    run = Run(
        kind=kind,
        profile=record.profile,
        observed=known.observed,
        started=known.started,
        seconds=known.seconds,
        machine={k: v for k, v in known.machine.items() if isinstance(v, (str, int, float))},
        claims=claims,
    )
    with locked(project.outputs / ".lock"):
        whole = Confirmations.load(path, record.paper)
        if any(one.started == run.started and one.claims == run.claims for one in whole.runs):
            return  # this very run stands there already
        grown = Confirmations(paper=whole.paper, runs=[*whole.runs, run])
        write_atomically(path, json.dumps(grown.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def agreement(claim: ClaimRecord, standing: Record | None) -> bool | None:
    """Whether a claim came out as in a record: the same values, or of one that reads a clock the same verdict."""
    kept = next((one for one in standing.claims if one.id == claim.id), None) if standing else None
    if kept is None or kept.mean is None:
        return None
    if close(claim.values, kept.values):
        return True
    return claim.verdict == kept.verdict if claim.clock else False


def close(ours: Sequence[float], kept: Sequence[float]) -> bool:
    """Equal but for the rounding of another processor."""
    pairs = zip(ours, kept, strict=False)
    return len(ours) == len(kept) and all(
        math.isclose(a, b, rel_tol=ROUNDING, abs_tol=1e-12) for a, b in pairs
    )


def agreement_line(record: Record, standing: Record) -> str:
    """One line on how a run agrees with the committed record."""
    kept = {claim.id: claim for claim in standing.claims if claim.mean is not None}
    both = [(claim, kept[claim.id]) for claim in record.claims if claim.mean is not None and claim.id in kept]
    timed = [(ours, theirs) for ours, theirs in both if ours.clock]
    exact = [(ours, theirs) for ours, theirs in both if not ours.clock]
    same = sum(ours.values == theirs.values for ours, theirs in exact)
    near = sum(close(ours.values, theirs.values) for ours, theirs in exact) - same
    parts = [f"{same} of {len(exact)} values to the byte" + (f", {near} but for rounding" if near else "")]
    if timed:
        agree = sum(ours.verdict == theirs.verdict for ours, theirs in timed)
        parts.append(f"{agree} of {len(timed)} verdicts on a clock")
    moved = [ours.id for ours, theirs in exact if not close(ours.values, theirs.values)]
    return f"as recorded: {', '.join(parts)}" + (f"; not as recorded: {', '.join(moved)}" if moved else "")
