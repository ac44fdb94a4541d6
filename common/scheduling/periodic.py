"""Periodic tasks on many resources: one cyclic schedule over the hyperperiod, by the earliest-deadline-first family.

A task takes each of its resources in given intervals of its run (`uses`). Its k-th instance is released at k x period
and must end by (k + 1) x period. A scheduler is a function of the tasks that returns a schedule, or None where an
instance would miss its deadline:

    uni_np_edf, uni_cedf                 the whole network is one processor
    block_np_edf, block_cedf, fcfs       a task takes all of its resources for its whole length
    non_block_np_edf                     a task takes its resources in its intervals only
    with_budget (periodic_preemption)    a task may be paused at its cuts, up to its budget

They are heuristics: None does not prove that there is no schedule (`periodic_optimum` does for few tasks).
Sources: Jeffay, Stanat and Martel, RTSS 1991 (NP-EDF); Skrzypczyk and Wehner, arXiv 2111.13124 (the others).
"""

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import lcm
from typing import NamedTuple

from common.scheduling.reservations import Reservations
from common.scheduling.task_graph import Placed, Use


class Cut(NamedTuple):
    """A slot of a task's run at which it may be paused, and the resources that it keeps during the pause."""

    offset: int
    held: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A periodic task; times in slots, intervals relative to the start of its run.

    steps: the operations inside, which no scheduler looks at (a verifier does). budget: slots of pause in a run.
    ValueError for a task that is longer than its period or that uses something outside its run.
    """

    name: str
    period: int
    duration: int
    uses: tuple[Use, ...]
    cuts: tuple[Cut, ...] = ()
    budget: int = 0
    steps: tuple[Placed, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.duration <= self.period:
            raise ValueError(f"task {self.name!r} lasts {self.duration} slots, its period is {self.period}")
        if any(use.begin < 0 or use.end > self.duration for use in self.uses):
            raise ValueError(f"task {self.name!r} uses a resource outside its {self.duration} slots")

    @cached_property
    def resources(self) -> frozenset[str]:
        return frozenset(use.resource for use in self.uses)

    @cached_property
    def block(self) -> tuple[Use, ...]:
        """All of its resources for its whole length."""
        return tuple(Use(resource, 0, self.duration) for resource in sorted(self.resources))

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Of each resource the end of its last use."""
        ends: dict[str, int] = {}
        for use in self.uses:
            ends[use.resource] = max(ends.get(use.resource, 0), int(use.end))
        return ends


class Piece(NamedTuple):
    """Slots [begin, end) of a task's run, executed from slot `start` on."""

    begin: int
    end: int
    start: int


@dataclass(frozen=True)
class Run:
    """An instance of a task, in one piece or, where it was paused, in several."""

    task: Task
    instance: int
    pieces: tuple[Piece, ...]

    @property
    def release(self) -> int:
        return self.instance * self.task.period

    @property
    def deadline(self) -> int:
        return self.release + self.task.period

    @property
    def start(self) -> int:
        return self.pieces[0].start

    @property
    def end(self) -> int:
        last = self.pieces[-1]
        return last.start + last.end - last.begin

    def at(self, offset: int) -> int:
        """The slot in which slot `offset` of the run is executed."""
        for piece in self.pieces:
            if piece.begin <= offset < piece.end:
                return piece.start + offset - piece.begin
        raise ValueError(f"{self.task.name} has no slot {offset}")


Schedule = tuple[Run, ...]  # one hyperperiod, in order of start
Scheduler = Callable[[Sequence[Task]], Schedule | None]
Placement = Callable[[Task, int, Reservations], tuple[Piece, ...] | None]
Priority = Callable[[Task, int], float]  # of a task's instance; the least goes first


def hyperperiod(tasks: Iterable[Task]) -> int:
    """The least common multiple of the periods; 1 without tasks."""
    return lcm(*(task.period for task in tasks))


def components(tasks: Sequence[Task]) -> list[list[Task]]:
    """Groups of tasks connected by shared resources; order kept. Groups can be scheduled one by one."""
    groups: list[tuple[set[str], list[Task]]] = []
    for task in tasks:
        touched = [group for group in groups if group[0] & task.resources]
        merged = (set(task.resources), [task])
        for group in touched:
            merged[0].update(group[0])
            merged[1].extend(group[1])
        groups = [group for group in groups if group not in touched] + [merged]
    place = {task.name: i for i, task in enumerate(tasks)}
    found = [sorted(members, key=lambda task: place[task.name]) for _, members in groups]
    return sorted(found, key=lambda members: place[members[0].name])


