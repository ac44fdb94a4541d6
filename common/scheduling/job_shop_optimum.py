"""The shortest schedule of a job shop by CP-SAT (OR-Tools, the extra `scheduling`), or an honest bound.

Without buffers an operation holds its machine until the job's next operation starts: one interval
[start, next start) a machine and no two of them overlap. Half-open intervals allow a machine to change hands at one
instant, and so a whole cycle of jobs to change places, which is exactly blocking with swap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.scheduling import job_shop_events as events
from common.scheduling.job_shop import Instance, Shop


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best schedule that was found, and what is proven. makespan >= bound; status "optimal" where they meet,
    else "feasible" (starts are those of the best schedule found) or "unknown" (no schedule found, starts is None)."""

    makespan: int
    bound: int
    status: str
    starts: np.ndarray | None
    seconds: float

    @property
    def proven(self) -> bool:
        return self.status == "optimal"


def solve(
    instance: Instance,
    kind: str = "swap",
    seconds: float | None = None,
    work: float | None = None,
    hint: np.ndarray | None = None,
    seed: int = 0,
) -> Optimum:
    """Minimise the makespan, on one thread. kind: "ordinary" or "swap".

    seconds: of wall clock; work: CP-SAT's deterministic time (about a second each), so that the same call ends with
    the same result on any machine. hint: starts (jobs, machines) of a known schedule, such as a rule's.
    """
    if kind not in ("ordinary", "swap"):
        raise ValueError(f"CP-SAT solves ordinary shops and shops with swaps, not {kind!r}")
    return _solve(instance, kind, {}, [], 0, seconds, work, hint, seed)


def solve_rest(shop: Shop, seconds: float | None = None, work: float | None = None, seed: int = 0) -> Optimum:
    """The best way on from where a shop stands: what has begun stays, the rest starts now or later, and a machine that
    is down takes nothing before its repair (which is taken as known; failures to come are not)."""
    started = shop.jobs[events.STARTED]
    fixed = {
        (j, k): int(shop.operations[events.START, j, k])
        for j in range(shop.instance.jobs)
        for k in range(int(started[j]))
    }
    free_from = [max(shop.time, int(until)) for until in shop.stations[events.DOWN_UNTIL]]
    kind = "ordinary" if shop.kind == "ordinary" else "swap"
    return _solve(shop.instance, kind, fixed, free_from, shop.time, seconds, work, None, seed)


def _solve(
    instance: Instance,
    kind: str,
    fixed: dict[tuple[int, int], int],
    free_from: Sequence[int],
    now: int,
    seconds: float | None,
    work: float | None,
    hint: np.ndarray | None,
    seed: int,
) -> Optimum:
    from ortools.sat.python import cp_model

    n, m = instance.durations.shape
    horizon = now + int(instance.durations.sum()) + max(free_from, default=0)
    model = cp_model.CpModel()
    start = {(j, k): model.new_int_var(0, horizon, f"start {j} {k}") for j in range(n) for k in range(m)}
    makespan = model.new_int_var(0, horizon, "makespan")
    on_machine: dict[int, list] = {b: [] for b in range(m)}
    for (j, k), begins in start.items():
        lasts, machine = int(instance.durations[j, k]), int(instance.machines[j, k])
        if (j, k) in fixed:
            model.add(begins == fixed[j, k])
        elif free_from:
            model.add(begins >= free_from[machine])
        if k + 1 < m:
            model.add(start[j, k + 1] >= begins + lasts)
        else:
            model.add(makespan >= begins + lasts)
        if kind == "swap" and k + 1 < m:
            holds = model.new_int_var(lasts, horizon, f"holds {j} {k}")
            interval = model.new_interval_var(begins, holds, start[j, k + 1], f"held {j} {k}")
        else:
            interval = model.new_fixed_size_interval_var(begins, lasts, f"held {j} {k}")
        on_machine[machine].append(interval)
        if hint is not None:
            model.add_hint(begins, int(hint[j, k]))
    for intervals in on_machine.values():
        model.add_no_overlap(intervals)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    if seconds is not None:
        solver.parameters.max_time_in_seconds = seconds
    if work is not None:
        solver.parameters.max_deterministic_time = work
    outcome = solver.solve(model)
    if outcome == cp_model.INFEASIBLE:
        raise ValueError("no schedule goes on from here")
    if outcome not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Optimum(horizon, int(np.ceil(solver.best_objective_bound)), "unknown", None, solver.wall_time)
    starts = np.array([[solver.value(start[j, k]) for k in range(m)] for j in range(n)])
    status = "optimal" if outcome == cp_model.OPTIMAL else "feasible"
    bound = int(np.ceil(solver.best_objective_bound - 1e-6))
    return Optimum(int(solver.objective_value), bound, status, starts, solver.wall_time)


def releases_of(instance: Instance, starts: np.ndarray, kind: str) -> np.ndarray:
    """When each operation of these starts leaves its machine, (jobs, machines)."""
    releases = starts + instance.durations
    if kind != "ordinary":
        releases[:, :-1] = starts[:, 1:]
    return releases
