"""A verifier of periodic schedules that knows no scheduler and no reservation: it walks the slots, one by one.

It looks at a task's steps (its operations, what each keeps, what each follows), not at the intervals that a scheduler
was told to reserve: whoever reserved too little is caught here.
"""

from collections.abc import Iterable, Sequence
from math import lcm

from common.scheduling.periodic import Run, Task


def violations(tasks: Sequence[Task], schedule: Iterable[Run]) -> list[str]:
    """All that is wrong with a schedule of one hyperperiod, a sentence each; empty where it is right.

    Checked: every instance of every task once; inside its window of release and deadline; executed whole, in order,
    paused within its budget and never inside a step; steps after those they follow; no resource used twice in a slot,
    what is kept between two steps (or to the end of the run) included.
    """
    runs = list(schedule)
    whole = lcm(*(task.period for task in tasks))
    found = _counts(tasks, runs, whole)
    owner: dict[tuple[str, int], str] = {}
    for run in runs:
        name = f"{run.task.name}#{run.instance}"
        slots = _slots(run)
        if slots is None:
            found.append(f"{name}: its pieces are not its whole run in order")
            continue
        if slots[0] < run.instance * run.task.period or slots[-1] >= (run.instance + 1) * run.task.period:
            found.append(f"{name}: runs in [{slots[0]}, {slots[-1] + 1}), outside its window")
        pause = slots[-1] + 1 - slots[0] - run.task.duration
        if pause > run.task.budget:
            found.append(f"{name}: is paused for {pause} slots, its budget is {run.task.budget}")
        found += _steps(name, run.task, slots)
        for step, resource, slot in _occupied(run.task, slots):
            other = owner.setdefault((resource, slot), f"{name} ({step})")
            if other != f"{name} ({step})":
                found.append(f"{name} ({step}): takes {resource} in slot {slot}, which {other} has")
    return found


def _counts(tasks: Sequence[Task], runs: Sequence[Run], whole: int) -> list[str]:
    wanted = {(task.name, k) for task in tasks for k in range(whole // task.period)}
    found, seen = [], set()
    for run in runs:
        key = (run.task.name, run.instance)
        if key in seen or key not in wanted:
            found.append(f"{key[0]}#{key[1]}: scheduled {'twice' if key in seen else 'but not asked for'}")
        seen.add(key)
    return found + [f"{name}#{k}: never scheduled" for name, k in sorted(wanted - seen)]


def _slots(run: Run) -> list[int] | None:
    """The slot of each slot of the run, or None where the pieces don't make a run."""
    slots: list[int] = []
    for begin, end, start in run.pieces:
        if begin != len(slots) or (slots and start <= slots[-1]):
            return None
        slots += range(start, start + end - begin)
    return slots if len(slots) == run.task.duration and slots else None


def _steps(name: str, task: Task, slots: Sequence[int]) -> list[str]:
    found = []
    ends = {step.name: step.end for step in task.steps}
    for step in task.steps:
        begin, end = int(step.start), int(step.end)
        if end > begin and slots[end - 1] - slots[begin] != end - 1 - begin:
            found.append(f"{name}: is paused inside {step.name}")
        found += [
            f"{name}: {step.name} begins before {earlier} has ended"
            for earlier in step.after
            if ends[earlier] > begin
        ]
    return found


def _occupied(task: Task, slots: Sequence[int]) -> Iterable[tuple[str, str, int]]:
    """Every (step, resource, slot) that the run takes; of a task without steps its uses are all there is to know."""
    for i, (resource, begin, end) in enumerate(() if task.steps else task.uses):
        yield from ((f"use {i}", resource, slots[j]) for j in range(int(begin), int(end)))
    for step in task.steps:
        if step.end == step.start:
            continue
        for resource in step.resources:
            until = slots[int(step.end) - 1] + 1
            if resource in step.keeps:
                following = [s.start for s in task.steps if resource in s.resources and s.start >= step.end]
                until = slots[int(min(following))] if following else slots[-1] + 1
            yield from ((step.name, resource, slot) for slot in range(slots[int(step.start)], until))
