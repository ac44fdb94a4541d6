"""What controls, placebos, settings and free ends say of a claim."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lab.card import Claim, Control
from common.lab.evaluate import _over_recordings
from common.lab.outcome import DRAWS, control_outcome, depends_on, revival, sample_of_recordings
from common.lab.verdict import Verdict, judge, not_run
from tests.lab.claims import certain, claim, sample, seen, spread

WHOLE = Control(set={"mechanism": False}, why="w")
PARTIAL = Control(set={"mechanism": False}, why="w", partial=True, reason="the engine's part remains")
OURS = seen(claim(), 1.0, 0.1)


def outcome(under: Verdict, ours: Verdict = OURS, control: Control = WHOLE, of: Claim | None = None) -> str:
    return control_outcome(of or claim(), control, ours, under)[0]


# ---- controls


@pytest.mark.parametrize(
    ("left", "half", "expected"),
    [
        (0.0, 0.1, "breaks it"),
        (-0.5, 0.1, "breaks it"),
        (0.25, 0.1, "breaks it"),
        (0.26, 0.1, "could not tell"),
        (0.5, 0.1, "could not tell"),
        (0.51, 0.1, "does not break it"),
        (1.2, 0.1, "does not break it"),
        (0.2, 0.34, "breaks it"),
        (0.2, 0.36, "could not tell"),  # half of ours moves along with it: 0.3 to spare, ours takes 0.05 off
    ],
)
def test_at_most_a_quarter_is_left_and_surely_less_than_half(left: float, half: float, expected: str) -> None:
    found, share = control_outcome(claim(), WHOLE, OURS, seen(claim(), left, half))
    assert (found, share) == (expected, pytest.approx(left))


@pytest.mark.parametrize(
    ("left", "half", "expected"),
    [(0.4, 0.1, "breaks it"), (0.4, 0.3, "could not tell"), (0.6, 0.1, "does not break it")],
)
def test_a_partial_control_leaves_surely_less_than_half(left: float, half: float, expected: str) -> None:
    assert outcome(seen(claim(), left, half), control=PARTIAL) == expected


def test_controls_of_costs_that_are_better_lower_are_the_same() -> None:
    of = claim(better="lower")
    ours = seen(of, 1.0, 0.1)
    assert outcome(seen(of, 0.1, 0.1), ours, of=of) == "breaks it"
    assert outcome(seen(of, 0.9, 0.1), ours, of=of) == "does not break it"


@pytest.mark.parametrize(("mean", "half"), [(-1.0, 0.1), (0.0, 0.1), (1.0, 3.0)])
def test_of_a_claim_that_is_not_upheld_there_is_nothing_to_break(mean: float, half: float) -> None:
    ours = seen(claim(), mean, half)
    assert control_outcome(claim(), WHOLE, ours, seen(claim(), 0.0, 0.1)) == ("nothing to break", None)
    assert outcome(not_run("needs a GPU"), not_run("needs a GPU")) == "nothing to break"


def test_a_control_that_was_not_run_tells_nothing() -> None:
    assert control_outcome(claim(), WHOLE, OURS, not_run("a floor")) == ("could not tell", None)


def test_two_sides_that_are_equal_in_every_seed_are_an_identity() -> None:
    assert control_outcome(claim(), WHOLE, OURS, judge(claim(), [sample([0.0] * 5)])) == ("identity", 0.0)
    almost = judge(claim(), [sample([0.0] * 4 + [1e-3])])
    assert outcome(almost) == "breaks it"


def test_pairs_are_compared_seed_by_seed() -> None:
    """Each seed brings its own moment, which both sides share: the pairs know more than two intervals."""
    moments = spread(1.0, 0.7)
    ours = judge(claim("direction"), [sample([10 * x for x in moments])])
    under = judge(claim("direction"), [sample([2 * x for x in moments])])
    assert outcome(under, ours, of=claim("direction")) == "breaks it"
    crossed = judge(claim("direction"), [sample([2 * x for x in moments[::-1]])])
    assert control_outcome(claim("direction"), WHOLE, ours, crossed)[0] == "could not tell"


def test_a_control_with_fewer_seeds_brings_its_own_uncertainty() -> None:
    assert outcome(seen(claim(), 0.1, 0.3, n=3)) == "breaks it"
    assert outcome(seen(claim(), 0.1, 0.4, n=3)) == "could not tell"
    assert outcome(judge(claim(), [sample([1.0])])) == "could not tell"  # one seed
    assert outcome(judge(claim(), [certain(1.0)])) == "breaks it"  # no chance


def test_both_without_chance_are_compared_as_they_are() -> None:
    ours = judge(claim(), [certain(10.0)])
    for value, expected in ((2.5, "breaks it"), (2.6, "could not tell"), (5.1, "does not break it")):
        assert outcome(judge(claim(), [certain(value)]), ours) == expected
    partly = judge(claim(), [certain(4.9)])
    assert outcome(partly, ours, PARTIAL) == "breaks it"


@pytest.mark.parametrize("kind", ["parity", "at_most", "exact", "invariant"])
def test_costs_counts_and_parity_are_broken_where_they_are_contradicted(kind: str) -> None:
    of = claim(
        kind,
        "lower" if kind == "at_most" else "higher",
        **({"paper": {"value": 10.0}} if kind == "at_most" else {}),
    )
    good = 0.0 if kind == "parity" else 10.0
    ours = judge(of, [sample([good] * 5)])
    assert ours.verdict == "reproduced"
    worse = -90.0 if kind == "parity" else 90.0
    assert control_outcome(of, WHOLE, ours, judge(of, [sample([worse] * 5)])) == ("breaks it", None)
    assert control_outcome(of, WHOLE, ours, ours) == ("does not break it", None)


def test_a_cost_that_hides_in_its_noise_could_not_be_told() -> None:
    of = claim("at_most", "lower", paper={"value": 10.0})
    ours = seen(of, 0.5, 0.1)
    assert outcome(seen(of, 1.0, 0.5), ours, of=of) == "could not tell"


def test_where_this_run_saw_no_effect_itself_nothing_can_be_said() -> None:
    """A verdict over recordings may be upheld where the run beside the control was a bad one."""
    for own in ((-0.1,), (0.0, 0.0)):
        ours = Verdict("reproduced", effects=own)
        assert control_outcome(claim(), WHOLE, ours, seen(claim(), 0.1, 0.01)) == ("could not tell", None)


@given(st.floats(-1.0, 2.0), st.floats(0.01, 1.0), st.floats(1.0, 5.0))
def test_a_wider_control_never_breaks_more(left: float, half: float, times: float) -> None:
    narrow, wide = (outcome(seen(claim(), left, h)) for h in (half, half * times + 1e-6))
    assert wide != "breaks it" or narrow == "breaks it"


# ---- placebos of a claim without chance

CERTAIN = judge(claim(), [certain(10.0)])


def draws(effects: Sequence[float]) -> Verdict:
    return judge(claim(), [sample([10 * x for x in effects])])


def placebo(effects: Sequence[float], control: Control = WHOLE) -> str:
    return control_outcome(claim(), control, CERTAIN, draws(effects), placebo=True)[0]


def test_nineteen_draws_that_stay_below_break_it() -> None:
    assert placebo(spread(0.1, 0.1, DRAWS)) == "breaks it"


def test_eighteen_draws_are_too_few() -> None:
    assert placebo(spread(0.1, 0.1, DRAWS - 1)) == "could not tell"


@pytest.mark.parametrize("reaching", [1.0, 1.0 - 1e-12, 1.3])
def test_one_draw_that_reaches_ours_tells_that_it_may_be_a_draw(reaching: float) -> None:
    assert placebo([0.0] * (DRAWS - 1) + [reaching]) == "could not tell"


def test_a_placebo_that_forgets_its_seed_is_a_single_draw() -> None:
    found = control_outcome(claim(), WHOLE, CERTAIN, judge(claim(), [certain(0.0001)]), placebo=True)
    assert found[0] == "could not tell"
    assert control_outcome(claim(), WHOLE, CERTAIN, judge(claim(), [certain(0.0001)]))[0] == "breaks it"


def test_a_partial_placebo_leaves_surely_less_than_half_too() -> None:
    assert placebo(spread(0.95, 0.01, DRAWS), PARTIAL) == "does not break it"
    assert placebo(spread(0.4, 0.05, DRAWS), PARTIAL) == "breaks it"


def test_a_placebo_of_a_claim_with_chance_is_compared_as_a_control() -> None:
    assert control_outcome(claim(), WHOLE, OURS, seen(claim(), 0.1, 0.1), placebo=True)[0] == "breaks it"


# ---- explanations


@pytest.mark.parametrize(
    ("under", "expected"),
    [
        (seen(claim(), 1.0, 0.1), "revived"),
        (seen(claim(), 0.65, 0.1), "in part"),
        (seen(claim(), 0.64, 0.1), "refuted"),
        (seen(claim(), 0.1, 0.05), "refuted"),
        (not_run("needs data"), "not run"),
        (seen(claim(), 3.0, 0.1), "refuted"),  # beyond the paper is no revival either
        (seen(claim(), 0.4, 0.1, off=True), "refuted"),  # a direction comes out, the number does not
        (seen(claim(), 0.9, 0.1, off=True), "in part"),
    ],
)
def test_an_explanation_is_revived_in_part_or_refuted(under: Verdict, expected: str) -> None:
    assert revival(claim(), seen(claim(), 0.3, 0.1), under) == expected


def test_a_direction_is_revived_where_it_comes_out() -> None:
    of = claim("direction")
    ours = seen(of, -0.3, 0.1)
    assert revival(of, ours, seen(of, 0.3, 0.1)) == "revived"
    assert revival(of, ours, seen(of, 0.0, 0.1)) == "refuted"
    away = seen(claim(), -0.3, 0.1, off=True)
    assert revival(claim(), away, seen(claim(), 0.2, 0.1, off=True)) == "revived"


def test_of_a_bound_and_a_cost_what_is_missing_counts() -> None:
    of = claim("at_least")
    assert revival(of, seen(of, 0.5, 0.1), seen(of, 0.8, 0.1)) == "in part"
    cost = claim("at_most", "lower", paper={"value": 10.0})
    assert revival(cost, seen(cost, 2.0, 0.1), seen(cost, 1.4, 0.1)) == "in part"
    assert revival(cost, seen(cost, 2.0, 0.1), seen(cost, 1.6, 0.1)) == "refuted"


# ---- free ends


@pytest.mark.parametrize(
    ("there", "crosses"),
    [(0.8, False), (1.2, False), (0.7, True), (1.3, True), (0.0, True), (-0.5, True)],
)
def test_a_verdict_depends_on_an_end_where_the_mean_leaves_its_band(there: float, crosses: bool) -> None:
    ends = {"alpha=0": seen(claim(), there, 5.0), "alpha=1": seen(claim(), 1.0, 0.1)}
    assert depends_on(claim(), OURS, ends) == (["alpha=0"] if crosses else [])


def test_a_weaker_verdict_depends_on_where_it_would_be_nothing_or_the_papers() -> None:
    ours = seen(claim(), 0.4, 0.1)
    assert depends_on(claim(), ours, {"a=0": seen(claim(), 0.2, 1.0), "a=1": seen(claim(), 0.7, 1.0)}) == []
    assert depends_on(claim(), ours, {"a=0": seen(claim(), -0.1, 1.0), "a=1": seen(claim(), 0.8, 1.0)}) == [
        "a=0",
        "a=1",
    ]


def test_an_end_that_was_not_run_decides() -> None:
    assert depends_on(claim(), OURS, {"a=0": not_run("a floor")}) == ["a=0"]


def test_what_is_open_depends_on_nothing() -> None:
    for ours in (not_run("needs a GPU"), seen(claim(), 1.0, 3.0)):
        assert depends_on(claim(), ours, {"a=0": seen(claim(), -1.0, 0.1)}) == []


def test_an_end_that_leaves_the_operating_point_is_compared_by_the_same_lines() -> None:
    assert depends_on(claim(), OURS, {"a=0": seen(claim(), 1.1, 0.1, off=True)}) == []
    assert depends_on(claim(), OURS, {"a=0": seen(claim(), 0.5, 0.1, off=True)}) == ["a=0"]


def test_a_direction_depends_where_it_crosses_no_effect_or_its_least() -> None:
    of, least = claim("direction"), claim("direction", least=5.0)
    assert depends_on(of, seen(of, 1.0, 0.1), {"a=0": seen(of, 0.1, 5.0)}) == []
    assert depends_on(of, seen(of, 1.0, 0.1), {"a=0": seen(of, -0.1, 5.0)}) == ["a=0"]
    assert depends_on(least, seen(least, 1.0, 0.1), {"a=0": seen(least, 0.4, 0.1)}) == ["a=0"]


def test_costs_and_parity_depend_where_the_mean_crosses_their_line() -> None:
    cost = claim("at_most", "lower", paper={"value": 10.0})
    ends = {"a=0": seen(cost, 0.9, 5.0), "a=1": seen(cost, 1.1, 0.05)}
    assert depends_on(cost, seen(cost, 0.5, 0.1), ends) == ["a=1"]
    parity = claim("parity")
    ends = {"a=0": seen(parity, 0.9, 5.0), "a=1": seen(parity, 1.1, 0.05)}
    assert depends_on(parity, seen(parity, 0.0, 0.1), ends) == ["a=1"]
    # what is contradicted stays so where an end is only wider
    assert depends_on(parity, seen(parity, -1.5, 0.1), {"a=0": seen(parity, -1.5, 3.0)}) == []


# ---- recordings


def test_recordings_are_the_values_of_a_claim_that_reads_a_clock() -> None:
    hours = {"2026-11-30T10": 9.0, "2026-11-30T14": 10.0, "2026-12-01T09": 11.0}
    found = judge(claim(), [sample_of_recordings(hours)])
    assert found.values == (9.0, 10.0, 11.0) and found.half_width == pytest.approx(0.2484, abs=1e-3)
    assert found.verdict == "reproduced"
    assert judge(claim(), [sample_of_recordings({"2026-11-30T10": 10.0})]).verdict == "inconclusive"


def test_a_maximum_over_settings_is_not_averaged_over_recordings() -> None:
    """Each recording's best of four settings without effect: their means are surely above nothing."""
    of = claim("up_to", evidence="measured")
    best_of_each = {f"2026-11-30T{hour}": mean for hour, mean in ((10, 1.0), (11, 1.1), (12, 1.2))}
    assert judge(of, [sample_of_recordings(best_of_each)], {"gpu": "another"}).verdict == "reproduced"
    ours = judge(of, [sample([10 * x for x in spread(0.0, 0.5)])] * 4)
    over = _over_recordings(of, ours, best_of_each, {})
    assert over.verdict == ours.verdict and over.settings == 4
    assert over.marks == ("provisional: the best of 4 settings in one recording; more need one under `at`",)


def test_a_claim_on_a_clock_is_provisional_below_three_recordings() -> None:
    of = claim(evidence="measured")
    hours = {"2026-11-30T10": 9.0, "2026-11-30T14": 10.0}
    assert _over_recordings(of, OURS, hours, {}).marks == ("provisional: 2 of 3 recordings",)
    three = _over_recordings(of, OURS, {**hours, "2026-12-01T09": 11.0}, {})
    assert (three.values, three.marks, three.effects) == ((9.0, 10.0, 11.0), (), OURS.effects)


# ---- bounds from below


def bounded(effect: float) -> Verdict:
    """Five values whose rival stands on a floor."""
    values = [10 * effect + 0.001 * seed for seed in range(5)]
    return judge(claim(), [replace(sample(values), capped=1)])


def test_what_is_capped_breaks_nothing_and_of_ours_it_cannot_be_said_that_much_is_left() -> None:
    assert outcome(bounded(0.1)) == "could not tell"
    assert outcome(bounded(0.9)) == "does not break it"
    assert outcome(seen(claim(), 0.1, 0.01), bounded(1.0)) == "breaks it"
    assert outcome(seen(claim(), 0.9, 0.01), bounded(1.0)) == "could not tell"
