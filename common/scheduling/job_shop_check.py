"""What is wrong with a schedule of a job shop: a verifier that knows neither the simulator nor a solver.

It reads nothing but numbers: processing times, the order of machines, starts, releases, and when machines were down.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def violations(
    durations: np.ndarray,
    machines: np.ndarray,
    starts: np.ndarray,
    releases: np.ndarray,
    kind: str = "swap",
    downs: Sequence[tuple[int, int, int]] = (),
    pauses: bool = False,
) -> list[str]:
    """One line for each constraint that a schedule breaks; empty for a valid one.

    durations, machines, starts, releases: (jobs, operations); operation k of job j holds machines[j, k] during
    [starts[j, k], releases[j, k]). kind: "ordinary" (released when its processing ends), "swap" (released when the next
    operation starts) or "blocking" (the same, and no cycle of jobs changes places at one instant). downs: (machine,
    from, to), during which a machine takes nothing; with `pauses` an operation on it rests meanwhile and ends that much
    later, otherwise none may run (a job that is done may still stand there).
    """
    if kind not in ("ordinary", "swap", "blocking"):
        raise ValueError(f"kind of shop is ordinary, swap or blocking, not {kind!r}")
    jobs, operations = durations.shape
    closed = defaultdict(list)
    for machine, begin, end in downs:
        closed[machine].append((begin, end))
    found = []
    held = defaultdict(list)  # machine -> (start, release, job)
    for j in range(jobs):
        for k in range(operations):
            start, release, machine = int(starts[j, k]), int(releases[j, k]), int(machines[j, k])
            name = f"operation {k} of job {j}"
            held[machine].append((start, release, j))
            end = start + int(durations[j, k])
            if pauses:
                end = _paused_end(start, int(durations[j, k]), closed[machine])
            if start < 0:
                found.append(f"{name} starts before time 0")
            if release < end:
                found.append(f"{name} is released at {release}, before it ends at {end}")
            if k + 1 < operations and starts[j, k + 1] < end:
                found.append(f"job {j} begins operation {k + 1} before operation {k} ends")
            leaves = int(starts[j, k + 1]) if k + 1 < operations and kind != "ordinary" else end
            if release != leaves:
                found.append(f"{name} is released at {release} and not at {leaves}")
            for begin, until in closed[machine]:
                if begin <= start < until:
                    found.append(f"{name} starts at {start}, while machine {machine} is down until {until}")
                elif not pauses and start < until and begin < end:
                    found.append(f"{name} runs while machine {machine} is down from {begin} to {until}")
    for machine, holds in held.items():
        holds.sort()
        for (_, release, j), (start, _, other) in zip(holds, holds[1:], strict=False):
            if start < release:
                found.append(f"machine {machine} holds jobs {j} and {other} at {start}")
    if kind == "blocking":
        found += _swaps(machines, starts)
    return found


def _paused_end(start: int, work: int, closed: Sequence[tuple[int, int]]) -> int:
    """When `work` units are done that begin at `start` and rest while the machine is down."""
    end = start + work
    for begin, until in sorted(closed):
        if start <= begin < end:
            end += until - begin
    return end


def _swaps(machines: np.ndarray, starts: np.ndarray) -> list[str]:
    """Cycles of jobs that change machines at the same instant."""
    moves: dict[int, dict[int, int]] = defaultdict(dict)  # instant -> machine left -> machine entered
    for j, k in np.ndindex(*starts.shape):
        if k > 0:
            moves[int(starts[j, k])][int(machines[j, k - 1])] = int(machines[j, k])
    found = []
    for instant, edges in moves.items():
        for first in edges:
            machine = edges[first]
            for _ in range(len(edges)):
                if machine == first or machine not in edges:
                    break
                machine = edges[machine]
            if machine == first:
                found.append(f"at {instant} machine {first} is part of a cycle of jobs that change places")
    return found
