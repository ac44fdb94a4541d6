"""Running the rewritten program on samples: which values enter each sub-network, and which path was taken."""

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from papers.dycl.program import Program, Region, nodes
from papers.dycl.source import Place, Unsupported
from papers.dycl.subnetworks import Recorder

Path = list[tuple[str, Any]]  # decisions of the source in order: (where, what came out)
TRIES = 400  # runs with forced decisions before a sub-network counts as never reached


def built(text: str) -> dict[str, Any]:
    """The names that a host program's text defines."""
    import math

    known: dict[str, Any] = {"math": math}
    exec(compile(text, "<host program>", "exec"), known)
    return known


class Decisions:
    """`take` of a traced host program: passes decisions through, but for those that are forced once.

    seen: number of a branch -> outcomes so far.
    """

    def __init__(self, forced: dict[int, bool] | None = None) -> None:
        self.forced = dict(forced or {})
        self.seen: dict[int, list[bool]] = {}

    def __call__(self, number: int, value: Any) -> bool:
        outcome = self.forced.pop(number) if number in self.forced else bool(value)
        self.seen.setdefault(number, []).append(outcome)
        return outcome


def record(
    program: Program, traced: str, recorders: Sequence[Recorder], samples: Sequence[tuple[Any, ...]]
) -> int:
    """Run samples until every sub-network has seen inputs; how many of them only forced decisions could reach.

    A sub-network that no sample reaches is reached by turning decisions round, one more at a time, so that its inputs
    have true shapes. Unsupported where that does not help either.
    """
    build = built(traced)["build"]

    def attempt(sample: tuple[Any, ...], forced: dict[int, bool]) -> dict[int, list[bool]]:
        take = Decisions(forced)
        with torch.no_grad():
            build(recorders, _ignore, take)(*sample)
        return take.seen

    branches: deque[dict[int, bool]] = deque()
    tried: set[tuple[tuple[int, bool], ...]] = set()

    def turn_round(seen: dict[int, list[bool]], forced: dict[int, bool]) -> None:
        for number, outcomes in seen.items():
            other = {**forced, number: not outcomes[0]}
            key = tuple(sorted(other.items()))
            if len(set(outcomes)) == 1 and key not in tried:
                tried.add(key)
                branches.append(other)

    outcomes: dict[int, list[bool]] = {}
    for sample in samples:
        for number, found in attempt(sample, {}).items():
            outcomes.setdefault(number, []).extend(found)
    unreached = sum(recorder.seen is None for recorder in recorders)
    turn_round(outcomes, {})
    for _ in range(TRIES):
        if all(recorder.seen is not None for recorder in recorders) or not branches:
            break
        forced = branches.popleft()
        try:
            turn_round(attempt(samples[0], forced), forced)
        except (RuntimeError, IndexError, ValueError, TypeError, NameError):
            continue  # a path that no input takes may not make sense
    _by_name(program, recorders)
    for recorder in recorders:
        if recorder.seen is None:
            place: Place = recorder.network.place
            raise Unsupported(
                place, "no sample reaches this, and neither do forced decisions: give more samples"
            )
    return unreached


def _by_name(program: Program, recorders: Sequence[Recorder]) -> None:
    """What is still unreached runs on values that its variables had elsewhere."""
    regions = [node for node in nodes(program.body) if isinstance(node, Region) and node.index >= 0]
    known: dict[str, Any] = {}
    for _ in regions:
        for region in regions:
            recorder = recorders[region.index]
            if recorder.seen is None and all(key in known for key in region.inputs):
                with contextlib.suppress(RuntimeError, IndexError), torch.no_grad():
                    recorder(*(known[key] for key in region.inputs))
            if recorder.seen is not None:
                known = {**dict(zip(region.inputs, recorder.seen.inputs, strict=True)), **known}
                known = {**dict(zip(region.outputs, recorder.seen.outputs, strict=True)), **known}
        if all(recorder.seen is not None for recorder in recorders):
            return


def _ignore(where: str, value: Any) -> Any:
    return value
