"""The cost of copies: the fit recovers known costs and stays near every measured one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.hardware.copies import PCIE4_BYTES_PER_S, CopyCost, Timed, dispatch_seconds, fit, h100, timed

DIRECTIONS = ("h2d", "d2h")


def measured_by(cost: CopyCost) -> Timed:
    calls = np.array([1, 8, 32, 128, 256, 512, 1024, 2048, 4096, 1, 1])
    size = np.array([64 << 20] * 9 + [4 << 20, 1 << 30])
    pairs = zip(calls, size, strict=True)
    return Timed(calls.astype(float), size.astype(float), np.array([cost.seconds(*pair) for pair in pairs]))


@pytest.mark.parametrize(
    "cost",
    [
        CopyCost(50e9, 0.0, 2.5e-6, 1e-5),
        CopyCost(50e9, 3e-6, 0.0, 0.0),
        CopyCost(25e9, 4e-6, 0.5e-6, 2e-5),
    ],
)
def test_the_fit_recovers_the_cost_that_made_the_times(cost: CopyCost) -> None:
    found = fit(measured_by(cost))
    np.testing.assert_allclose(measured_by(cost).errors(found), 0, atol=1e-9)
    assert found.bandwidth == pytest.approx(cost.bandwidth)
    assert found.dispatch + found.per_call == pytest.approx(cost.dispatch + cost.per_call)


@pytest.mark.parametrize("direction, rms, largest", [("h2d", 0.015, 0.03), ("d2h", 0.05, 0.12)])
def test_the_fitted_cost_is_near_every_measured_copy(direction: str, rms: float, largest: float) -> None:
    errors = timed(direction).errors(h100(direction))
    assert len(errors) == 15
    assert np.sqrt(np.mean(errors**2)) < rms
    assert np.abs(errors).max() < largest


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_other_cost_of_the_form_fits_better(direction: str) -> None:
    measured, best = timed(direction), h100(direction)
    least = np.sum(measured.errors(best) ** 2)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        other = CopyCost(
            best.bandwidth * rng.uniform(0.9, 1.1), *(rng.uniform(0, 4e-6, 2)), rng.uniform(0, 4e-5)
        )
        assert np.sum(measured.errors(other) ** 2) >= least * (1 - 1e-9)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_call_costs_about_what_issuing_it_was_measured_to_take(direction: str) -> None:
    cost = h100(direction)
    assert cost.dispatch + cost.per_call == pytest.approx(dispatch_seconds(direction), rel=0.25)


@given(
    calls=st.integers(1, 10**5),
    more=st.integers(0, 10**5),
    size=st.integers(1, 1 << 34),
    larger=st.integers(0, 1 << 34),
)
def test_more_calls_and_more_bytes_never_take_less(calls: int, more: int, size: int, larger: int) -> None:
    for direction in DIRECTIONS:
        cost = h100(direction)
        assert cost.seconds(calls + more, size + larger) >= cost.seconds(calls, size) > 0
        assert cost.over_pcie4().seconds(calls, size) >= cost.seconds(calls, size)
        assert cost.without_calls().seconds(calls, size) == pytest.approx(size / cost.bandwidth + cost.fixed)
        assert cost.with_host_seconds(1e-5).seconds(calls, size) == pytest.approx(
            cost.seconds(calls, size) + calls * 1e-5
        )


def test_nothing_to_copy_costs_nothing() -> None:
    assert h100("h2d").seconds(0, 0) == 0.0


def test_over_pcie_4_large_copies_run_at_its_bandwidth() -> None:
    assert (1 << 40) / h100("d2h").over_pcie4().seconds(1, 1 << 40) == pytest.approx(
        PCIE4_BYTES_PER_S, rel=1e-3
    )


def test_an_unknown_direction_is_named() -> None:
    with pytest.raises(KeyError, match="d2d"):
        timed("d2d")
