"""results.json: what a run found, and what it rests on. Written whole or not at all, refused when malformed."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from common.lab.card import Evidence, Kind, Outcome, Strict, explain
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.verdict import UPHELD, Name, Verdict

Interval = tuple[float, float]


class ArmRecord(Strict):
    """A claim under a control, a placebo or a setting: its values, and what that says of the claim."""

    name: str
    values: list[float] = []
    mean: float | None = None
    interval: Interval | None = None
    verdict: Name = "not run"
    left: float | None = None  # share of our effect that is left under a control
    outcome: str = ""  # of a control an Outcome; of a setting revived, in part, refuted or not run


class ClaimRecord(Strict):
    """Paper's value, ours and the verdict; `reason` says why a claim was not run or what would decide it."""

    id: str
    headline: bool = False
    metric: str
    evidence: Evidence
    clock: bool = False  # whether two runs differ by what the machine did meanwhile
    kind: Kind
    paper_value: float | list[float] | None
    unit: str
    values: list[float]
    mean: float | None
    interval: Interval | None
    effect: float | None = None  # 0 is nothing, 1 the paper's number
    effect_interval: Interval | None = None
    half_width: float | None = None  # of the effect
    seeds_needed: int | None = None
    judged_as: str = ""
    verdict: Name
    note: str = ""
    reason: str = ""
    capped: bool = False  # the rival stood on a floor: the value only bounds the true ratio from below
    marks: list[str] = []  # what a reader must know beside the verdict
    setting: str = ""
    operating_point: dict[str, dict[str, Any]] = {}
    free: list[str] = []  # the ends of free constants that the verdict depends on
    recordings: int = 1  # of a claim that reads a clock: hours in which it was recorded
    control: ArmRecord | None = None  # None where it was not run
    also: list[ArmRecord] = []
    placebo: ArmRecord | None = None
    revived_by: ArmRecord | None = None
    because: str = ""
    revised: list[str] = []  # fields of its bounds that changed after it was first recorded

    @property
    def controls(self) -> list[ArmRecord]:
        """All controls and placebos that were run."""
        return [arm for arm in (self.control, *self.also, self.placebo) if arm is not None]

    @property
    def upheld(self) -> bool:
        return self.verdict in UPHELD

    @property
    def broken_by(self) -> list[str]:
        """The names of the controls and placebos that break it."""
        return [arm.name for arm in self.controls if arm.outcome == "breaks it"]

    @property
    def not_shown(self) -> bool:
        """Upheld, but by nothing that was tried shown to be the method's."""
        return self.upheld and bool(self.controls) and not self.broken_by


class Provenance(Strict):
    """What a result rests on: sources, locked packages, config, seeds, data and machine."""

    observed: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 of what the observations rest on
    judged: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 of what the judge reads of the card
    sources: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 of the parsed sources, a part of `observed`
    lock: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 of requirements.lock
    config: dict[str, Any]
    seeds: list[int]
    data: dict[str, str]  # data set -> sha256
    machine: dict[str, Any]
    python: str
    started: str  # UTC, ISO 8601
    seconds: float
    peak_rss_bytes: int


class Record(Strict):
    """results.json as a whole."""

    paper: str
    profile: str
    overrides: list[str] = []
    awaiting: str = ""  # what is still to come before the paper is judged whole under the contract
    claims: list[ClaimRecord]
    provenance: Provenance

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write atomically. LabError where the place can't be written."""
        write_atomically(path, self.to_json())

    def claim(self, claim_id: str) -> ClaimRecord:
        """The claim of this id; LabError names the ids there are."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise LabError(
            f"{self.paper} has no claim {claim_id!r}; it has {', '.join(c.id for c in self.claims)}"
        )

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read and check a record. LabError names file, field and reason in one line."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise LabError(f"{path}: {error.strerror}") from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise LabError(f"{path}: {explain(error)}") from error


def arm_record(name: str, verdict: Verdict, outcome: str | Outcome, left: float | None = None) -> ArmRecord:
    """A claim's verdict under an arm as the record keeps it."""
    return ArmRecord(
        name=name,
        values=list(verdict.values),
        mean=verdict.mean,
        interval=verdict.interval,
        verdict=verdict.verdict,
        left=left,
        outcome=outcome,
    )
