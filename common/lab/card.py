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

Kind = Literal["value", "up_to", "at_least", "at_most", "range", "exact", "parity", "direction", "invariant"]
Evidence = Literal["measured", "scaled", "simulated"]
Outcome = Literal["breaks it", "does not break it", "could not tell", "nothing to break", "identity"]
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
Scalar = float | int | str | bool
BANDED = ("value", "up_to")  # kinds with a band of the paper's effect x (1 +- tolerance)
GAINS = (
    "value",
    "up_to",
    "range",
    "at_least",
)  # kinds judged on the effect: 0 is nothing, 1 the paper's number
PUBLISHED = (*GAINS, "at_most", "exact")  # kinds that hold a number of the paper's
SOURCED = (*PUBLISHED, "parity")  # kinds that name where a number or a margin is from
LARGEST_TOLERANCE = 0.5
TOLERANCE_WITHOUT_REASON = 0.25
HEADLINES = (2, 6)  # how many claims of a card may be headline claims
BOUNDS = (  # what must stand before a claim is first recorded; a later change is a `revised` line
    "paper",
    "no_effect",
    "least",
    "tolerance",
    "margin",
    "better",
    "left",
    "at",
    "requires",
    "free",
)
JUDGED = (  # what the judge reads of a claim besides its bounds
    "id",
    "metric",
    "evidence",
    "clock",
    "resolution",
    "operating_point",
    "control",
    "also",
    "placebo",
    "revived_by",
    "needs",
)


class Strict(BaseModel):
    """Unknown keys are refused, values don't change, numbers are finite and no strings in disguise."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PaperValue(Strict):
    """What the paper published, and exactly where (version, section, figure or table)."""

    kind: Kind
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None  # the paper's number of the baseline, where no_effect is a metric
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
        elif self.kind in ("direction", "parity"):
            if self.value is not None:
                raise ValueError(f"kind {self.kind} has no value: only the side of no_effect is judged")
        elif self.value is None:
            raise ValueError(f"kind {self.kind} needs a value")
        if self.kind in SOURCED:
            if not self.source.strip():
                raise ValueError(
                    "source is missing: name the paper's version and the section, figure or table"
                )
            if "unverified" in self.source.lower():
                raise ValueError(
                    "source: an unverified number carries no numeric verdict: make it a direction, or name it "
                    "under not_reproduced, until a source is found"
                )
        if self.kind in (*PUBLISHED, "invariant") and not self.unit.strip():
            raise ValueError("unit is missing (ratio, s, %, count, ...)")
        return self

    @property
    def number(self) -> float | list[float] | None:
        """The value, [low, high] of a range, None of a direction."""
        if self.low is not None and self.high is not None:
            return [self.low, self.high]
        return self.value


class Baseline(Strict):
    """The value that means nothing gained, where it is observed: a metric of the same run, seed by seed."""

    metric: str


class Point(Strict):
    """One thing that decides a claim: the paper's value of it, and where ours is read."""

    paper: Scalar
    config: str | None = None  # a field of the Config
    metric: str | None = None  # or what run() observes, its mean
    at: dict[str, Scalar] = {}  # of the metric

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.config is None) == (self.metric is None):
            raise ValueError("names either a field of the config or a metric: ours is read, never typed")
        if self.at and self.metric is None:
            raise ValueError("at belongs to a metric")
        return self


class NoPlacebo(Strict):
    """Why a claim has no placebo: its mechanism chooses nothing, say."""

    none: str = Field(min_length=1)


class Revision(Strict):
    """A bound that changed after the claim was first recorded."""

    field: str
    was: Any = Field(alias="from")
    to: Any
    why: str = Field(min_length=1)


