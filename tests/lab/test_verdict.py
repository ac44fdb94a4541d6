"""Verdicts: the whole truth table, for claims that are better higher and, mirrored, better lower."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lab.card import Claim, Control, PaperValue
from common.lab.errors import LabError
from common.lab.runtime import Observations
from common.lab.verdict import Verdict, control_holds, judge, sample


def claim(kind: str = "value", better: str = "higher", **changes: Any) -> Claim:
    """A claim whose paper says 2 (or from 2 to 3, or better than 1), with 1 for no effect; mirrored for lower."""
    sign = 1 if better == "higher" else -1
    number: dict[str, float] = {} if kind == "direction" else {"value": sign * 2.0}
    if kind == "range":
        number = {"low": min(sign * 2.0, sign * 3.0), "high": max(sign * 2.0, sign * 3.0)}
    fields: dict[str, Any] = {
        "id": "c",
        "statement": "s",
        "paper": {"kind": kind, "unit": "ratio", "source": "Table 1", **number},
        "metric": "m",
        "evidence": "simulated",
        "better": better,
        "no_effect": sign * 1.0,
        "tolerance": 0.25 if kind in ("value", "up_to") else None,
        "control": "off",
    }
    return Claim.model_validate({**fields, **changes})


def verdict_of(kind: str, better: str, low: float, high: float) -> str:
    """The verdict on an interval given on the axis "better", by means of two values whose interval spans them."""
    sign = 1 if better == "higher" else -1
    values = [sign * low] if low == high else _spanning(sign * low, sign * high)
    return judge(claim(kind, better), values).verdict


def _spanning(a: float, b: float) -> list[float]:
    # the bootstrap means of eleven values at each end reach neither end; so each is judged by its own interval
    return [a] * 11 + [b] * 11


# (low, high) of our interval on the axis "better"; the paper says 2 (band 1.5 to 2.5), nothing gained is 1
POINTS = {
    "value": [
        (0.5, "contradicted"),
        (1.0, "inconclusive"),
        (1.2, "weaker"),
        (1.5, "reproduced"),
        (2.0, "reproduced"),
        (2.5, "reproduced"),
        (2.6, "stronger"),
    ],
    "at_least": [
        (0.5, "contradicted"),
        (1.0, "inconclusive"),
        (1.9, "weaker"),
        (2.0, "reproduced"),
        (9.0, "reproduced"),
    ],
    "range": [
        (0.5, "contradicted"),
        (1.0, "inconclusive"),
        (1.9, "weaker"),
        (2.0, "reproduced"),
        (3.0, "reproduced"),
        (3.1, "stronger"),
    ],
    "exact": [
        (0.5, "contradicted"),
        (1.0, "inconclusive"),
        (1.9, "weaker"),
        (2.0, "reproduced"),
        (2.1, "stronger"),
    ],
    "direction": [(0.5, "contradicted"), (1.0, "inconclusive"), (1.1, "reproduced"), (99.0, "reproduced")],
}
POINTS["up_to"] = POINTS["value"]


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize(
    ("kind", "value", "expected"), [(k, v, e) for k, rows in POINTS.items() for v, e in rows]
)
def test_every_kind_judges_a_single_value_by_where_it_lies(
    kind: str, better: str, value: float, expected: str
) -> None:
    mirrored = {"at_least": "at_most"}.get(kind, kind) if better == "lower" else kind
    assert verdict_of(mirrored, better, value, value) == expected


INTERVALS = {
    "value": [
        ((0.2, 0.8), "contradicted"),
        ((0.8, 1.2), "inconclusive"),
        ((1.1, 1.4), "weaker"),
        ((1.1, 1.6), "reproduced"),  # reaches into the band
        ((1.2, 2.9), "reproduced"),  # covers the band
        ((2.4, 9.0), "reproduced"),
        ((2.6, 9.0), "stronger"),
        ((0.9, 2.0), "inconclusive"),  # reaches the band, but nothing gained is as possible
        ((0.5, 9.0), "inconclusive"),
    ],
    "at_least": [
        ((0.2, 0.8), "contradicted"),
        ((0.8, 2.5), "inconclusive"),
        ((1.2, 1.9), "weaker"),
        ((1.2, 2.5), "weaker"),  # a bound is met by the whole interval or not
        ((2.1, 2.5), "reproduced"),
    ],
    "range": [
        ((0.2, 0.8), "contradicted"),
        ((0.8, 2.5), "inconclusive"),
        ((1.2, 2.5), "weaker"),
        ((1.2, 9.0), "weaker"),
        ((2.1, 2.9), "reproduced"),
        ((2.1, 3.5), "stronger"),  # nowhere short of the range, in part beyond it
        ((3.1, 3.5), "stronger"),
    ],
    "exact": [
        ((0.2, 0.8), "contradicted"),
        ((0.8, 2.5), "inconclusive"),
        ((1.2, 2.5), "weaker"),
        ((2.0, 2.5), "stronger"),
    ],
    "direction": [((0.2, 0.8), "contradicted"), ((0.8, 9.0), "inconclusive"), ((1.1, 9.0), "reproduced")],
}


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize(
    ("kind", "interval", "expected"), [(k, i, e) for k, rows in INTERVALS.items() for i, e in rows]
)
def test_every_kind_judges_an_interval_by_where_its_ends_lie(
    kind: str, better: str, interval: tuple[float, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = 1 if better == "higher" else -1
    ends = sorted(sign * end for end in interval)
    monkeypatch.setattr("common.lab.verdict._interval", lambda values: tuple(ends))
    mirrored = {"at_least": "at_most"}.get(kind, kind) if better == "lower" else kind
    assert judge(claim(mirrored, better), ends).verdict == expected


def test_a_ratio_of_equal_sums_is_no_effect_in_spite_of_rounding() -> None:
    assert judge(claim(), [1.0 + 4e-16]).verdict == "inconclusive"
    assert judge(claim(), [1.0 - 4e-16]).verdict == "inconclusive"
    assert judge(claim("direction"), [1.0 + 1e-6]).verdict == "reproduced"


def test_the_interval_is_of_the_mean_and_narrows_with_seeds() -> None:
    few, many = judge(claim(), [1.8, 2.2] * 3), judge(claim(), [1.8, 2.2] * 50)
    assert few.interval is not None and many.interval is not None
    assert few.interval[0] < 2.0 < few.interval[1]
    assert many.interval[1] - many.interval[0] < (few.interval[1] - few.interval[0]) / 2
    # 95% of the mean of 100 values with deviation 0.2: 2 x 1.96 x 0.2 / sqrt(100)
    assert math.isclose(many.interval[1] - many.interval[0], 0.0784, rel_tol=0.1)


def test_one_seed_and_a_deterministic_metric_say_so() -> None:
    assert judge(claim(), [2.0]).note == "one seed"
    assert judge(claim(), [2.0], deterministic=True).note == "deterministic"
    assert judge(claim(), [2.0, 2.1]).note == ""
    assert judge(claim(), [2.0]).interval == (2.0, 2.0)


@pytest.mark.parametrize("values", [[], [math.nan], [2.0, math.inf]])
def test_no_verdict_without_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        judge(claim(), values)


@given(
    kind=st.sampled_from(["value", "up_to", "at_least", "range", "exact", "direction"]),
    value=st.floats(-10, 10, allow_nan=False),
)
def test_lower_is_the_mirror_image_of_higher(kind: str, value: float) -> None:
    mirror = {"at_least": "at_most"}.get(kind, kind)
    higher = judge(claim(kind), [value]).verdict
    assert judge(claim(mirror, "lower"), [-value]).verdict == higher


ORDER = ["contradicted", "inconclusive", "weaker", "reproduced", "stronger"]


@given(
    kind=st.sampled_from(["value", "up_to", "at_least", "range", "exact", "direction"]),
    values=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
)
def test_a_better_value_never_gets_a_worse_verdict(kind: str, values: tuple[float, float]) -> None:
    worse, better = (ORDER.index(judge(claim(kind), [value]).verdict) for value in sorted(values))
    assert worse <= better


# --- values of a claim's metric ---------------------------------------------------------------------------------


def test_a_claim_reads_one_value_a_seed() -> None:
    seen = Observations()
    for seed, value in ((0, 2.0), (1, 3.0)):
        seen.add("m", value, seed)
    found = sample(claim(), seen, seeds=(0, 1))
    assert found is not None and found.values == (2.0, 3.0) and found.seeds == (0, 1)
    seen.add("m", 4.0, 1, rate=2)
    with pytest.raises(LabError, match="claim c: metric m has 2 rows for seed 1"):
        sample(claim(), seen)


@pytest.mark.parametrize(("better", "best"), [("higher", (3.0, 5.0)), ("lower", (-3.0, -5.0))])
def test_up_to_takes_each_seeds_best_setting(better: str, best: tuple[float, float]) -> None:
    sign = 1 if better == "higher" else -1
    seen = Observations()
    for seed, rate, value in ((0, 1, 1.0), (0, 2, 3.0), (1, 1, 5.0), (1, 2, 4.0)):
        seen.add("m", sign * value, seed, rate=rate)
    found = sample(claim("up_to", better), seen)
    assert found is not None and found.values == best


def test_a_metric_that_was_not_observed_has_no_sample() -> None:
    assert sample(claim(), Observations()) is None


def test_a_missing_seed_is_an_error_and_so_are_rows_with_and_without_one() -> None:
    seen = Observations()
    seen.add("m", 2.0, 0)
    with pytest.raises(LabError, match="no value for seed 1, 2"):
        sample(claim(), seen, seeds=(0, 1, 2))
    seen.add("m", 2.0)
    with pytest.raises(LabError, match="with a seed and rows without"):
        sample(claim(), seen)


def test_a_deterministic_metric_has_no_seeds() -> None:
    seen = Observations()
    seen.add("m", 2.0)
    found = sample(claim(), seen, seeds=(0, 1))
    assert found is not None and found.seeds == () and found.values == (2.0,)


# --- negative controls ------------------------------------------------------------------------------------------

WHOLE = Control.model_validate({"set": {"on": False}, "why": "w"})
PARTIAL = Control.model_validate({"set": {"on": False}, "why": "w", "partial": True, "reason": "r"})


@pytest.mark.parametrize(
    ("verdict", "holds"),
    [
        ("reproduced", False),
        ("stronger", False),
        ("weaker", False),
        ("inconclusive", True),
        ("contradicted", True),
        ("not run", False),
    ],
)
def test_a_control_holds_where_nothing_of_the_claim_is_upheld(verdict: Any, holds: bool) -> None:
    ours, theirs = Verdict("reproduced", mean=2.0), Verdict(verdict, mean=1.9)
    assert control_holds(claim(), WHOLE, ours, theirs) is holds


@pytest.mark.parametrize(("left", "holds"), [(1.51, False), (1.5, True), (1.2, True)])
def test_a_partial_control_holds_where_half_of_the_effect_is_lost(left: float, holds: bool) -> None:
    for better, sign in (("higher", 1), ("lower", -1)):
        ours, theirs = Verdict("reproduced", mean=sign * 2.0), Verdict("weaker", mean=sign * left)
        assert control_holds(claim(better=better), PARTIAL, ours, theirs) is holds
        assert control_holds(claim(better=better), WHOLE, ours, theirs) is False


def test_a_partial_control_of_no_effect_must_break_the_claim_whole() -> None:
    ours, theirs = Verdict("contradicted", mean=0.5), Verdict("weaker", mean=1.2)
    assert control_holds(claim(), PARTIAL, ours, theirs) is False


def test_paper_values_know_their_kind() -> None:
    assert PaperValue(kind="direction").number is None
    assert claim("range").paper.number == [2.0, 3.0]
