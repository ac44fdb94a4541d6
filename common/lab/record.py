"""results.json: what a run found, and what it rests on. Written whole or not at all, refused when malformed."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from common.lab.card import Evidence, Kind, Strict, explain
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.verdict import Name, Note, Verdict


class ControlRecord(Strict):
    """What a claim's negative control did; `holds` says whether it broke the claim."""

    name: str
    values: list[float]
    mean: float | None
    interval: tuple[float, float] | None
    verdict: Name
    holds: bool


class ClaimRecord(Strict):
    """Paper's value, ours and the verdict; `reason` says why a claim was not run."""

    id: str
    metric: str
    evidence: Evidence
    kind: Kind
    paper_value: float | list[float] | None
    unit: str
    values: list[float]
    mean: float | None
    interval: tuple[float, float] | None
    verdict: Name
    note: Note = ""
    reason: str = ""
    setting: str = ""
    control: ControlRecord | None = None  # None where it was not run


class Provenance(Strict):
    """What a result rests on: code, locked packages, config, seeds, data and machine."""

    code: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 over the sources imported from papers/ and common/
    lock: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 of requirements.lock
    config: dict[str, Any]
    config_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
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
    claims: list[ClaimRecord]
    provenance: Provenance

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write atomically. LabError where the place can't be written."""
        write_atomically(path, self.to_json())

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


def control_record(name: str, verdict: Verdict, holds: bool) -> ControlRecord:
    """A control's verdict as the record keeps it."""
    return ControlRecord(
        name=name,
        values=list(verdict.values),
        mean=verdict.mean,
        interval=verdict.interval,
        verdict=verdict.verdict,
        holds=holds,
    )
