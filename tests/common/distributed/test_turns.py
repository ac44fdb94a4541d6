"""Sides of a comparison in turn."""

import time

import pytest

from common.distributed.turns import in_turn


class Side:
    """Work that is dear the first times, as a file that is made."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.done = list(seconds), 0

    def __call__(self) -> None:
        time.sleep(self.seconds[self.done] if self.done < len(self.seconds) else 0.01)
        self.done += 1


def test_the_same_work_on_both_sides_takes_as_long_although_its_first_time_is_dear() -> None:
    first, second = Side(0.3), Side(0.3)
    for seconds in in_turn(1, {"first": first, "second": second}, repetitions=2, turns=3):
        assert seconds["first"] == pytest.approx(seconds["second"], rel=0.8)
        assert max(seconds.values()) < 0.1
    assert first.done == second.done == 1 + 2 * 3


def test_turns_in_which_the_machine_did_something_else_say_nothing() -> None:
    (seconds,) = in_turn(1, {"side": Side(0, 0.5, 0.01, 0.5)}, turns=3)
    assert seconds["side"] < 0.1


def test_sides_go_forwards_and_backwards() -> None:
    order: list[str] = []
    in_turn(1, {name: lambda name=name: order.append(name) for name in "ab"}, repetitions=4)
    assert "".join(order) == "ab" + "abbaabba"


def test_no_turns_are_refused() -> None:
    with pytest.raises(ValueError, match="time nothing"):
        in_turn(1, {}, repetitions=0)
