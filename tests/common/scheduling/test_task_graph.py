"""List scheduling of operation graphs: closed forms, invariants on random graphs, and what a resource keeps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.scheduling.task_graph import (
    Operation,
    Placed,
    TaskGraph,
    Use,
    as_early_as_possible,
    as_late_as_possible,
    list_schedule,
    makespan,
    occupation,
)


def times(placed: tuple[Placed, ...]) -> dict[str, tuple[float, float]]:
    return {p.name: (p.start, p.end) for p in placed}


def test_a_diamond_on_one_processor_and_on_two() -> None:
    def graph(second: str) -> TaskGraph:
        return TaskGraph(
            [
                Operation("a", 1, ("cpu",)),
                Operation("b", 2, ("cpu",), ("a",)),
                Operation("c", 3, (second,), ("a",)),
                Operation("d", 1, ("cpu",), ("b", "c")),
            ]
        )

    one = times(list_schedule(graph("cpu")))
    assert one == {"a": (0, 1), "b": (1, 3), "c": (3, 6), "d": (6, 7)}
    two = list_schedule(graph("dsp"))
    assert times(two) == {"a": (0, 1), "b": (1, 3), "c": (1, 4), "d": (4, 5)}
    assert makespan(two) == 5
    assert graph("dsp").tails() == {"a": 5, "b": 3, "c": 4, "d": 1}


def test_the_longest_tail_goes_first_where_priorities_are_given() -> None:
    graph = TaskGraph(
        [
            Operation("short", 2, ("cpu",)),
            Operation("long", 2, ("cpu",)),
            Operation("after long", 5, ("dsp",), ("long",)),
        ]
    )
    assert makespan(list_schedule(graph)) == 9
    assert makespan(list_schedule(graph, priority=graph.tails())) == 7


def test_late_placement_keeps_the_end_and_early_placement_undoes_it_for_what_may_move() -> None:
    graph = TaskGraph(
        [
            Operation("a", 2, ("x",)),
            Operation("b", 5, ("y",)),
            Operation("c", 1, ("z",), ("a", "b")),
        ]
    )
    soon = list_schedule(graph)
    late = as_late_as_possible(soon)
    assert times(late) == {"a": (3, 5), "b": (0, 5), "c": (5, 6)}
    assert as_early_as_possible(late, ["a", "c"]) == soon
    assert times(as_early_as_possible(late, []))["a"] == (3, 5)


def test_what_is_kept_is_taken_until_the_next_use_or_the_end() -> None:
    placed = (
        Placed("make", 0, 2, ("comm", "store"), ("store",)),
        Placed("other", 3, 4, ("comm",)),
        Placed("use", 6, 7, ("store", "late"), ("late",)),
        Placed("end", 8, 9, ("comm",)),
    )
    assert set(occupation(placed)) == {
        Use("comm", 0, 2), Use("comm", 3, 4), Use("comm", 8, 9), Use("store", 0, 7), Use("late", 6, 9),
    }  # fmt: skip


@pytest.mark.parametrize(
    "operations, reason",
    [
        ([Operation("a", 1), Operation("a", 1)], "same name"),
        ([Operation("a", -1)], "negative duration"),
        ([Operation("a", 1, (), ("b",))], "after 'b', which is unknown"),
        ([Operation("a", 1, (), ("b",)), Operation("b", 1, (), ("a",))], "on a cycle"),
        ([Operation("a", 1, (), ("a",))], "on a cycle"),
    ],
)
def test_a_wrong_graph_says_what_is_wrong(operations: list[Operation], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TaskGraph(operations)


@st.composite
def graphs(draw: st.DrawFn) -> TaskGraph:
    operations = []
    for i in range(draw(st.integers(1, 10))):
        resources = draw(st.sets(st.sampled_from("xyz"), max_size=2))
        after = draw(st.sets(st.integers(0, i - 1), max_size=2)) if i else set()
        operations.append(
            Operation(
                str(i),
                draw(st.integers(1, 4)),
                tuple(sorted(resources)),
                tuple(str(j) for j in sorted(after)),
            )
        )
    return TaskGraph(operations)


@settings(max_examples=80, deadline=None)
@given(graphs(), st.booleans())
def test_every_placement_respects_order_and_resources(graph: TaskGraph, by_tail: bool) -> None:
    soon = list_schedule(graph, priority=graph.tails() if by_tail else None)
    late = as_late_as_possible(soon)
    again = as_early_as_possible(late, list(graph.operations))
    for placed in (soon, late, again):
        assert {p.name for p in placed} == set(graph.operations)
        ends = {p.name: p.end for p in placed}
        for p in placed:
            assert p.end - p.start == graph.operations[p.name].duration
            assert all(ends[name] <= p.start for name in p.after)
            for q in placed:
                shared = set(p.resources) & set(q.resources)
                assert p.name == q.name or not shared or p.end <= q.start or q.end <= p.start
    assert max(p.end for p in late) == max(p.end for p in soon)
    assert all(b.start >= a.start for a, b in zip(soon, late, strict=True))
    assert all(c.start <= b.start for b, c in zip(late, again, strict=True))
    assert makespan(soon) >= max(graph.tails().values())
