"""Odd values for every field of a paper's Config: each is refused in one line or runs sanely under smoke.

`make test` composes them all; `make abuse` also runs, in a process of its own for at most 30 s each, what composition
accepts, and lists how many claims such a run upholds: a verdict on nothing shows there.
"""

import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.lab.arms import OURS
from common.lab.card import Card
from common.lab.config import Composed, compose
from common.lab.errors import LabError
from common.lab.evaluate import assess
from common.lab.orphans import killed_with_parent
from common.lab.project import Project
from common.lab.runtime import Runtime

SECONDS = 30
HUGE = 10**15
WORD = "banana"
PROFILE = "smoke"


@dataclass(frozen=True)
class Trial:
    """One odd value, and what came of it."""

    line: str
    failed: bool = False


def odd_settings(composed: Composed) -> Iterator[tuple[str, Any]]:
    """(dotted field, odd value) for every field: 0, 1, -1, huge, NaN, an unknown word, empty and single lists."""
    yield from _odd(type(composed.config), composed.tree, "")


def _odd(cls: type[Any], tree: typing.Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, value = prefix + field.name, tree[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _odd(typing.cast(type[Any], hints[field.name]), value, name + ".")
        elif isinstance(value, list):
            first = value[:1]
            yield from (
                (name, odd) for odd in ([], first, first * 2, [-1], [0], [WORD], [math.nan], [HUGE], WORD)
            )
        elif isinstance(value, bool):
            yield from ((name, odd) for odd in (not value, WORD, 2))
        elif isinstance(value, str):
            yield from ((name, odd) for odd in (WORD, "", 0))
        else:
            yield from ((name, odd) for odd in (0, 1, -1, HUGE, 0.5, math.nan, math.inf, WORD, None))


def compose_odd(composed: Composed, field: str, value: Any) -> Composed | str:
    """The config with an odd value, or the one line that refuses it. Anything but LabError is a fault, and raised."""
    try:
        return composed.with_settings({field: value}, "SET")
    except LabError as error:
        return str(error)


def abuse(project: Project, slug: str, seconds: float = SECONDS) -> Iterator[Trial]:
    """Try every odd value of a paper; what composition accepts runs."""
    composed = compose(project, slug, PROFILE)
    card = Card.load(project.card(slug))
    project.experiment(slug).run  # noqa: B018 - imported once, for every fork
    for field, value in odd_settings(composed):
        odd = compose_odd(composed, field, value)
        said = f"{field}={value!r}: "
        if isinstance(odd, str):
            yield Trial(f"{said}refused: {odd}")
        elif odd.config == composed.config:
            continue
        else:
            yield tried(project, card, odd, said, seconds)


def tried(project: Project, card: Card, odd: Composed, said: str, seconds: float) -> Trial:
    """Run an odd config in a process of its own, for at most so many seconds."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(project, card, odd, theirs), daemon=False)
    process.start()
    theirs.close()
    try:
        failed, line = ours.recv() if ours.poll(seconds) else (True, f"still runs after {seconds:g} s")
    except EOFError:
        process.join()
        failed, line = True, f"the process died ({process.exitcode})"
    finally:
        process.kill()
        process.join()
    return Trial(said + line, failed)


def _run(project: Project, card: Card, odd: Composed, answer: multiprocessing.connection.Connection) -> None:
    killed_with_parent()  # an odd value may run for ever
    try:
        seen = project.experiment(odd.slug).run(odd.config, Runtime(odd.seeds, odd.device, workers=1))
        claims = assess(card, odd, {OURS: seen})
        upheld = [claim.id for claim in claims if claim.upheld]
        answer.send((False, f"runs; upheld: {', '.join(upheld) or 'nothing'}"))
    except LabError as error:
        answer.send((False, f"refused: {error}"))
    except Exception as error:
        answer.send((True, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