def merge(schedules: Iterable[Schedule]) -> Schedule:
    """Schedules of separate groups as one, each repeated until the common hyperperiod."""
    parts = [part for part in schedules if part]
    whole = hyperperiod({run.task.name: run.task for part in parts for run in part}.values())
    runs = []
    for part in parts:
        own = hyperperiod({run.task.name: run.task for run in part}.values())
        for turn in range(whole // own):
            runs += [_later(run, turn * own) for run in part] if turn else list(part)
    return _ordered(runs)


def _later(run: Run, by: int) -> Run:
    pieces = tuple(piece._replace(start=piece.start + by) for piece in run.pieces)
    return replace(run, instance=run.instance + by // run.task.period, pieces=pieces)


def _ordered(runs: Iterable[Run]) -> Schedule:
    return tuple(sorted(runs, key=lambda run: (run.start, run.end, run.task.name)))


# One processor ------------------------------------------------------------------------------------------------------


def uni_np_edf(tasks: Sequence[Task]) -> Schedule | None:
    """Non-preemptive EDF on one processor: of the released instances the one with the earliest deadline runs."""
    return _one_processor(tasks, critical=False)


def uni_cedf(tasks: Sequence[Task]) -> Schedule | None:
    """The same, but an instance waits where its run would push another one past its latest start (CEDF)."""
    return _one_processor(tasks, critical=True)


def _one_processor(tasks: Sequence[Task], critical: bool) -> Schedule | None:
    whole = hyperperiod(tasks)
    following = [0] * len(tasks)  # next instance
    now, runs = 0, list[Run]()
    while True:
        left = [i for i, task in enumerate(tasks) if following[i] * task.period < whole]
        if not left:
            return _ordered(runs)
        now = max(now, min(following[i] * tasks[i].period for i in left))
        ready = [i for i in left if following[i] * tasks[i].period <= now]
        chosen = min(ready, key=lambda i: ((following[i] + 1) * tasks[i].period, i))
        if critical:
            latest = {i: (following[i] + 1) * tasks[i].period - tasks[i].duration for i in left}
            other = min((i for i in left if i != chosen), key=lambda i: (latest[i], i), default=chosen)
            begins = max(now, following[other] * tasks[other].period)
            if other != chosen and now + tasks[chosen].duration > latest[other] >= begins:
                chosen, now = other, begins
        task = tasks[chosen]
        run = Run(task, following[chosen], (Piece(0, task.duration, now),))
        if run.end > run.deadline:
            return None
        runs.append(run)
        following[chosen] += 1
        now = run.end


# Many resources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerComponent:
    """A scheduler that handles each connected component of the tasks by itself."""

    core: Scheduler

    def __call__(self, tasks: Sequence[Task]) -> Schedule | None:
        parts = []
        for members in components(tasks):
            part = self.core(members)
            if part is None:
                return None
            parts.append(part)
        return merge(parts)


def as_block(task: Task, earliest: int, taken: Reservations) -> tuple[Piece, ...]:
    """Place a task where all of its resources are free for its whole length, and reserve them."""
    start = taken.earliest(task.block, earliest)
    taken.reserve(task.block, start)
    return (Piece(0, task.duration, start),)


def by_uses(task: Task, earliest: int, taken: Reservations) -> tuple[Piece, ...]:
    """Place a task where each of its uses is free, so that tasks interleave, and reserve these."""
    start = taken.earliest(task.uses, earliest)
    taken.reserve(task.uses, start)
    return (Piece(0, task.duration, start),)


def by_deadline(task: Task, instance: int) -> float:
    """EDF: the earliest deadline first."""
    return (instance + 1) * task.period


def by_release(task: Task, instance: int) -> float:
    """FCFS: what was released first."""
    return instance * task.period


def at_random(seed: int) -> Priority:
    """An order that knows nothing of deadlines, the same for one seed wherever it runs."""
    return lambda task, instance: random.Random(f"{seed} {task.name} {instance}").random()


def list_scheduler(place: Placement, priority: Priority = by_deadline) -> Scheduler:
    """The list heuristic: pop the ready instance that comes first by `priority`, place it, release others.

    An instance becomes ready once the time of its release has come on a resource that was just given away, or when
    nothing else is ready. It is placed no earlier than the instance before it.
    """

    def core(tasks: Sequence[Task]) -> Schedule | None:
        whole, taken = hyperperiod(tasks), Reservations()
        following, last = [0] * len(tasks), [0] * len(tasks)
        ready: list[tuple[float, int, int]] = []
        runs: list[Run] = []
        neighbours = [  # of each task those that share a resource, and the end of its last use of one
            [(j, max(task.last_use[resource] for resource in shared))
             for j, other in enumerate(tasks) if (shared := task.resources & other.resources)]
            for task in tasks
        ]  # fmt: skip

        def release(i: int) -> None:
            heapq.heappush(ready, (priority(tasks[i], following[i]), i, following[i]))
            following[i] += 1

        def next_release(i: int) -> int:
            moment = following[i] * tasks[i].period
            return moment if moment < whole else whole + 1

        while True:
            if not ready:
                soonest = min(map(next_release, range(len(tasks))), default=whole + 1)
                if soonest > whole:
                    return _ordered(runs)
                for i in range(len(tasks)):
                    if next_release(i) == soonest:
                        release(i)
            _, i, instance = heapq.heappop(ready)
            task = tasks[i]
            deadline = (instance + 1) * task.period
            pieces = place(task, max(instance * task.period, last[i]), taken)
            if pieces is None:
                return None
            run = Run(task, instance, pieces)
            if run.end > deadline:
                return None
            runs.append(run)
            last[i] = run.start
            for j, offset in neighbours[i]:
                if next_release(j) <= run.start + offset:
                    release(j)

    return core


def _block_cedf(tasks: Sequence[Task]) -> Schedule | None:
    """EDF over pending instances; the most critical task that shares a resource may go first."""
    whole, taken = hyperperiod(tasks), Reservations()
    following, last = [0] * len(tasks), [0] * len(tasks)
    runs: list[Run] = []

    def earliest(i: int) -> int:
        return taken.earliest(tasks[i].block, max(following[i] * tasks[i].period, last[i]))

    def latest(i: int) -> int:
        return (following[i] + 1) * tasks[i].period - tasks[i].duration

    while True:
        left = [i for i, task in enumerate(tasks) if following[i] * task.period < whole]
        if not left:
            return _ordered(runs)
        chosen = min(left, key=lambda i: ((following[i] + 1) * tasks[i].period, i))
        rivals = [i for i in left if i != chosen and tasks[i].resources & tasks[chosen].resources]
        end = earliest(chosen) + tasks[chosen].duration
        for other in sorted(rivals, key=lambda i: (latest(i), i)):
            if end > latest(other) >= earliest(other):
                chosen = other
                break
        task = tasks[chosen]
        start = earliest(chosen)
        if start > latest(chosen):
            return None
        taken.reserve(task.block, start)
        runs.append(Run(task, following[chosen], (Piece(0, task.duration, start),)))
        last[chosen] = start
        following[chosen] += 1


block_np_edf = PerComponent(list_scheduler(as_block))
non_block_np_edf = PerComponent(list_scheduler(by_uses))
fcfs = PerComponent(list_scheduler(as_block, by_release))
block_cedf = PerComponent(_block_cedf)


# Admission and measures ---------------------------------------------------------------------------------------------


def admit(tasks: Iterable[Task], scheduler: Scheduler) -> Schedule:
    """Admission demand by demand, in the given order.

    A task stays where no resource is used for more than the whole time and the scheduler meets all deadlines with it.
    """
    accepted: list[Task] = []
    load: dict[str, float] = {}
    parts: list[Schedule] = []
    for task in tasks:
        more = dict.fromkeys(task.resources, 0.0)
        for use in task.uses:
            more[use.resource] += (use.end - use.begin) / task.period
        if any(load.get(resource, 0.0) + share > 1 + 1e-9 for resource, share in more.items()):
            continue
        if isinstance(scheduler, PerComponent):  # the other components stay as they are
            touched = [part for part in parts if any(task.resources & run.task.resources for run in part)]
            names = {run.task.name for part in touched for run in part}
            found = scheduler.core([old for old in accepted if old.name in names] + [task])
            others = [part for part in parts if part not in touched]
        else:
            found, others = scheduler([*accepted, task]), []
        if found is not None:
            accepted.append(task)
            parts = [*others, found]
            for resource, share in more.items():
                load[resource] = load.get(resource, 0.0) + share
    return merge(parts)


def accepted_tasks(schedule: Schedule) -> list[Task]:
    """The tasks of a schedule, each once, by name."""
    return [task for _, task in sorted({run.task.name: run.task for run in schedule}.items())]


def worst_response(schedule: Schedule) -> int:
    """The longest time from a release to the end of its run, in slots; 0 for an empty schedule."""
    return max((run.end - run.release for run in schedule), default=0)


def jitter(schedule: Schedule) -> float:
    """The variance of (distance of a task's starts - its period) around the cycle, of the worst task, slots^2.

    The distance from the last start of a hyperperiod to the first one of the next counts as well; the distances of a
    task have its period as their mean.
    """
    starts: dict[str, list[int]] = {}
    for run in sorted(schedule, key=lambda run: run.instance):
        starts.setdefault(run.task.name, []).append(run.start)
    periods = {run.task.name: run.task.period for run in schedule}
    worst = 0.0
    for name, own in starts.items():
        steps = [b - a for a, b in pairwise([*own, own[0] + len(own) * periods[name]])]
        worst = max(worst, sum((step - periods[name]) ** 2 for step in steps) / len(steps))
    return worst
