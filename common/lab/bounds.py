"""What a field of a Config may hold, written where the field is: checked when the config is composed.

    requests: Annotated[int, At(1, 1_000_000)] = 600
    shares: Annotated[list[float], Length(1), At(0, 1)] = ...   # At and Choice speak of each item of a list
    link: Annotated[str, Choice("nvlink", "network")] = "nvlink"
    alpha: Annotated[float, Inferred(0.1, 0.5, "Section 4: 'a small weight'; the paper gives no number")] = 0.2

Standard library only: the bare runner needs it where nothing else is installed.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any

from common.lab.errors import LabError, nearest

LARGEST = 10**9  # of a field that names no upper end: beyond it a typing error is likelier than a wish


class At:
    """A number from `low` to `high`, both included unless `above` (then low itself is refused)."""

    def __init__(self, low: float, high: float = LARGEST, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def refusal(self, value: Any) -> str:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return ""  # None of an optional field; what is no number is refused by its type
        fits = math.isfinite(value) and self.low <= value <= self.high
        if fits and not (self.above and value == self.low):
            return ""
        return f"{value!r} is out of range; it is a number {'above' if self.above else 'from'} {self.span}"

    @property
    def span(self) -> str:
        return f"{self.low:,} to {self.high:,}"


class Inferred(At):
    """A number that no source gives: its range, and what is known of it. A claim that it decides names it `free`."""

    def __init__(self, low: float, high: float, source: str) -> None:
        super().__init__(low, high)
        self.source = source


class Choice:
    """One of these words or numbers."""

    def __init__(self, *choices: Any) -> None:
        self.choices = choices

    def refusal(self, value: Any) -> str:
        if value in self.choices or value is None:
            return ""
        known = ", ".join(str(choice) for choice in self.choices)
        return f"{value!r} is none of {known}.{nearest(str(value), map(str, self.choices))}"


@dataclass(frozen=True)
class Length:
    """A list of at least `least` and at most `most` items, none of them twice unless `repeats`."""

    least: int = 0
    most: int = 64
    repeats: bool = False

    def refusal(self, value: Any) -> str:
        if not isinstance(value, (list, tuple, dict)):
            return ""
        if not self.least <= len(value) <= self.most:
            return f"has {len(value)} items; it takes {self.least} to {self.most}"
        if not self.repeats and any(item in value[:i] for i, item in enumerate(list(value))):
            return "names an item twice"
        return ""


Bound = At | Choice | Length
BOUNDS = (At, Choice, Length)


def check(value: Any, marks: tuple[Any, ...], where: str) -> None:
    """LabError in one line where a value breaks a bound among the marks of its Annotated type."""
    for mark in marks:
        if not isinstance(mark, BOUNDS):
            continue
        if isinstance(value, (list, tuple)) and not isinstance(mark, Length):
            for place, item in enumerate(value):
                check(item, (mark,), f"{where}[{place}]")
        elif reason := mark.refusal(value):
            raise LabError(f"{where}: {reason}")


def unbounded(cls: type[Any]) -> list[str]:
    """Dotted names of the fields of a Config that have no bound; booleans and nested dataclasses need none."""
    found: list[str] = []
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        marks = getattr(kind, "__metadata__", ())
        inner = typing.get_args(kind)[0] if marks else kind
        if dataclasses.is_dataclass(inner):
            found += [f"{field.name}.{name}" for name in unbounded(typing.cast(type[Any], inner))]
        elif inner is not bool and not any(isinstance(mark, BOUNDS) for mark in marks):
            found.append(field.name)
    return found


def inferred(cls: type[Any]) -> dict[str, Inferred]:
    """The fields of a Config that no source gives, with their ranges."""
    hints = typing.get_type_hints(cls, include_extras=True)
    marks = {name: getattr(kind, "__metadata__", ()) for name, kind in hints.items()}
    return {name: mark for name, found in marks.items() for mark in found if isinstance(mark, Inferred)}
