"""The exact optimum against exhaustive search, and against every heuristic."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.scheduling.periodic import (
    Task,
    accepted_tasks,
    admit,
    block_np_edf,
    hyperperiod,
    non_block_np_edf,
)
from common.scheduling.periodic_check import violations
from common.scheduling.task_graph import Use

pytest.importorskip("ortools")
from common.scheduling.periodic_optimum import optimum


@st.composite
def small_sets(draw: st.DrawFn) -> list[Task]:
    tasks = []
    for i in range(draw(st.integers(1, 3))):
        duration = draw(st.integers(1, 3))
        uses = {
            Use(draw(st.sampled_from("xy")), begin, begin + 1)
            for begin in draw(st.sets(st.integers(0, duration - 1), min_size=1))
        }
        tasks.append(Task(str(i), draw(st.sampled_from([4, 8])), duration, tuple(sorted(uses))))
    return tasks


def by_search(tasks: list[Task]) -> float:
    """The best sum of rates over all subsets and all starts."""
    best = 0.0
    for chosen in product((False, True), repeat=len(tasks)):
        kept = [task for task, yes in zip(tasks, chosen, strict=True) if yes]
        value = sum(1 / task.period for task in kept)
        if value > best and _fits(
            [(t, k) for t in kept for k in range(hyperperiod(kept) // t.period)], frozenset()
        ):
            best = value
    return best


def _fits(left: list[tuple[Task, int]], busy: frozenset[tuple[str, int]]) -> bool:
    if not left:
        return True
    task, k = left[0]
    for start in range(k * task.period, (k + 1) * task.period - task.duration + 1):
        own = {(u.resource, start + s) for u in task.uses for s in range(int(u.begin), int(u.end))}
        if not own & busy and _fits(left[1:], busy | own):
            return True
    return False


@settings(max_examples=25, deadline=None)
@given(small_sets())
def test_the_optimum_is_that_of_exhaustive_search(tasks: list[Task]) -> None:
    best = optimum(tasks)
    assert best.proven
    assert best.value == pytest.approx(by_search(tasks))
    assert violations(accepted_tasks(best.schedule), best.schedule) == []
    for scheduler, block in ((non_block_np_edf, False), (block_np_edf, True)):
        heuristic = sum(1 / task.period for task in accepted_tasks(admit(tasks, scheduler)))
        assert heuristic <= optimum(tasks, block).value + 1e-9
    assert optimum(tasks, block=True).value <= best.value + 1e-9


def test_an_interleaving_that_edf_misses_is_found_and_seven_tasks_are_refused() -> None:
    # EDF starts the tight task at once; the optimum leaves it for later
    first = Task("first", 8, 5, (Use("x", 0, 1), Use("x", 4, 5)))
    second = Task("second", 4, 2, (Use("x", 0, 2),))
    assert optimum([first, second]).value >= sum(
        1 / task.period for task in accepted_tasks(admit([first, second], non_block_np_edf))
    )
    with pytest.raises(ValueError, match="at most 6 tasks, not 7"):
        optimum([Task(str(i), 4, 1, (Use("x", 0, 1),)) for i in range(7)])