class Claim(Strict):
    """A claim: the paper's number, the metric that checks it, what decides it, and what must break it."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    headline: bool = False
    statement: str = Field(min_length=1)
    paper: PaperValue
    metric: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.:-]*$")
    evidence: Evidence
    clock: bool | None = None  # reads a clock; by default what is measured and no count does
    better: Literal["higher", "lower"]
    no_effect: float | Baseline | None = None
    tolerance: float | None = Field(default=None, ge=0, le=LARGEST_TOLERANCE)  # of the effect
    reason: str = ""  # why the tolerance is over 0.25
    least: float | None = None  # of a direction: the smallest value of the metric that matters
    margin: float | None = Field(default=None, gt=0)  # of parity, in the metric's unit
    left: bool = False  # a score bounded at 1, judged by what is left of it
    at: dict[str, Scalar] = {}  # of up_to: the setting that the paper names
    resolution: float | None = Field(default=None, gt=0)  # the metric's step; of a ratio it is relative
    operating_point: dict[str, Point] = {}
    requires: dict[str, float | list[float]] = {}  # metrics and their floors, or [low, high]
    free: dict[str, list[float]] = {}  # inferred fields that decide, each with its range
    control: str
    also: list[str] = []  # further controls, such as the brief's own that fail
    placebo: str | NoPlacebo | None = None
    because: str = ""  # of every verdict but reproduced: the cause in one sentence
    revived_by: str = ""  # a setting under which, if the cause is right, the claim comes out
    setting: str = ""  # where our hardware, model or data is not the paper's
    needs: str = ""  # what a run must have ("a GPU", "PROFILE=full"); without it the claim is not run
    revised: list[Revision] = []

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        kind = self.paper.kind
        if kind in BANDED:
            if self.tolerance is None:
                raise ValueError(
                    f"tolerance is missing: kind {kind} is judged by its effect x (1 +- tolerance)"
                )
            if self.tolerance > TOLERANCE_WITHOUT_REASON and not self.reason.strip():
                raise ValueError(
                    f"tolerance {self.tolerance:g} is over {TOLERANCE_WITHOUT_REASON}: give a reason"
                )
        elif self.tolerance:
            raise ValueError(f"tolerance belongs to value and up_to; kind {kind} is met or not")
        if (kind, self.better) in (("at_least", "lower"), ("at_most", "higher")):
            raise ValueError(f"kind {kind} does not go with better: {self.better}")
        for name, kinds in (("least", ("direction",)), ("margin", ("parity",)), ("at", ("up_to",))):
            if getattr(self, name) not in (None, {}) and kind not in kinds:
                raise ValueError(f"{name} belongs to kind {' or '.join(kinds)}, not to {kind}")
        if kind == "parity" and self.margin is None:
            raise ValueError(
                "margin is missing: the spread within which nothing is lost, from the paper or a source"
            )
        if self.left and kind not in (*GAINS, "direction"):
            raise ValueError(f"left belongs to a gain or a direction, not to kind {kind}")
        if kind in (*GAINS, "direction", "parity"):
            self._check_no_effect()
        elif isinstance(self.no_effect, Baseline) or self.paper.baseline is not None:
            raise ValueError(f"no_effect: a metric and paper.baseline go with a gain, not with kind {kind}")
        for name, bound in self.requires.items():
            if isinstance(bound, list) and (len(bound) != 2 or bound[0] > bound[1]):
                raise ValueError(f"requires.{name}: {bound} is no floor and no [low, high]")
        for name, ends in self.free.items():
            if len(ends) != 2 or not ends[0] < ends[1]:
                raise ValueError(f"free.{name}: {ends} is no range [low, high]")
        return self

    def _check_no_effect(self) -> None:
        paper, kind = self.paper, self.paper.kind
        if self.no_effect is None:
            raise ValueError(f"no_effect is missing: the value of a {kind} that means nothing gained")
        if isinstance(self.no_effect, Baseline):
            if self.left or kind == "range":
                raise ValueError("no_effect: a metric goes with kinds of one number, without left")
            if kind in GAINS and not paper.baseline:
                raise ValueError(
                    "paper.baseline is missing: ours over the baseline's is judged against value over baseline; "
                    "without the paper's baseline it is a direction"
                )
            if kind in GAINS and min(paper.baseline or 0.0, paper.value or 0.0) <= 0:
                raise ValueError("paper: value over baseline needs two numbers above 0")
            nothing = paper.baseline
        else:
            nothing = self.no_effect
            if paper.baseline is not None:
                raise ValueError("paper.baseline goes with no_effect: {metric: ...}")
        if self.left and not (self.better == "higher" and nothing is not None and nothing < 1):
            raise ValueError("left belongs to a score that is better higher and bounded at 1")
        if self.least is not None:
            start = 1.0 if isinstance(self.no_effect, Baseline) else self.no_effect
            gain = self.better == "higher" or isinstance(self.no_effect, Baseline)
            if not (self.least > start if gain else self.least < start):
                raise ValueError(
                    f"least {self.least:g} is no gain: no_effect is {start:g}, better {self.better}"
                )
        worst = paper.low if self.better == "higher" else paper.high
        worst = paper.value if worst is None else worst
        if kind in GAINS and worst is not None and nothing is not None:
            sign = 1 if self.better == "higher" else -1
            if sign * (worst - nothing) <= 0:
                raise ValueError(
                    f"no_effect {nothing:g} already meets the claim (it begins at {worst:g}, better: "
                    f"{self.better}), so that an experiment without any effect would reproduce it"
                )
            if self.left and worst >= 1:
                raise ValueError("left: the paper's score leaves nothing to judge by")

    @property
    def reads_a_clock(self) -> bool:
        """Whether two runs of it differ by what the machine did meanwhile."""
        if self.clock is not None:
            return self.clock
        return self.evidence == "measured" and self.paper.kind not in ("exact", "invariant")

    @property
    def metrics(self) -> list[str]:
        """All that must be observed to judge it: its own metric, the baseline's, of operating point and floors."""
        baseline = [self.no_effect.metric] if isinstance(self.no_effect, Baseline) else []
        points = [point.metric for point in self.operating_point.values() if point.metric is not None]
        return list(dict.fromkeys([self.metric, *baseline, *points, *self.requires]))

    @property
    def controls(self) -> list[str]:
        """The names of its controls and its placebo."""
        placebo = [self.placebo] if isinstance(self.placebo, str) else []
        return list(dict.fromkeys([self.control, *self.also, *placebo]))

    def bounds(self) -> dict[str, Any]:
        """The fields that must be fixed before the first result, as plain values; the source may be told better."""
        whole = self.model_dump(mode="json", include=set(BOUNDS))
        whole["paper"] = {k: v for k, v in whole["paper"].items() if k != "source"}
        return whole

    def judged(self) -> dict[str, Any]:
        """All that a verdict depends on, as plain values."""
        return {**self.model_dump(mode="json", include=set(JUDGED)), **self.bounds()}


