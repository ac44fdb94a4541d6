"""The exact optimum of admission for a few periodic tasks, by constraint programming (OR-Tools' CP-SAT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.scheduling.periodic import Piece, Run, Schedule, Task, hyperperiod

LARGEST = 6  # tasks; the number of instances grows with the hyperperiod


@dataclass(frozen=True)
class Optimum:
    """The best set of tasks that one schedule can hold, the schedule, and whether that is proven."""

    schedule: Schedule
    value: float
    proven: bool


def optimum(tasks: Sequence[Task], block: bool = False, effort: float = 5.0) -> Optimum:
    """Choose tasks and starts without preemption so that the sum of accepted rates (1 / period) is largest.

    block: a task takes all of its resources for its whole length. effort: CP-SAT's deterministic time, so that the same
    input gives the same answer. ValueError for more than LARGEST tasks. Needs OR-Tools.
    """
    from ortools.sat.python import cp_model

    if len(tasks) > LARGEST:
        raise ValueError(f"the optimum is for at most {LARGEST} tasks, not {len(tasks)}")
    model, whole = cp_model.CpModel(), hyperperiod(tasks)
    chosen = [model.new_bool_var(task.name) for task in tasks]
    starts: dict[tuple[int, int], Any] = {}
    taken: dict[str, list[Any]] = {}
    for i, task in enumerate(tasks):
        for k in range(whole // task.period):
            release = k * task.period
            start = model.new_int_var(release, release + task.period - task.duration, f"{task.name}#{k}")
            starts[i, k] = start
            for use in task.block if block else task.uses:
                interval = model.new_optional_fixed_size_interval_var(
                    start + int(use.begin), int(use.end - use.begin), chosen[i], f"{use.resource}"
                )
                taken.setdefault(use.resource, []).append(interval)
    for intervals in taken.values():
        model.add_no_overlap(intervals)
    model.maximize(sum(chosen[i] * (whole // task.period) for i, task in enumerate(tasks)))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):  # to accept none is always feasible
        return Optimum((), 0.0, False)
    kept = [task for i, task in enumerate(tasks) if solver.value(chosen[i])]
    own = hyperperiod(kept)  # may be shorter than that of all tasks, and its first turn is a schedule already
    runs = [
        Run(tasks[i], k, (Piece(0, tasks[i].duration, solver.value(start)),))
        for (i, k), start in starts.items()
        if solver.value(chosen[i]) and k * tasks[i].period < own
    ]
    runs.sort(key=lambda run: (run.start, run.task.name))
    return Optimum(tuple(runs), sum(1 / task.period for task in kept), status == cp_model.OPTIMAL)
