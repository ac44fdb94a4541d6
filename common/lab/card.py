"""The card papers/<slug>/paper.yaml: what a paper claims, how each claim is checked, and what must break the check.

This is the only place that holds a paper's numbers. `Card.load` refuses a malformed card with one line that names the
file, the field and the reason.
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from common.lab.errors import LabError

Kind = Literal["value", "up_to", "at_least", "at_most", "range", "exact", "direction"]
Evidence = Literal["measured", "scaled", "simulated"]
Topic = Literal[
    "serving",
    "training",
    "compression",
    "architecture",
    "hardware",
    "rl",
    "optimization",
    "scheduling",
    "data",
]
BANDED = ("value", "up_to")  # kinds judged by a band of value x (1 +- tolerance)
LARGEST_TOLERANCE = 0.5
TOLERANCE_WITHOUT_REASON = 0.25


class Strict(BaseModel):
    """Unknown keys are refused, values don't change, numbers are finite and no strings in disguise."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PaperValue(Strict):
    """What the paper published, and exactly where (version, section, figure or table)."""

    kind: Kind
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "range":
            if self.low is None or self.high is None or self.value is not None:
                raise ValueError("kind range takes low and high instead of value")
            if self.low > self.high:
                raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        elif self.low is not None or self.high is not None:
            raise ValueError(f"low and high belong to kind range, not to {self.kind}")
        elif self.kind == "direction":
            if self.value is not None:
                raise ValueError("kind direction has no value: only the side of no_effect is judged")
        elif self.value is None:
            raise ValueError(f"kind {self.kind} needs a value")
        if self.kind != "direction":
            if not self.source.strip():
                raise ValueError(
                    "source is missing: name the paper's version and the section, figure or table"
                )
            if not self.unit.strip():
                raise ValueError("unit is missing (ratio, s, %, count, ...)")
        return self

    @property
    def number(self) -> float | list[float] | None:
        """The value, [low, high] of a range, None of a direction."""
        if self.low is not None and self.high is not None:
            return [self.low, self.high]
        return self.value


class Claim(Strict):
    """A headline claim: the paper's number, the metric that checks it, the control that must break the check."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    statement: str = Field(min_length=1)
    paper: PaperValue
    metric: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.:-]*$")
    evidence: Evidence
    better: Literal["higher", "lower"]
    no_effect: float
    tolerance: float | None = Field(default=None, ge=0, le=LARGEST_TOLERANCE)
    reason: str = ""  # why the tolerance is over 0.25
    control: str
    setting: str = ""  # where our hardware, model or data is not the paper's
    needs: str = (
        ""  # what a run must have for this claim ("a GPU", "data set x"); without it the claim is not run
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        paper, kind = self.paper, self.paper.kind
        if kind in BANDED:
            if self.tolerance is None:
                raise ValueError(f"tolerance is missing: kind {kind} is judged by value x (1 +- tolerance)")
            if self.tolerance > TOLERANCE_WITHOUT_REASON and not self.reason.strip():
                raise ValueError(
                    f"tolerance {self.tolerance:g} is over {TOLERANCE_WITHOUT_REASON}: give a reason"
                )
        elif self.tolerance:
            raise ValueError(f"tolerance belongs to value and up_to; kind {kind} is met or not")
        if (kind, self.better) in (("at_least", "lower"), ("at_most", "higher")):
            raise ValueError(f"kind {kind} does not go with better: {self.better}")
        if kind != "direction":
            worst = paper.low if self.better == "higher" else paper.high
            worst = paper.value if worst is None else worst
            assert worst is not None
            sign = 1 if self.better == "higher" else -1
            edge = worst - sign * abs(worst) * (self.tolerance or 0.0)
            if sign * (edge - self.no_effect) <= 0:
                raise ValueError(
                    f"no_effect {self.no_effect:g} already meets the claim (it begins at {edge:g}, better: "
                    f"{self.better}), so that an experiment without any effect would reproduce it"
                )
        return self


class Control(Strict):
    """A negative control: settings that switch the mechanism off inside the paper's own code."""

    set: dict[str, Any] = Field(min_length=1)  # fields of the paper's Config, dotted where nested
    why: str = Field(min_length=1)
    partial: bool = False  # part of the effect remains by design: at least half of it must be lost
    reason: str = ""  # why part of the effect remains

    @model_validator(mode="after")
    def _partial_has_a_reason(self) -> Self:
        if self.partial and not self.reason.strip():
            raise ValueError("partial: true needs a reason: say which part of the effect remains and why")
        return self


class Card(Strict):
    """One paper."""

    slug: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str = Field(min_length=1)
    year: int = Field(ge=1950, le=2100)
    arxiv: str | None = None
    code: str | None = None
    topic: Topic
    summary: str = Field(min_length=1)
    extras: list[str] = []  # of pyproject.toml; the Makefile installs them on first use
    data: list[str] = []  # data sets of common.data that a run uses where they can be had
    claims: list[Claim] = Field(min_length=1)
    controls: dict[str, Control] = Field(min_length=1)
    not_reproduced: list[str] = Field(min_length=1)

    @field_validator("arxiv")
    @classmethod
    def _arxiv_number(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?", value):
            raise ValueError(
                f"{value!r} is no arXiv number such as '2401.09670' (quoted, or YAML reads a number)"
            )
        return value

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        ids = [claim.id for claim in self.claims]
        for twice in {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"claims: two claims have the id {twice!r}")
        for claim in self.claims:
            if claim.control not in self.controls:
                known = ", ".join(self.controls)
                raise ValueError(
                    f"claims.{claim.id}.control: no control is named {claim.control!r} (there is: {known})"
                )
        for name in self.controls.keys() - {claim.control for claim in self.claims}:
            raise ValueError(f"controls.{name}: no claim names this control")
        if any(not line.strip() for line in self.not_reproduced):
            raise ValueError("not_reproduced: a line is empty")
        return self

    def claim(self, claim_id: str) -> Claim:
        """The claim of this id; LabError names the ids there are."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise LabError(
            f"{self.slug} has no claim {claim_id!r}; it has {', '.join(c.id for c in self.claims)}"
        )

    @classmethod
    def load(cls, path: Path) -> "Card":
        """Read and check a card. LabError names file, field and reason in one line."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise LabError(f"{path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LabError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise LabError(f"{path}: a card is a mapping (slug, title, claims, ...)")
        try:
            card = cls.model_validate(content)
        except ValidationError as error:
            raise LabError(f"{path}: {explain(error, content)}") from error
        if card.slug != path.parent.name:
            raise LabError(f"{path}: slug: {card.slug!r} is not the folder's name {path.parent.name!r}")
        return card


def explain(error: ValidationError, content: Any = None) -> str:
    """A pydantic error as 'field: reason; field: reason', with claims named by their id."""
    parts = []
    for detail in error.errors():
        place, inside = [], content
        for step in detail["loc"]:
            try:
                inside = inside[step]
            except (KeyError, IndexError, TypeError):
                inside = None
            named = isinstance(step, int) and isinstance(inside, dict) and inside.get("id")
            place.append(str(named or step))
        reason = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            reason = "unknown field"
        elif detail["type"] == "missing":
            reason = "is missing"
        elif detail["type"] not in ("value_error", "missing"):
            reason += f" (got {detail['input']!r})"
        parts.append(f"{'.'.join(place)}: {reason}" if place else reason)
    return "; ".join(parts)
