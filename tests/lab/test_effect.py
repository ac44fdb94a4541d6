"""From rows to one value a seed, and from values to the effect: 0 is nothing, 1 the paper's number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lab.card import Claim
from common.lab.effect import Sample, elsewhere, floors_missed, on_effect, scale_of, settings
from common.lab.errors import LabError
from common.lab.runtime import Observations
from tests.lab.claims import claim, ratio

SCORE = claim(no_effect=0.8, left=True, paper={"value": 0.9, "unit": "accuracy"})
BASELINE = claim(better="lower", no_effect={"metric": "rival"}, paper={"value": 3.0, "baseline": 6.0})


def rows(**metrics: list[float]) -> Observations:
    """One row a seed."""
    found = Observations()
    for metric, values in metrics.items():
        for seed, value in enumerate(values):
            found.add(metric, value, seed)
    return found


@pytest.mark.parametrize(
    ("of", "nothing", "half", "paper"),
    [
        (claim(), 0.0, 5.0, 10.0),
        (claim(better="lower", no_effect=20.0, paper={"value": 10.0}), 20.0, 15.0, 10.0),
        (ratio(), 1.0, 1.5, 2.0),
        (ratio(paper={"value": 11.0}), 1.0, 6.0, 11.0),
        (claim("range"), 0.0, 5.0, 10.0),
        (SCORE, 0.8, 1 - 0.2 / 1.5, 0.9),  # the paper leaves half of it: a ratio of 2
    ],
)
def test_effect_is_0_at_nothing_and_1_at_the_papers_number(
    of: Claim, nothing: float, half: float, paper: float
) -> None:
    assert [on_effect(of, x) for x in (nothing, half, paper)] == pytest.approx([0.0, 0.5, 1.0])


@given(st.floats(-0.9, 50.0))
def test_value_is_the_way_back(x: float) -> None:
    for of, value in ((claim(), 10 * x), (ratio(), 1 + x), (SCORE, 1 - 0.2 / (1 + x))):
        scale = scale_of(of)
        assert scale.value(scale.coordinate(value)) == pytest.approx(value)
        assert scale.effect(scale.coordinate(value)) == pytest.approx(x, abs=1e-9)


def test_a_direction_is_the_distance_from_no_effect_in_the_better_direction() -> None:
    assert on_effect(claim("direction"), 3.0) == 3.0
    assert on_effect(claim("direction", "lower"), 3.0) == -3.0
    assert on_effect(ratio("direction"), 1.25) == pytest.approx(0.25)


def test_costs_counts_and_parity_keep_their_value() -> None:
    for of in (claim("at_most", "lower", paper={"value": 3.0}), claim("exact"), claim("invariant")):
        assert on_effect(of, 7.0) == 7.0
    assert on_effect(claim("parity", no_effect=2.0), 7.0) == 5.0


def test_a_ratio_must_be_positive_and_a_score_at_most_1() -> None:
    with pytest.raises(ValueError, match="a ratio must be positive, not 0: observe a floor and say capped"):
        on_effect(ratio(), 0.0)
    with pytest.raises(ValueError, match="at most 1, not 1.5"):
        on_effect(SCORE, 1.5)


def test_a_perfect_score_and_a_hopeless_interval_stay_finite() -> None:
    scale = scale_of(SCORE)
    assert 1e9 < scale.effect(scale.coordinate(1.0)) < math.inf
    for of in (SCORE, ratio()):
        for far in (-1e6, 1e6):
            assert math.isfinite(scale_of(of).value(far)) and math.isfinite(scale_of(of).effect(far))


def test_a_step_is_the_metrics_own_and_of_a_ratio_relative() -> None:
    assert scale_of(claim()).step(8.0, 0.5, relative=False) == (7.75, 8.25)
    assert scale_of(claim()).step(8.0, 0.5, relative=True) == (6.0, 10.0)
    low, high = scale_of(ratio()).step(math.log(2.0), 0.1, relative=True)
    assert math.exp(high - low) == pytest.approx(1.1)


def test_a_step_of_a_score_weighs_more_the_less_is_left() -> None:
    scale = scale_of(SCORE)
    far, near = scale.coordinate(0.5), scale.coordinate(0.985)
    for at, value in ((far, 0.5), (near, 0.985)):
        low, high = scale.step(at, 0.01, relative=False)
        assert (scale.value(low), scale.value(high)) == pytest.approx((value - 0.005, value + 0.005))
    assert scale.step(near, 0.01, False)[1] - near > 20 * (scale.step(far, 0.01, False)[1] - far)
    low, high = scale.step(scale.coordinate(0.999), 0.01, relative=False)
    assert scale.value(high) == pytest.approx(1.0) and scale.effect(high) > 1e9


# ---- settings


def test_one_value_a_seed_in_the_order_of_seeds() -> None:
    found = Observations()
    for seed, value in ((2, 30.0), (0, 10.0), (1, 20.0)):
        found.add("m", value, seed)
    assert settings(claim(), found, (2, 0, 1)) == [Sample((10.0, 20.0, 30.0), (0, 1, 2))]


def test_without_a_seed_there_is_no_chance() -> None:
    found = Observations()
    found.add("m", 4.0)
    assert settings(claim(), found, (0, 1)) == [Sample((4.0,))]
    assert settings(claim(), found)[0].deterministic


def test_not_observed_is_no_sample() -> None:
    assert settings(claim(), Observations()) == []


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([0, 0], "several rows for seed 0"),
        ([None, 0], "rows with a seed and rows without"),
        ([None, None], "several rows for seed None"),
        ([0, 1], "has 2 of 3 seeds"),
        ([0, 1, 7], "it needs a row for each"),
    ],
)
def test_rows_that_are_not_one_a_seed_are_refused(seeds: list[int | None], message: str) -> None:
    found = Observations()
    for seed in seeds:
        found.add("m", 1.0, seed)
    with pytest.raises(LabError, match=message):
        settings(claim(), found, (0, 1, 2))


def models() -> Observations:
    found = Observations()
    for model, base in (("small", 10.0), ("large", 20.0)):
        for seed in (0, 1):
            found.add("m", base + seed, seed, model=model)
            found.add("rival", 2 * base, seed, model=model)
    return found


def test_a_maximum_is_read_at_its_setting_or_at_each() -> None:
    at = claim("up_to", at={"model": "large"})
    assert settings(at, models(), (0, 1)) == [Sample((20.0, 21.0), (0, 1))]
    each = settings(claim("up_to"), models(), (0, 1))
    assert [sample.values for sample in each] == [(10.0, 11.0), (20.0, 21.0)]


def test_a_setting_that_was_not_observed_names_those_that_were() -> None:
    with pytest.raises(LabError, match="at model=huge: m is observed at model=large, model=small"):
        settings(claim("up_to", at={"model": "huge"}), models())


def test_over_a_baseline_seed_by_seed_more_is_better_either_way() -> None:
    found = rows(m=[2.0, 4.0], rival=[6.0, 4.0])
    assert settings(BASELINE, found, (0, 1))[0].values == (3.0, 1.0)
    higher = claim(no_effect={"metric": "rival"}, paper={"value": 6.0, "baseline": 3.0})
    assert settings(higher, found, (0, 1))[0].values == pytest.approx((1 / 3, 1.0))


def test_a_baseline_is_read_at_the_same_setting() -> None:
    of = claim("up_to", no_effect={"metric": "rival"}, paper={"value": 6.0, "baseline": 3.0})
    assert [s.values for s in settings(of, models(), (0, 1))] == [(0.5, 0.55), (0.5, 0.525)]


def test_a_baseline_without_chance_serves_every_seed_and_a_missing_seed_is_refused() -> None:
    found = rows(m=[2.0, 4.0])
    found.add("rival", 8.0)
    assert settings(BASELINE, found)[0].values == (4.0, 2.0)
    short = rows(m=[2.0, 4.0], rival=[6.0])
    with pytest.raises(LabError, match="a seed has no row of the baseline's metric"):
        settings(BASELINE, short)
    with pytest.raises(ValueError, match="must be positive"):
        settings(BASELINE, rows(m=[0.0], rival=[1.0]))


def test_capped_rows_are_counted_on_either_side() -> None:
    found = Observations()
    found.add("m", 2.0, 0, capped=True)
    found.add("m", 2.5, 1)
    assert settings(claim(), found)[0].capped == 1
    found.add("rival", 6.0, 0, capped=True)
    found.add("rival", 6.0, 1, capped=True)
    assert settings(BASELINE, found)[0].capped == 2


# ---- operating point and floors


@pytest.mark.parametrize(
    ("paper", "ours", "off"),
    [
        (4.0, 8.0, False),
        (4.0, 2.0, False),
        (4.0, 8.1, True),
        (4.0, 1.9, True),
        (4.0, -4.0, True),
        (0.0, 0.0, False),
        (0.0, 0.1, True),
        ("A100", "A100", False),
        ("A100", "H100", True),
        (True, False, True),
        (4.0, [1.0, 2.0], False),
        (4.0, [1.0, 16.0], True),
        (4.0, "four", True),
        (4.0, None, True),
    ],
)
def test_operating_point_is_off_beyond_a_factor_of_two_or_by_another_word(
    paper: object, ours: object, off: bool
) -> None:
    of = claim(operating_point={"p": {"paper": paper, "config": "model.size"}})
    tree = {"model": {"size": ours}}
    assert elsewhere(of, tree, Observations()) == {"p": {"paper": paper, "ours": ours, "off": off}}


def test_operating_point_of_a_metric_is_its_mean_where_it_is_read() -> None:
    of = claim(operating_point={"p": {"paper": 10.0, "metric": "m", "at": {"model": "large"}}})
    assert elsewhere(of, {}, models())["p"] == {"paper": 10.0, "ours": 20.5, "off": True}


def test_a_wrong_key_of_the_operating_point_makes_no_direction_of_a_number() -> None:
    for field in ("size", "model.sise", "model.size.more"):
        of = claim(operating_point={"p": {"paper": 4.0, "config": field}})
        with pytest.raises(LabError, match=f"operating_point: the config has no {field}"):
            elsewhere(of, {"model": {"size": 4.0}}, Observations())
    of = claim(operating_point={"p": {"paper": 10.0, "metric": "m", "at": {"model": "huge"}}})
    assert floors_missed(of, models()) == ["m, which decides it, was not observed"]


def test_floors_name_what_was_missed() -> None:
    of = claim(requires={"m": 2.0, "rival": [1.0, 5.0], "tokens": 1e6})
    assert floors_missed(of, rows(m=[2.0, 3.0], rival=[1.0, 5.0], tokens=[2e6])) == []
    assert floors_missed(of, rows(m=[9.0, 1.0], rival=[1.0, 6.0])) == [
        "m is 1, below its floor of 2",
        "rival is 6, above 5",
        "tokens was not observed",
    ]
