"""Reservations against a plain set of slots."""

from hypothesis import given, settings
from hypothesis import strategies as st

from common.scheduling.reservations import Reservations
from common.scheduling.task_graph import Use

intervals = st.builds(
    lambda resource, begin, length: Use(resource, begin, begin + length),
    st.sampled_from("ab"),
    st.integers(0, 12),
    st.integers(1, 7),
)


def test_the_earliest_start_is_where_every_interval_fits() -> None:
    taken = Reservations()
    taken.reserve([Use("a", 2, 4), Use("b", 7, 9)])
    uses = [Use("a", 0, 2), Use("b", 2, 5)]
    # start 0: b in [2, 5) and a in [0, 2) are free
    assert taken.earliest(uses) == 0
    # from 1 on: a is taken until 4, and b in [s + 2, s + 5) meets [7, 9) for 3 <= s <= 6
    assert taken.earliest(uses, 1) == 7
    assert taken.intervals() == {"a": [(2, 4)], "b": [(7, 9)]}
    assert taken.busy_until("b", 5, 8) == 8
    assert taken.busy_until("b", 0, 7) == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(intervals, max_size=8), st.lists(intervals, min_size=1, max_size=5), st.integers(0, 25))
def test_bits_agree_with_slots_one_by_one(held: list[Use], asked: list[Use], at_least: int) -> None:
    taken = Reservations()
    taken.reserve(held)
    busy = {(use.resource, slot) for use in held for slot in range(int(use.begin), int(use.end))}

    def free(start: int) -> bool:
        return not any(
            (use.resource, start + slot) in busy
            for use in asked
            for slot in range(int(use.begin), int(use.end))
        )

    expected = next(start for start in range(at_least, 200) if free(start))
    assert taken.earliest(asked, at_least) == expected
    assert taken.is_free(asked, expected)
    assert all(taken.is_free(asked, start) == free(start) for start in range(30))
    spans = {
        (resource, slot)
        for resource, own in taken.intervals().items()
        for a, b in own
        for slot in range(a, b)
    }
    assert spans == busy
