"""Exercises of a notebook that answer back: papers/<slug>/exercises.py holds EXERCISES, by name.

    EXERCISES = {"exercise-1": Exercise("How many ...?", "Divide the two goodputs of section 2.", answer=ratio)}

`lab.check("exercise-1", value)` compares a reader's value with what `answer(lab)` computes; the tests run each answer.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from common.lab.errors import LabError, nearest
from common.lab.project import Project


@dataclass(frozen=True)
class Exercise:
    """A question, a hint for who is not there yet, and the function of the notebook's lab that solves it."""

    question: str
    hint: str
    answer: Callable[[Any], Any]
    tolerance: float = 0.05  # relative, of a number


def exercises(project: Project, slug: str) -> Mapping[str, Exercise]:
    """The exercises of a paper, none where it has no exercises.py."""
    if not (project.root / "papers" / slug / "exercises.py").is_file():
        return {}
    return import_module(f"papers.{slug}.exercises").EXERCISES  # type: ignore[no-any-return]


def answered(project: Project, slug: str, name: str, value: Any, lab: Any) -> str:
    """'right', or 'not yet' and the hint. LabError names the exercises there are."""
    known = exercises(project, slug)
    if name not in known:
        raise LabError(
            f"{slug} has no {name!r}.{nearest(name, known)} There is: {', '.join(known) or 'none'}"
        )
    exercise = known[name]
    return "right" if _same(value, exercise.answer(lab), exercise.tolerance) else f"not yet. {exercise.hint}"


def _same(value: Any, answer: Any, tolerance: float) -> bool:
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        try:
            return math.isclose(float(value), float(answer), rel_tol=tolerance, abs_tol=1e-12)
        except (TypeError, ValueError):
            return False
    if isinstance(answer, str):
        return str(value).strip().casefold() == answer.casefold()
    return bool(value == answer)
