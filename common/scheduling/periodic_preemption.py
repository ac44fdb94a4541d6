"""Limited preemption of periodic tasks: a run may be paused at fixed points, for a budget of slots in all.

Source: EDF with a limited budget, after Skrzypczyk and Wehner, arXiv 2111.13124 (a paused protocol's pairs decohere).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from common.scheduling.periodic import Cut, PerComponent, Piece, Task, list_scheduler
from common.scheduling.reservations import Reservations
from common.scheduling.task_graph import Placed, Use, users

Grain = Literal["block", "segment-block", "segment"]


def cuts_of(steps: Sequence[Placed]) -> tuple[Cut, ...]:
    """Where a run may be paused: no step is in progress. Kept are the resources that a step keeps over that time."""
    last, by_resource = max(step.end for step in steps), users(steps)
    found = []
    for offset in sorted({step.end for step in steps} | {step.start for step in steps}):
        inside = any(step.start < offset < step.end for step in steps)
        if inside or not 0 < offset < last:
            continue
        held = []
        for resource, uses in sorted(by_resource.items()):
            before = [step for step in uses if step.end <= offset]
            if before and resource in before[-1].keeps:
                held.append(resource)
        found.append(Cut(int(offset), tuple(held)))
    return tuple(found)


def with_budget(grain: Grain) -> PerComponent:
    """EDF that pauses a task at its cuts, for at most `task.budget` slots a run in all (limited preemption).

    During a segment a task takes all of its resources (block), those that the segment touches for all of it
    (segment-block), or their intervals only (segment). During a pause it takes what it holds.
    """

    def place(task: Task, earliest: int, taken: Reservations) -> tuple[Piece, ...] | None:
        return _in_segments(task, segments(task, grain), earliest, taken)

    return PerComponent(list_scheduler(place))


def segments(task: Task, grain: Grain) -> list[tuple[Use, ...]]:
    """The uses of each segment of a task, relative to the segment's start."""
    borders = [0, *(cut.offset for cut in task.cuts), task.duration]
    found = []
    for begin, end in pairwise(borders):
        inside = [
            Use(use.resource, max(use.begin, begin) - begin, min(use.end, end) - begin)
            for use in task.uses
            if use.begin < end and use.end > begin
        ]
        if grain != "segment":
            names = task.resources if grain == "block" else {use.resource for use in inside}
            inside = [Use(name, 0, end - begin) for name in sorted(names)]
        found.append(tuple(inside))
    return found


def _in_segments(
    task: Task, uses: list[tuple[Use, ...]], earliest: int, taken: Reservations
) -> tuple[Piece, ...] | None:
    """The earliest placement of all segments: the least solution of bounds that only ever rise.

    A segment starts after the one before it, where it is free. A pause must not meet another's reservation of what is
    held, else the segment before it starts later; and the first must not start earlier than the last end allows.
    """
    borders = [0, *(cut.offset for cut in task.cuts), task.duration]
    lengths = [end - begin for begin, end in pairwise(borders)]
    bounds = [earliest] * len(lengths)
    limit = earliest + 4 * task.period  # beyond any deadline
    while bounds[0] <= limit:
        starts: list[int] = []
        again = False
        for i, length in enumerate(lengths):
            after = starts[-1] + lengths[i - 1] if i else earliest
            starts.append(taken.earliest(uses[i], max(bounds[i], after)))
            if i and starts[i] > after:
                ends = max((taken.busy_until(r, after, starts[i]) for r in task.cuts[i - 1].held), default=0)
                if ends > after:
                    bounds[i - 1], again = ends - lengths[i - 1], True
                    break
            if starts[i] + length - starts[0] > borders[i + 1] + task.budget:
                bounds[0], again = starts[i] + length - borders[i + 1] - task.budget, True
                break
        if not again:
            break
    else:
        return None
    pieces = tuple(Piece(borders[i], borders[i + 1], start) for i, start in enumerate(starts))
    for i, start in enumerate(starts):
        taken.reserve(uses[i], start)
        if i:
            pause = starts[i - 1] + lengths[i - 1], start
            taken.reserve(Use(resource, *pause) for resource in task.cuts[i - 1].held)
    return pieces