class Control(Strict):
    """A control or placebo: settings that switch the mechanism off, or its information out, in the paper's own code."""

    set: dict[str, Any] = Field(min_length=1)  # fields of the paper's Config, dotted where nested
    why: str = Field(min_length=1)
    partial: bool = False  # part of the effect remains by design: surely less than half of it
    reason: str = ""  # why part of the effect remains
    expect: Outcome = "breaks it"
    because: str = ""  # why it is expected not to break its claims

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.partial and not self.reason.strip():
            raise ValueError("partial: true needs a reason: say which part of the effect remains and why")
        if self.expect != "breaks it" and not self.because.strip():
            raise ValueError(f"expect: {self.expect} needs its because")
        return self


class Setting(Strict):
    """Other values of the Config, under which an explanation is put to the test."""

    set: dict[str, Any] = Field(min_length=1)
    why: str = Field(min_length=1)


class PaperFigure(Strict):
    """Points of a figure or table of the paper, which a notebook shows beside ours and no claim judges."""

    source: str = Field(min_length=1)
    points: dict[str, float] = Field(min_length=1)


class Card(Strict):
    """One paper."""

    slug: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str = Field(min_length=1)
    year: int = Field(ge=1950, le=2100)
    arxiv: str | None = None
    code: str | None = None
    topic: Topic
    summary: str = Field(min_length=1)
    finding: str = ""  # what we now know that the paper does not say
    needs: list[str] = []  # slugs that a student should have read before
    awaiting: str = ""  # what is still to come before the card is whole under the contract
    extras: list[str] = []  # of pyproject.toml; the Makefile installs them on first use
    data: list[str] = []  # data sets of common.data that a run uses where they can be had
    claims: list[Claim] = Field(min_length=1)
    controls: dict[str, Control] = Field(min_length=1)
    settings: dict[str, Setting] = {}
    figures: dict[str, PaperFigure] = {}
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
            for name in claim.controls:
                if name not in self.controls:
                    known = ", ".join(self.controls)
                    raise ValueError(f"claims.{claim.id}: no control is named {name!r} (there is: {known})")
            if claim.revived_by and claim.revived_by not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise ValueError(
                    f"claims.{claim.id}.revived_by: no setting is named {claim.revived_by!r} (there is: {known})"
                )
        named = {name for claim in self.claims for name in claim.controls}
        for name in self.controls.keys() - named:
            raise ValueError(f"controls.{name}: no claim names this control")
        for name in self.settings.keys() - {claim.revived_by for claim in self.claims}:
            raise ValueError(f"settings.{name}: no claim is revived_by it")
        for name in self.settings.keys() & self.controls.keys():
            raise ValueError(f"settings.{name}: a control has this name too")
        if any(not line.strip() for line in self.not_reproduced):
            raise ValueError("not_reproduced: a line is empty")
        if not self.awaiting:
            for problem in self.unfinished():
                raise ValueError(problem)
        return self

    def unfinished(self) -> list[str]:
        """What the contract asks of a card and this one lacks, one line each."""
        found = []
        least, most = HEADLINES
        headlines = [claim for claim in self.claims if claim.headline]
        if not min(least, len(self.claims)) <= len(headlines) <= most:
            found.append(
                f"claims: {len(headlines)} headline claims; {least} to {most} are the abstract's numbers"
            )
        for claim in self.claims:
            if claim.paper.kind in (*GAINS, "at_most") and not claim.operating_point:
                found.append(
                    f"claims.{claim.id}.operating_point: is missing: what decides the number, in the paper and here"
                )
        found += [
            f"claims.{claim.id}.placebo: is missing: name one, or {{none: why}}"
            for claim in headlines
            if claim.placebo is None
        ]
        if not self.finding.strip():
            found.append("finding: is missing: one sentence, what we now know that the paper does not say")
        return found

    def claim(self, claim_id: str) -> Claim:
        """The claim of this id; LabError names the ids there are."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise LabError(
            f"{self.slug} has no claim {claim_id!r}; it has {', '.join(c.id for c in self.claims)}"
        )

    def figure(self, name: str) -> dict[str, float]:
        """The points of a figure of the paper; LabError names the figures there are."""
        if name in self.figures:
            return dict(self.figures[name].points)
        raise LabError(
            f"{self.slug} quotes no figure {name!r}; it has {', '.join(self.figures) or 'none'} (figures in its card)"
        )

    @classmethod
    def load(cls, path: Path) -> "Card":
        """Read and check a card. LabError names file, field and reason in one line."""
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _OnceEach)
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


class _OnceEach(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which a key that stands twice is a mistake, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands twice in one mapping", node.start_mark
                )
        return super().construct_mapping(node, deep)


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
