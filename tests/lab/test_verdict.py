"""Verdicts: the whole truth table, what may never change one, and what may never flatter one."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.lab.card import Claim
from common.lab.effect import Sample, scale_of, settings
from common.lab.runtime import Observations
from common.lab.verdict import UPHELD, judge, not_run
from tests.lab.claims import certain, claim, ratio, sample, seen, spread

WIDE = claim(tolerance=0.5)
LEAST = 5.0  # seconds: half of an effect

# kind of claim: mean and half-width of the effect -> verdict
TABLE: list[tuple[str, dict[str, Any], list[tuple[float, float, str]]]] = [
    (
        "value",
        {},
        [
            (1.0, 0.1, "reproduced"),
            (0.75, 0.2, "reproduced"),
            (1.25, 0.2, "reproduced"),
            (1.0, 0.25, "reproduced"),
            (1.0, 0.26, "inconclusive"),  # too wide
            (0.74, 0.2, "weaker"),
            (0.5, 0.49, "weaker"),
            (0.7, 0.31, "inconclusive"),  # reaches the paper's number
            (1.26, 0.25, "stronger"),
            (3.0, 1.9, "stronger"),
            (1.3, 0.31, "inconclusive"),
            (0.0, 0.4, "absent"),
            (0.2, 0.25, "absent"),
            (0.0, 0.6, "inconclusive"),
            (-0.2, 0.3, "absent"),
            (-0.2, 0.1, "contradicted"),
            (1.0, 1.1, "inconclusive"),
        ],
    ),
    (
        "value",
        {"tolerance": 0.1},
        [(0.95, 0.1, "reproduced"), (0.95, 0.11, "inconclusive"), (0.89, 0.1, "weaker")],
    ),
    (
        "value",
        {"tolerance": 0.5},
        [
            (1.0, 0.45, "reproduced"),
            (0.6, 0.05, "reproduced"),
            (0.6, 0.2, "inconclusive"),  # half of the effect would look the same
            (1.4, 0.5, "reproduced"),
            (0.49, 0.1, "weaker"),
        ],
    ),
    (
        "range",
        {},
        [
            (0.8, 0.25, "reproduced"),
            (1.2, 0.25, "reproduced"),
            (1.0, 0.26, "inconclusive"),
            (0.79, 0.1, "weaker"),
            (0.79, 0.22, "inconclusive"),
            (1.21, 0.1, "stronger"),
            (1.21, 0.22, "inconclusive"),
            (0.1, 0.2, "absent"),
            (-0.3, 0.2, "contradicted"),
        ],
    ),
    (
        "range",
        {"paper": {"low": 1.0, "high": 19.0}},  # its nearer end is close to nothing
        [
            (0.2, 0.1, "reproduced"),
            (0.2, 0.19, "inconclusive"),  # half of its nearer end would look the same
            (1.0, 0.9, "reproduced"),
            (1.0, 0.96, "inconclusive"),
            (0.05, 0.01, "weaker"),
        ],
    ),
    (
        "at_least",
        {},
        [
            (1.0, 0.5, "reproduced"),
            (9.0, 0.5, "reproduced"),
            (9.0, 0.6, "inconclusive"),
            (0.99, 0.005, "weaker"),
            (0.99, 0.2, "inconclusive"),
            (0.0, 0.3, "absent"),
            (-1.0, 0.3, "contradicted"),
        ],
    ),
    (
        "direction",
        {},
        [
            (0.1, 0.09, "reproduced"),
            (9.0, 8.0, "reproduced"),
            (0.1, 0.11, "inconclusive"),
            (-0.1, 0.09, "contradicted"),
        ],
    ),
    (
        "direction",
        {"least": LEAST},
        [
            (0.6, 0.09, "reproduced"),
            (0.6, 0.11, "inconclusive"),
            (0.4, 0.09, "absent"),
            (0.4, 0.5, "inconclusive"),
            (-0.1, 0.09, "contradicted"),
        ],
    ),
    (
        "parity",
        {},
        [
            (0.0, 0.9, "reproduced"),
            (0.5, 0.4, "reproduced"),
            (0.5, 0.6, "inconclusive"),
            (0.0, 1.1, "inconclusive"),
            (-1.5, 0.4, "contradicted"),
            (1.5, 0.4, "stronger"),
        ],
    ),
]
ROWS = [(kind, changes, *row) for kind, changes, rows in TABLE for row in rows]


@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize(("kind", "changes", "mean", "half", "expected"), ROWS)
def test_the_truth_table(
    kind: str, changes: dict[str, Any], mean: float, half: float, expected: str, better: str, n: int
) -> None:
    if kind == "at_least" and better == "lower":
        return  # a bound on a cost is at_most
    if better == "lower":
        mirrored = {"paper": {"low": -19.0, "high": -1.0}} if "paper" in changes else {"least": -LEAST}
        changes = {**changes, **{key: value for key, value in mirrored.items() if key in changes}}
    assert seen(claim(kind, better, **changes), mean, half, n).verdict == expected


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (0.5, 0.4, "reproduced"),
        (1.0, 0.0, "reproduced"),
        (0.9, 0.2, "inconclusive"),
        (1.1, 0.2, "inconclusive"),
        (1.2, 0.1, "contradicted"),
    ],
)
def test_a_cost_keeps_its_bound_or_breaks_it(mean: float, half: float, expected: str) -> None:
    assert seen(claim("at_most", "lower", paper={"value": 10.0}), mean, half).verdict == expected


def test_under_a_tenth_of_its_bound_a_cost_is_hardly_modelled() -> None:
    cost = claim("at_most", "lower", paper={"value": 10.0})
    assert seen(cost, 0.09, 0.01).marks == ("cost hardly modelled",)
    assert seen(cost, 0.11, 0.01).marks == ()
    overhead = claim("at_most", "lower", paper={"value": 1.05, "unit": "ratio"})
    assert judge(overhead, [certain(1.004)]).marks == ("cost hardly modelled",)
    assert judge(overhead, [certain(1.03)]).marks == ()


@pytest.mark.parametrize("kind", ["exact", "invariant"])
def test_a_count_is_equal_in_every_seed_or_contradicted(kind: str) -> None:
    of = claim(kind)
    assert judge(of, [sample([10.0] * 5)]).verdict == "reproduced"
    assert judge(of, [certain(10.0 + 1e-12)]).verdict == "reproduced"
    assert judge(of, [sample([10.0] * 4 + [11.0])]).verdict == "contradicted"


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, "contradicted"), (3.0, "stronger"), (2.05, "reproduced")]
)
def test_parity_over_a_baseline_knows_which_side_is_better(value: float, expected: str) -> None:
    """Ours over theirs is written so that more is better, also where less of the metric is."""
    of = claim("parity", "lower", no_effect={"metric": "rival"}, margin=0.1)
    found = Observations()
    found.add("m", 6.0 / value)
    found.add("rival", 3.0)
    assert judge(of, settings(of, found)).verdict == expected


# ---- one seed, no chance, steps


@pytest.mark.parametrize("kind", ["value", "range", "at_least", "direction", "parity"])
def test_one_seed_decides_nothing(kind: str) -> None:
    found = judge(claim(kind), [sample([10.0])])
    assert (found.verdict, found.note, found.half_width, found.interval) == (
        "inconclusive",
        "one seed",
        None,
        None,
    )
    assert found.reason == "one seed has no interval; needs 5 seeds"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1.0, "contradicted"),
        (0.0, "absent"),
        (1.0, "weaker"),
        (7.5, "reproduced"),
        (12.5, "reproduced"),
        (12.6, "stronger"),
    ],
)
def test_without_chance_the_value_decides_and_says_so(value: float, expected: str) -> None:
    found = judge(claim(), [certain(value)])
    assert (found.verdict, found.note, found.half_width, found.seeds_needed) == (
        expected,
        "deterministic",
        0.0,
        None,
    )


def test_a_direction_without_chance_and_without_effect_has_its_reason() -> None:
    found = judge(claim("direction"), [certain(0.0)])
    assert (found.verdict, found.reason) == ("inconclusive", "nothing gained and nothing lost")


def test_the_interval_is_at_least_as_wide_as_a_step() -> None:
    coarse = claim(resolution=6.0)
    found = judge(coarse, [certain(10.0)])
    assert (found.verdict, found.half_width) == ("inconclusive", pytest.approx(0.3))
    assert (
        found.marks == ("as wide as a step of its metric",)
        and found.reason == "needs a metric of finer steps"
    )
    assert judge(claim(resolution=4.0), [sample([10.0] * 5)]).verdict == "reproduced"
    finer = seen(claim(resolution=1.0), 1.0, 0.1)
    assert finer.half_width == pytest.approx(0.1) and finer.marks == ()


def test_a_step_larger_than_the_effect_upholds_nothing() -> None:
    for kind in ("value", "range", "at_least", "direction"):
        assert judge(claim(kind, resolution=25.0), [sample([10.0] * 5)]).verdict == "inconclusive"


def test_a_step_of_a_ratio_is_relative_on_whichever_scale_it_is_judged() -> None:
    low, high = judge(ratio(resolution=0.1), [certain(2.0)]).interval or (0.0, 0.0)
    assert high / low == pytest.approx(1.1) and high * low == pytest.approx(4.0)
    linear = judge(ratio(no_effect=4.0, resolution=0.1, paper={"value": 8.0}), [certain(8.0)])
    assert linear.interval == pytest.approx((7.6, 8.4))


def test_a_score_next_to_its_bound_is_not_told_from_a_perfect_one_by_a_coarse_step() -> None:
    score = claim(no_effect=0.98, left=True, resolution=0.01, paper={"value": 0.99, "unit": "accuracy"})
    assert judge(score, [sample([0.99] * 5)]).verdict == "inconclusive"


# ---- what would decide it


@pytest.mark.parametrize(("noise", "needed"), [(0.1, 5), (0.25, 10), (0.5, 26)])
def test_seeds_needed_follow_the_spread(noise: float, needed: int) -> None:
    pattern = [i - 2 for i in range(5)]
    deviation = math.sqrt(2.5)
    found = judge(claim(), [sample([10 + 10 * noise * x / deviation for x in pattern])])
    assert found.seeds_needed == needed


def test_seeds_needed_do_not_follow_the_mean() -> None:
    assert len({seen(claim(), m, 0.4).seeds_needed for m in (-2.0, 0.0, 0.3, 0.74, 1.0, 1.3, 9.0)}) == 1


def test_an_inconclusive_verdict_says_how_many_seeds_decide_it() -> None:
    found = seen(claim(), 1.0, 0.4)
    assert found.reason == f"needs about {found.seeds_needed} seeds" and (found.seeds_needed or 0) > 5
    barely = seen(WIDE, 0.6, 0.2)  # narrow enough, but half of the effect would look the same
    assert barely.seeds_needed == 5 and int(barely.reason.split()[2]) > 10
    assert seen(claim("direction"), 0.001, 1.0).reason == "over a thousand seeds would not decide it"


def test_a_maximum_over_settings_needs_more_seeds_than_one_setting() -> None:
    values = [10 * x for x in spread(1.0, 0.2)]
    one, four = (judge(claim("up_to"), [sample(values)] * k).seeds_needed for k in (1, 4))
    assert one is not None and four is not None and four > one


# ---- maxima, operating points, baselines


def test_a_maximum_is_the_setting_with_the_best_mean_at_a_stricter_confidence() -> None:
    of = claim("up_to")
    lower, best, worst = (sample([10 * x for x in spread(m, 0.1, 5)]) for m in (0.5, 1.0, -3.0))
    found = judge(of, [lower, best, worst])
    assert found.values == best.values and found.verdict == "reproduced"
    assert found.half_width is not None and found.half_width > 0.1
    exact = sample([10 * x for x in spread(1.0, 0.2, 5, confidence=1 - 0.05 / 3)])
    assert judge(of, [lower, exact, worst]).half_width == pytest.approx(0.2)
    assert judge(of, [best]).half_width == pytest.approx(0.1)


def test_a_maximum_of_costs_takes_the_least() -> None:
    of = claim("up_to", "lower")
    assert judge(of, [certain(-10.0), certain(-3.0)]).mean == -10.0


def test_a_maximum_is_never_the_best_of_each_seed() -> None:
    """Two settings without effect, each best in half of the seeds."""
    a, b = [9.0, -9.0, 9.0, -9.0, 9.0, -9.0], [-9.0, 9.0, -9.0, 9.0, -9.0, 9.0]
    found = Observations()
    for seed in range(6):
        found.add("m", a[seed], seed, setting="a")
        found.add("m", b[seed], seed, setting="b")
    of = claim("up_to")
    assert judge(of, settings(of, found, range(6))).mean == 0.0


@pytest.mark.parametrize("kind", ["value", "range", "up_to", "at_least"])
@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (1.0, 0.1, "reproduced"),
        (0.1, 0.09, "reproduced"),
        (0.1, 0.2, "inconclusive"),
        (-0.2, 0.1, "contradicted"),
    ],
)
def test_away_from_the_papers_operating_point_a_number_is_a_direction(
    kind: str, mean: float, half: float, expected: str
) -> None:
    found = seen(claim(kind), mean, half, off=True)
    assert (found.verdict, found.judged_as) == (expected, "direction")
    assert found.effect == pytest.approx(mean)  # the number is shown beside it


@pytest.mark.parametrize("of", [claim("at_most", "lower", paper={"value": 10.0}), claim("exact")])
def test_a_bound_or_a_count_of_another_operating_point_is_not_judged(of: Claim) -> None:
    for value in (10.0, 99.0):
        found = judge(of, [certain(value)], {"gpu": "another"})
        assert (found.verdict, found.reason) == (
            "inconclusive",
            "another operating point, at which no number is judged",
        )


def test_a_direction_stays_one_wherever_it_is_judged() -> None:
    assert seen(claim("direction"), 0.1, 0.05, off=True).judged_as == "direction"


@pytest.mark.parametrize("kind", ["value", "up_to", "at_least", "direction"])
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_baseline_never_passes_as_the_method(kind: str, better: str) -> None:
    if (kind, better) == ("at_least", "lower"):
        return
    number = {} if kind == "direction" else {"value": 6.0 if better == "higher" else 3.0}
    number |= {} if kind == "direction" else {"baseline": 3.0 if better == "higher" else 6.0}
    of = claim(kind, better, no_effect={"metric": "m"}, paper=number)
    of = of.model_copy(update={"paper": of.paper.model_copy(update={"value": number.get("value")})})
    found = Observations()
    for seed in range(5):
        found.add("m", 3.0 + seed, seed)
    verdict = judge(of, settings(of, found, range(5)))
    assert verdict.verdict not in UPHELD and verdict.effect == pytest.approx(0.0)


def test_over_a_baseline_the_ratio_is_judged_against_the_papers_ratio() -> None:
    of = claim(better="lower", no_effect={"metric": "rival"}, paper={"value": 3.0, "baseline": 6.0})
    found = Observations()
    for seed in range(5):
        found.add("m", 4.0 + seed, seed)
        found.add("rival", 2.0 * (4.0 + seed), seed)
    verdict = judge(of, settings(of, found, range(5)))
    assert (verdict.verdict, verdict.mean, verdict.effect) == (
        "reproduced",
        pytest.approx(2.0),
        pytest.approx(1.0),
    )


# ---- scales


def test_a_ratio_has_its_geometric_mean_and_a_skewed_interval() -> None:
    found = judge(ratio(), [sample([1.6, 2.0, 2.5])])
    assert found.mean == pytest.approx(2.0)
    assert found.interval is not None and found.interval[0] * found.interval[1] == pytest.approx(4.0)


def test_one_huge_ratio_among_losses_is_no_gain() -> None:
    """The arithmetic mean of these is 2."""
    assert judge(ratio(), [sample([0.5] * 4 + [8.0])]).verdict not in UPHELD


def test_what_is_left_of_a_score_decides() -> None:
    score = claim(no_effect=0.9, left=True, paper={"value": 0.99, "unit": "accuracy"})
    assert judge(score, [certain(0.99)]).verdict == "reproduced"
    assert (
        judge(score, [certain(0.95)]).verdict == "weaker"
    )  # more than half of the way, a ninth of the effect
    assert judge(score, [certain(1.0)]).verdict == "stronger"
    assert judge(score, [certain(0.89)]).verdict == "contradicted"


def test_two_seeds_and_ten_settings_of_a_score_are_judged_at_all() -> None:
    score = claim("up_to", no_effect=0.9, left=True, paper={"value": 0.99, "unit": "accuracy"})
    assert judge(score, [sample([0.1, 1.0])] * 10).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [(1.5, "reproduced"), (2.0, "reproduced"), (20.0, "reproduced"), (0.5, "inconclusive")],
)
def test_of_a_ratio_over_a_floor_only_that_it_is_a_gain_can_be_decided(bound: float, verdict: str) -> None:
    values = tuple(bound * (1 + 0.001 * seed) for seed in range(5))
    found = judge(ratio(), [Sample(values, tuple(range(5)), capped=1)])
    assert (found.verdict, found.judged_as, found.capped) == (verdict, "direction", True)
    if verdict == "inconclusive":
        assert found.reason == "the rival stands on a floor: only a bound is known"


def test_capped_ratios_are_marked() -> None:
    found = judge(ratio(), [Sample((2.0, 2.0), (0, 1), capped=1)])
    assert found.marks == ("capped in 1 of 2: the true ratio is larger",)


def test_not_run_has_a_reason_and_nothing_else() -> None:
    found = not_run("needs a GPU")
    assert (found.verdict, found.reason, found.values, found.mean) == ("not run", "needs a GPU", (), None)


# ---- what never changes a verdict, or never for the better

KINDS = ("value", "range", "up_to", "at_least", "direction", "parity", "at_most")
MEANS = st.floats(-1.0, 3.0).map(lambda x: round(x, 3))
NOISE = st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=12)


def centred(noise: Sequence[float]) -> list[float]:
    mean = math.fsum(noise) / len(noise)
    return [x - mean for x in noise]


def verdict_at(of: Claim, mean: float, noise: Sequence[float], width: float) -> str:
    """With values at mean + width x noise on the coordinate on which means are taken."""
    scale = scale_of(of)
    stretch = 1.0 if scale.left or scale.logarithmic else 10.0
    sign = -1.0 if of.better == "lower" and of.paper.kind != "at_most" else 1.0
    values = [scale.value(sign * stretch * (mean + width * x)) for x in noise]
    return judge(of, [sample(values)] * (3 if of.paper.kind == "up_to" else 1)).verdict


SUBJECTS = [
    *(claim(kind) for kind in KINDS if kind != "at_most"),
    *(claim(kind, "lower") for kind in KINDS if kind not in ("at_least", "at_most")),
    *(ratio(kind) for kind in KINDS if kind != "at_most"),
    claim("at_most", "lower", paper={"value": 10.0}),
    claim("direction", least=LEAST),
    WIDE,
    claim(resolution=3.0),
    claim("range", paper={"low": 0.5, "high": 19.5}),
    claim(no_effect=0.8, left=True, paper={"value": 0.9, "unit": "accuracy"}),
]


@given(st.sampled_from(SUBJECTS), MEANS, NOISE, st.floats(0.0, 2.0), st.floats(1.0, 20.0))
def test_wider_values_about_the_same_mean_never_flatter(
    of: Claim, mean: float, noise: list[float], width: float, times: float
) -> None:
    at = centred(noise)
    assume(max(at) > 1e-3)
    narrow, wide = verdict_at(of, mean, at, width), verdict_at(of, mean, at, width * times + 1e-6)
    assert wide == narrow or wide not in UPHELD


@given(
    st.sampled_from(("value", "range", "up_to", "at_least", "direction", "parity")),
    st.integers(-30, 60).map(lambda x: x / 20 + 0.01),
    NOISE,
    st.sampled_from((1e-3, 0.25, 1.0, 60.0, 1e6)),
)
def test_other_units_change_nothing(kind: str, mean: float, noise: list[float], factor: float) -> None:
    paper = {"low": 8 * factor, "high": 12 * factor} if kind == "range" else {"value": 10 * factor}
    paper = {} if kind in ("direction", "parity") else paper
    other = claim(kind, paper=paper, margin=10 * factor if kind == "parity" else None)
    values = [10 * (mean + 0.3 * x) for x in centred(noise)]
    ours = judge(claim(kind), [sample(values)])
    theirs = judge(other, [sample([factor * x for x in values])])
    edge = ours.effect_interval is not None and min(abs(x) for x in ours.effect_interval) < 1e-5
    assume(not edge)  # on no_effect itself, rounding decides
    assert theirs.verdict == ours.verdict
    if kind not in ("direction", "parity"):
        assert theirs.effect == pytest.approx(ours.effect, abs=1e-9)
        assert theirs.seeds_needed == ours.seeds_needed


@given(st.sampled_from(("value", "range", "up_to", "direction", "parity")), MEANS, NOISE)
def test_lower_is_higher_in_a_mirror(kind: str, mean: float, noise: list[float]) -> None:
    values = [10 * (mean + 0.3 * x) for x in centred(noise)]
    ours = judge(claim(kind), [sample(values)])
    mirrored = judge(claim(kind, "lower"), [sample([-x for x in values])])
    assert mirrored.verdict == ours.verdict and mirrored.half_width == pytest.approx(ours.half_width)


@given(
    st.sampled_from(("value", "range", "up_to", "at_least", "direction", "parity")),
    st.integers(-30, 60).map(lambda x: x / 20 + 0.01),
    NOISE,
    st.integers(-1000, 1000),
)
def test_a_constant_on_metric_and_no_effect_changes_nothing(
    kind: str, mean: float, noise: list[float], constant: float
) -> None:
    paper = {"low": 8 + constant, "high": 12 + constant} if kind == "range" else {"value": 10 + constant}
    paper = {} if kind in ("direction", "parity") else paper
    moved = claim(kind, no_effect=float(constant), paper={k: float(v) for k, v in paper.items()})
    values = [10 * (mean + 0.3 * x) for x in centred(noise)]
    ours, theirs = (
        judge(claim(kind), [sample(values)]),
        judge(moved, [sample([x + constant for x in values])]),
    )
    ends = ours.effect_interval or (1.0, 1.0)
    assume(all(abs(end - line) > 1e-6 for end in ends for line in (0.0, 0.4, 0.5, 1.0)))
    assume(ours.half_width is None or min(abs(ours.half_width - w) for w in (0.25, 0.5)) > 1e-6)
    assert theirs.verdict == ours.verdict


@given(st.sampled_from(SUBJECTS), MEANS, NOISE, st.randoms())
def test_the_order_of_seeds_changes_nothing(of: Claim, mean: float, noise: list[float], random: Any) -> None:
    shuffled = list(noise)
    random.shuffle(shuffled)
    assert verdict_at(of, mean, noise, 0.3) == verdict_at(of, mean, shuffled, 0.3)


@given(NOISE.filter(lambda noise: len(set(noise)) > 1), st.integers(1, 6))
def test_settings_that_are_worse_never_help(noise: list[float], more: int) -> None:
    of = claim("up_to")
    best = sample([10 * (1.0 + 0.3 * x) for x in centred(noise)])
    alone, among = judge(of, [best]), judge(of, [best, *[sample([-50.0] * len(noise))] * more])
    assert among.mean == alone.mean and (among.half_width or 0) >= (alone.half_width or 0)
    assert among.verdict == alone.verdict or among.verdict not in UPHELD
