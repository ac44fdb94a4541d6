"""Schedulers of periodic tasks: closed forms, an independent verifier on random sets, and the verifier itself."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.scheduling import periodic
from common.scheduling.periodic import (
    Cut,
    Piece,
    Run,
    Schedule,
    Scheduler,
    Task,
    accepted_tasks,
    admit,
    block_cedf,
    block_np_edf,
    components,
    fcfs,
    hyperperiod,
    jitter,
    non_block_np_edf,
    uni_cedf,
    uni_np_edf,
    worst_response,
)
from common.scheduling.periodic_check import violations
from common.scheduling.periodic_preemption import cuts_of, segments, with_budget
from common.scheduling.task_graph import Placed, Use, occupation

SCHEDULERS: dict[str, Scheduler] = {
    "uni": uni_np_edf,
    "uni cedf": uni_cedf,
    "block": block_np_edf,
    "block cedf": block_cedf,
    "non-block": non_block_np_edf,
    "fcfs": fcfs,
    "budget block": with_budget("block"),
    "budget segment-block": with_budget("segment-block"),
    "budget segment": with_budget("segment"),
}


def simple(name: str, period: int, duration: int, *resources: str) -> Task:
    """A task that takes its resources all the time."""
    return Task(name, period, duration, tuple(Use(resource, 0, duration) for resource in resources))


def starts(schedule: Schedule | None) -> dict[str, list[int]]:
    assert schedule is not None
    found: dict[str, list[int]] = {}
    for run in schedule:
        found.setdefault(run.task.name, []).append(run.start)
    return found


# Closed forms -------------------------------------------------------------------------------------------------------


def test_np_edf_on_one_processor_follows_deadlines() -> None:
    tasks = [simple("a", 4, 2, "x"), simple("b", 8, 3, "y")]
    assert starts(uni_np_edf(tasks)) == {"a": [0, 5], "b": [2]}


def test_separate_resources_run_side_by_side_and_shared_ones_do_not() -> None:
    apart = [simple("a", 4, 4, "x"), simple("b", 4, 4, "y")]
    assert uni_np_edf(apart) is None
    assert starts(block_np_edf(apart)) == {"a": [0], "b": [0]}
    assert block_np_edf([simple("a", 4, 3, "x"), simple("b", 4, 2, "x")]) is None


def test_intervals_interleave_where_blocks_can_not() -> None:
    # each uses x for one slot in two: together they fill it, shifted by one slot
    alternating = tuple(Use("x", slot, slot + 1) for slot in (0, 2))
    tasks = [Task(name, 4, 3, alternating) for name in "ab"]
    assert block_np_edf(tasks) is None
    found = non_block_np_edf([replace(task, period=8) for task in tasks])
    assert starts(found) == {"a": [0], "b": [1]}


def test_critical_time_edf_waits_where_edf_would_miss_a_deadline() -> None:
    tasks = [simple("tight", 10, 1, "x"), simple("mid", 20, 6, "x"), simple("long", 40, 13, "x")]
    # EDF starts long at 7; it ends at 20, and tight#1 had to start by 19
    assert uni_np_edf(tasks) is None
    # CEDF sees that, idles until tight#1 is released at 10, and starts long behind it
    assert starts(uni_cedf(tasks)) == {"tight": [0, 10, 24, 31], "mid": [1, 25], "long": [11]}


def test_block_cedf_schedules_a_set_that_block_edf_misses() -> None:
    tasks = [simple("a", 4, 1, "x", "y"), simple("b", 8, 3, "x"), simple("c", 12, 5, "y")]
    assert block_np_edf(tasks) is None
    schedule = block_cedf(tasks)
    assert schedule is not None
    assert violations(tasks, schedule) == []


def test_fcfs_goes_by_release_and_edf_by_deadline() -> None:
    tasks = [simple("slow", 12, 5, "x"), simple("fast", 6, 1, "x")]
    assert starts(fcfs(tasks)) == {"slow": [0], "fast": [5, 6]}
    assert starts(block_np_edf(tasks)) == {"fast": [0, 6], "slow": [1]}
    assert fcfs([simple("slow", 12, 6, "x"), simple("fast", 6, 1, "x")]) is None


def test_admission_keeps_the_order_and_skips_what_does_not_fit() -> None:
    tasks = [simple("a", 8, 4, "x"), simple("b", 8, 6, "x"), simple("c", 8, 4, "x"), simple("d", 8, 8, "y")]
    assert [task.name for task in accepted_tasks(admit(tasks, block_np_edf))] == ["a", "c", "d"]
    assert [task.name for task in accepted_tasks(admit(tasks[1:], block_np_edf))] == ["b", "d"]
    assert admit([], block_np_edf) == ()


def test_components_share_no_resource_and_are_merged_over_the_common_hyperperiod() -> None:
    tasks = [
        simple("a", 4, 1, "x"),
        simple("b", 8, 2, "y"),
        simple("c", 2, 1, "z"),
        simple("d", 8, 1, "x", "y"),
    ]
    assert [[t.name for t in group] for group in components(tasks)] == [["a", "b", "d"], ["c"]]
    schedule = block_np_edf(tasks)
    assert schedule is not None and hyperperiod(tasks) == 8
    assert starts(schedule)["c"] == [0, 2, 4, 6]
    assert violations(tasks, schedule) == []


def test_jitter_and_response_of_a_schedule_by_hand() -> None:
    task = simple("a", 4, 1, "x")
    schedule = tuple(Run(task, k, (Piece(0, 1, start),)) for k, start in enumerate((0, 6, 8, 15)))
    # distances 6, 2, 7 and around the cycle 1, less the period: 2, -2, 3, -3; their mean is 0
    assert jitter(schedule) == pytest.approx(26 / 4)
    assert jitter(schedule[:1]) == 0.0
    assert worst_response(schedule) == 4
    assert jitter(()) == 0.0 and worst_response(()) == 0


# Preemption ---------------------------------------------------------------------------------------------------------


def stored() -> Task:
    """Two links of three slots by one communication qubit c, the first half kept in s, and a swap."""
    steps = (
        Placed("L1", 0, 3, ("c", "s"), ("s",)),
        Placed("L2", 3, 6, ("c", "t"), ("t",)),
        Placed("S", 6, 7, ("s", "t"), (), ("L1", "L2")),
    )
    return Task("pair", 32, 7, occupation(steps), cuts_of(steps), 10, steps)


def test_a_run_may_be_paused_between_steps_and_keeps_what_is_stored() -> None:
    task = stored()
    assert task.cuts == (Cut(3, ("s",)), Cut(6, ("s", "t")))
    assert segments(task, "segment")[1] == (Use("c", 0, 3), Use("s", 0, 3), Use("t", 0, 3))
    assert segments(task, "block")[2] == tuple(Use(name, 0, 1) for name in "cst")
    assert segments(task, "segment-block")[2] == (Use("s", 0, 1), Use("t", 0, 1))


@pytest.mark.parametrize(
    "blocked, budget, pieces",
    [
        # the communication qubit is taken in [3, 5): pause there, the budget allows it
        (Use("c", 3, 5), 10, ((0, 3, 0), (3, 6, 5), (6, 7, 8))),
        # budget 1: the first link may start no earlier than one slot before
        (Use("c", 3, 5), 1, ((0, 3, 5), (3, 6, 8), (6, 7, 11))),
        # the storage qubit is taken in [4, 5): nothing can be kept over it
        (Use("s", 4, 5), 10, ((0, 3, 5), (3, 6, 8), (6, 7, 11))),
    ],
)
def test_pauses_are_as_early_as_budget_and_storage_allow(
    blocked: Use, budget: int, pieces: tuple[tuple[int, int, int], ...]
) -> None:
    wall = Task("wall", 32, int(blocked.end), (blocked,))
    task = replace(stored(), budget=budget)
    place = with_budget("segment").core
    # the wall comes first by its name's place in the list: equal deadlines
    found = place([wall, task])
    assert found is not None
    run = next(run for run in found if run.task.name == "pair")
    assert run.pieces == tuple(Piece(*piece) for piece in pieces)
    assert violations([wall, task], found) == []


def test_without_a_budget_segments_are_the_non_block_scheduler() -> None:
    tasks = [replace(stored(), name=str(i), period=period, budget=0) for i, period in enumerate((16, 32, 32))]
    assert starts(with_budget("segment")(tasks)) == starts(non_block_np_edf(tasks))


# Random sets, and an exhaustive search -------------------------------------------------------------------------------


@st.composite
def task_sets(draw: st.DrawFn) -> list[Task]:
    tasks = []
    for i in range(draw(st.integers(1, 5))):
        period = draw(st.sampled_from([8, 16, 32]))
        steps, now = [], 0
        for j in range(draw(st.integers(1, 3))):
            end = now + draw(st.integers(1, 2))
            resources = tuple(sorted(draw(st.sets(st.sampled_from("abcd"), min_size=1, max_size=2))))
            keeps = resources[:1] if draw(st.booleans()) else ()
            steps.append(Placed(f"s{j}", now, end, resources, keeps))
            now = end
        tasks.append(
            Task(
                str(i), period, now, occupation(steps), cuts_of(steps), draw(st.integers(0, 4)), tuple(steps)
            )
        )
    return tasks


@settings(max_examples=60, deadline=None)
@given(task_sets(), st.sampled_from(sorted(SCHEDULERS)))
def test_what_a_scheduler_admits_passes_the_verifier(tasks: list[Task], name: str) -> None:
    schedule = admit(tasks, SCHEDULERS[name])
    assert violations(accepted_tasks(schedule), schedule) == []
    again = admit(tasks, SCHEDULERS[name])
    assert again == schedule


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(4, 12))
def test_with_one_period_np_edf_on_one_processor_is_exact(lengths: list[int], period: int) -> None:
    # equal periods: any order works exactly when the lengths add up to at most the period
    tasks = [simple(str(i), period, min(n, period), "x") for i, n in enumerate(lengths)]
    feasible = any(sum(t.duration for t in order) <= period for order in permutations(tasks))
    assert (uni_np_edf(tasks) is not None) == feasible
    assert (block_np_edf(tasks) is not None) == feasible


# The verifier -------------------------------------------------------------------------------------------------------


def one(task: Task, *start: int) -> Schedule:
    return tuple(Run(task, k, (Piece(0, task.duration, s),)) for k, s in enumerate(start))


@pytest.mark.parametrize(
    "schedule, complaint",
    [
        (one(stored(), 26), "outside its window"),
        (one(stored(), -1), "outside its window"),
        ((), "never scheduled"),
        (one(stored(), 0) + one(stored(), 9), "scheduled twice"),
        (one(replace(stored(), name="other"), 0), "not asked for"),
        ((Run(stored(), 0, (Piece(0, 6, 0),)),), "not its whole run"),
        ((Run(stored(), 0, (Piece(0, 3, 5), Piece(3, 7, 6))),), "not its whole run"),
        ((Run(stored(), 0, (Piece(0, 2, 0), Piece(2, 7, 5))),), "paused inside L1"),
        ((Run(stored(), 0, (Piece(0, 3, 0), Piece(3, 7, 14))),), "its budget is 10"),
    ],
)
def test_the_verifier_names_what_is_wrong(schedule: Schedule, complaint: str) -> None:
    found = violations([stored()], schedule)
    assert any(complaint in line for line in found), found


def test_the_verifier_sees_a_qubit_used_while_it_stores_a_half() -> None:
    task = stored()
    thief = Task("thief", 32, 1, (Use("s", 0, 1),))
    between = one(task, 0) + one(thief, 4)  # s is kept from 3 to 6
    assert any("takes s in slot 4" in line for line in violations([task, thief], between))
    assert violations([task, thief], one(task, 0) + one(thief, 7)) == []
    paused = (Run(task, 0, (Piece(0, 3, 0), Piece(3, 7, 6))), *one(thief, 4))
    assert any("takes s in slot 4" in line for line in violations([task, thief], paused))


def test_the_verifier_sees_steps_out_of_order_and_collisions_within_a_run() -> None:
    steps = (Placed("A", 2, 4, ("x",)), Placed("B", 3, 5, ("x",), (), ("A",)))
    task = Task("t", 8, 5, (Use("x", 2, 5),), (), 0, steps)
    found = violations([task], one(task, 0))
    assert any("B begins before A has ended" in line for line in found)
    assert any("takes x in slot 3" in line for line in found)


def test_a_scheduler_that_is_told_too_little_is_caught() -> None:
    steps = (Placed("L", 0, 3, ("c", "s"), ("s",)), Placed("D", 6, 7, ("s",)))
    told = occupation([replace(step, keeps=()) for step in steps])
    blind = [Task(name, 32, 7, told, (), 0, steps) for name in "ab"]
    schedule = non_block_np_edf(blind)
    assert starts(schedule) == {"a": [0], "b": [3]}  # makes a link while s stores the other's half
    assert schedule is not None
    assert any("takes s in slot 3" in line for line in violations(blind, schedule))
    seeing = [replace(task, uses=occupation(steps)) for task in blind]
    assert starts(non_block_np_edf(seeing)) == {"a": [0], "b": [7]}


@pytest.mark.parametrize("period, duration", [(4, 5), (4, 0)])
def test_a_task_longer_than_its_period_is_refused(period: int, duration: int) -> None:
    with pytest.raises(ValueError, match="its period is 4"):
        Task("a", period, duration, ())
    with pytest.raises(ValueError, match="outside its 2 slots"):
        Task("a", 4, 2, (Use("x", 1, 3),))
    assert periodic.hyperperiod([]) == 1
