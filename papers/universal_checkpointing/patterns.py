"""The pattern language: how ranks share a parameter, stated for names (Section 3.2; names of v2 / v3 of the paper).

    rules = (
        Rule(r"blocks\\.\\d+\\.norm\\.weight", Replicate()),
        Rule(r"blocks\\.\\d+\\.qkv\\.weight", Shard(0, parts=(64, 32, 32))),
        Rule(r"embedding\\.weight", Shard(0, rows=50257), stages=True),
    )
    rule_of = match(rules, names)      # strict: every name has one rule, every rule has names

The rules are written into the checkpoint. Whoever converts or loads it knows a parameter by them alone, and asks
neither the trainer that saved it nor the one that goes on.

| pattern | paper | Union |
| --- | --- | --- |
| Unique | unique_params | the only one there is |
| Replicate | replicated_params | the first, and all must be equal |
| Average | params_to_average, Partial | their mean |
| Shard(dim) | fragment_params, Shard-V and Shard-H | concatenation along dim |
| Shard(dim, parts) | Shard-NC | each part concatenated, then the parts |
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Size = tuple[int, ...]
Box = tuple[
    tuple[tuple[int, int], ...], ...
]  # for each dimension the stretches (from, to) that a rank holds, in order


class PatternError(ValueError):
    """Rules and parameters that do not fit one another."""


@dataclass(frozen=True)
class Unique:
    """It lives on one tensor rank of one stage."""

    def whole(self, local: Size, ranks: int) -> Size:
        return local

    def box(self, whole: Size, index: int, ranks: int) -> Box:
        return tuple(((0, n),) for n in whole)


@dataclass(frozen=True)
class Replicate(Unique):
    """Every tensor rank has all of it, the same: norms, biases added behind a sum over ranks."""


@dataclass(frozen=True)
class Average(Unique):
    """Every rank has all of it, changed independently: their mean goes on."""


@dataclass(frozen=True)
class Shard:
    """Cut along `dim`, each of `parts` by itself (none: the tensor is one part).

    parts: sizes along dim that add up to the whole's, such as of queries, keys and values. rows: of a vocabulary that
    mean something; behind them a layout may have padding.
    """

    dim: int
    parts: tuple[int, ...] = ()
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.dim < 0 or any(part < 1 for part in self.parts):
            raise PatternError(f"a shard has a dimension from 0 and parts from 1, not {self}")
        if self.rows is not None and (self.dim or self.parts):
            raise PatternError(f"a vocabulary is cut along its rows as one part, not as {self}")

    def whole(self, local: Size, ranks: int) -> Size:
        """Of a local tensor's size that of the whole. PatternError where the parts add up to something else."""
        self._check(local)
        whole = (*local[: self.dim], local[self.dim] * ranks, *local[self.dim + 1 :])
        self._parts(whole)
        return whole

    def box(self, whole: Size, index: int, ranks: int) -> Box:
        """Where the piece of rank `index` lies. PatternError for a part that the ranks can't share."""
        self._check(whole)
        stretches, first = [], 0
        for part in self._parts(whole):
            if part % ranks:
                raise PatternError(f"{ranks} tensor ranks can't share a part of {part}")
            own = part // ranks
            stretches.append((first + index * own, first + (index + 1) * own))
            first += part
        every = [((0, n),) for n in whole]
        return (*every[: self.dim], tuple(stretches), *every[self.dim + 1 :])

    def _check(self, size: Size) -> None:
        if self.dim >= len(size):
            raise PatternError(f"a tensor of size {size} has no dimension {self.dim}")

    def _parts(self, whole: Size) -> Sequence[int]:
        parts = self.parts or (whole[self.dim],)
        if sum(parts) != whole[self.dim]:
            raise PatternError(f"parts {parts} don't add up to dimension {self.dim} of {whole}")
        return parts


Pattern = Unique | Shard
KINDS: dict[str, type] = {kind.__name__: kind for kind in (Unique, Replicate, Average, Shard)}


@dataclass(frozen=True)
class Rule:
    """A pattern for all parameters whose whole name the regular expression matches.

    stages: pipeline stages share it, each with a copy (a tied embedding); otherwise it must be on one stage.
    PatternError for an expression that can't be read.
    """

    names: str
    pattern: Pattern
    stages: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.names)
        except re.error as error:
            raise PatternError(f"{self.names!r} is no regular expression: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint states it."""
        described = {"kind": type(self.pattern).__name__, **asdict(self.pattern)}
        return {"names": self.names, "pattern": described, "stages": self.stages}

    @classmethod
    def from_json(cls, stated: dict[str, Any]) -> "Rule":
        """Read what `to_json` wrote. PatternError for anything else."""
        try:
            fields = dict(stated["pattern"])
            kind = KINDS[fields.pop("kind")]
            if "parts" in fields:
                fields["parts"] = tuple(fields["parts"])
            return cls(stated["names"], kind(**fields), stated["stages"])
        except (KeyError, TypeError) as error:
            raise PatternError(f"{stated} states no rule: {error!r}") from None


def match(rules: Sequence[Rule], names: Iterable[str]) -> dict[str, Rule]:
    """The rule of every name. PatternError for a name with none or with two, and for a rule without a name."""
    found: dict[str, Rule] = {}
    used: set[int] = set()
    for name in names:
        fitting = [i for i, rule in enumerate(rules) if re.fullmatch(rule.names, name)]
        if len(fitting) != 1:
            which = " and ".join(repr(rules[i].names) for i in fitting) or "no pattern"
            raise PatternError(f"parameter {name!r} is matched by {which}; it must be by exactly one")
        found[name] = rules[fitting[0]]
        used.update(fitting)
    for i, rule in enumerate(rules):
        if i not in used:
            raise PatternError(f"pattern {rule.names!r} matches no parameter")
    return found
