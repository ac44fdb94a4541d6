"""The two real processes, and the fit with which the simulator predicts them."""

from dataclasses import replace

import numpy as np
import pytest

from common.distributed.launch import launch
from common.lab.runtime import Observations, Runtime
from papers.distserve.config import Config
from papers.distserve.simulator_check import (
    CALIBRATION,
    LADDER,
    WRONG,
    Fit,
    RealRun,
    bias,
    capacity,
    check_simulator,
    draw_load,
    fit_latency,
    fit_without,
    ladder,
    measure,
    observed,
    percent,
    perturbed,
    predict,
    scatter,
)
from papers.distserve.two_process import (
    Beside,
    Channels,
    Limits,
    Load,
    Served,
    build_model,
    decode,
    prefill,
    prompt_tokens,
    serve_colocated,
    serve_decode,
    serve_prefill,
)


@pytest.fixture(scope="module")
def measured():
    load = draw_load(np.random.default_rng(0), 5)
    load.output[3] = 1  # ends with its prefill
    return measure({CALIBRATION: draw_load(np.random.default_rng(1), 12), 0: load}, (0.5,))


def alone(load, index):
    """The greedy tokens of a request that nobody disturbs."""
    model = build_model()
    tokens, caches = prefill(
        model, [prompt_tokens(index, load.prompt[index])], [load.prompt[index] + load.output[index]]
    )
    while len(tokens) < load.output[index]:
        tokens += decode(model, tokens[-1:], caches)
    return tokens


def test_both_systems_give_every_request_the_tokens_it_would_get_alone(measured):
    load = measured[4].load
    tokens = [alone(load, index) for index in range(len(load.prompt))]
    for run in measured[4:]:
        assert run.served.tokens == tokens, run.system


def test_time_stamps_are_in_order(measured):
    for run in measured:
        trace = observed(run)
        assert np.all(trace.ttft > 0)
        assert np.all((trace.tpot > 0) == (trace.output > 1))


def test_a_fit_to_other_runs_predicts_the_order_of_magnitude_of_a_run(measured):
    for run in measured[4:]:
        ratio = np.median(observed(run).ttft) / np.median(predict(run, fit_without(measured, run)).ttft)
        assert 0.2 < ratio < 5, f"{run.system}: measured over predicted TTFT is {ratio:.2f} on a busy machine"


def test_a_run_never_fits_itself(measured):
    with pytest.raises(ValueError, match="CALIBRATION"):
        fit_without([measured[4]], measured[4])


def test_a_run_is_judged_on_its_own_scatter_a_wrong_fit_and_a_guess(measured):
    config, seen = Config(real_requests=20, real_levels=[0.5]), Observations()
    kept = {("distserve: real runs", 20, (0.5,), (0,)): measured}
    check_simulator(config, Runtime((0,), workers=1, kept=kept), seen)
    for metric in ("simulator_bias", "repeat_scatter", "wrong_fit_bias", "constant_guess_bias"):
        assert len(seen.values(metric)) == 1
    assert (
        len(seen.rows("real_attainment")) == 2 * len(seen.rows("predicted_attainment")) == 2 * 2 * len(LADDER)
    )
    wrong = Observations()
    check_simulator(replace(config, perturb=WRONG), Runtime((0,), workers=1, kept=kept), wrong)
    assert wrong.values("simulator_bias") == seen.values("wrong_fit_bias"), "the control is the wrong fit"


def tight_memory(rank, world, load):
    """Serve with room for two requests in each process; returns tokens and how many finished."""
    limits = Limits(prefill_tokens=64, max_sequences=2, kv_tokens=120)
    model, channels = build_model(), Channels()
    if rank == 0:
        serve_prefill(model, load, limits, 0.0, channels)
        return serve_colocated(model, load, limits, 0.0).tokens
    return serve_decode(model, load, limits, 0.0, channels).tokens


def test_a_full_decode_process_holds_back_prefill_and_loses_nothing():
    load = Load([0.0] * 6, [40] * 6, [12] * 6)
    colocated, disaggregated = launch(tight_memory, 2, (load,), seconds=120)
    assert disaggregated == colocated
    assert [len(tokens) for tokens in disaggregated] == [12] * 6


def test_the_fit_recovers_the_coefficients_it_was_made_from():
    prefills = [
        ((n, m), 0.003 + 1e-4 * (n + m) + 2e-7 * (n * n + m * m)) for n in (16, 64, 256) for m in (8, 128)
    ]
    decodes = [((n, n * c), 0.004 + 2e-6 * n * c + 5e-4 * n) for n in (1, 4, 16) for c in (32, 256)]
    fit = fit_latency(prefills, decodes)
    assert fit.prefill == pytest.approx((0.003, 1e-4, 2e-7))
    assert fit.decode_small == fit.decode_large == pytest.approx((0.004, 2e-6, 5e-4))


def test_a_coefficient_is_never_negative():
    prefills = [((n,), 0.01 + 1e-4 * n - 1e-8 * n * n) for n in (16, 64, 256, 384)]
    fit = fit_latency(prefills, [((n, 32 * n), 0.001 * n) for n in (1, 2, 4)])
    assert min(*fit.prefill, *fit.decode_small) >= 0


FIT = Fit(
    fit_latency(
        [((n,), 0.004 + 1e-4 * n + 1e-7 * n * n) for n in (16, 64, 256, 384)],
        [((n, n * c), 0.004 + 1e-6 * n * c + 4e-4 * n) for n in (1, 4, 16) for c in (32, 256)],
    ),
    copy_seconds=3e-4,
    bytes_per_s=1e9,
)


@pytest.mark.parametrize("system", ["colocated", "disaggregated"])
def test_a_system_that_does_as_predicted_has_no_bias_and_a_wrong_fit_has_one(system):
    load = draw_load(np.random.default_rng(1), 200)
    rate = 0.8 * capacity(0.02, 0.009, system)
    timed = Load([at / rate for at in load.arrival], load.prompt, load.output)
    empty = RealRun(system, 0.8, 0, 0, timed, Served([], []), 0.0)
    promises, trace = ladder(FIT), predict(empty, FIT)
    assert percent(trace, promises)[0] < 20 and percent(trace, promises)[-1] > 90, (
        "the ladder spans the range"
    )
    pair = (percent(trace, promises), percent(trace, promises))
    assert bias([percent(trace, promises)], [pair]) == scatter([pair]) == 0
    assert bias([percent(predict(empty, perturbed(FIT, WRONG)), promises)], [pair]) > 5


def test_the_scatter_of_the_real_run_is_no_bias_of_the_simulator():
    """Runs about a truth with a standard deviation of 4 points, a guess of the truth, and one 6 points beside it."""
    rng = np.random.default_rng(0)
    truth = np.full(9, 60.0)
    pairs = [(truth + 4 * rng.standard_normal(9), truth + 4 * rng.standard_normal(9)) for _ in range(2000)]
    assert scatter(pairs) == pytest.approx(4, rel=0.05)
    assert bias([truth] * 2000, pairs) < 1
    assert bias([truth + 6] * 2000, pairs) == pytest.approx(6, rel=0.05)


def test_loads_are_served_in_turn_and_every_run_twice(measured):
    order = [(run.system, run.turn) for run in measured[:4]]
    assert order == [("colocated", 0), ("disaggregated", 0), ("disaggregated", 1), ("colocated", 1)]


def test_a_request_that_never_fits_is_refused():
    with pytest.raises(ValueError, match="150 tokens will never fit in a memory of 100"):
        serve_colocated(build_model(), Load([0.0], [100], [50]), Limits(kv_tokens=100), 0.0)


def test_what_a_helping_thread_raises_is_raised_by_who_started_it():
    def fail():
        raise ConnectionError("the other process is gone")

    with pytest.raises(ConnectionError, match="is gone"):
        Beside(fail).end()


def test_perturbing_changes_the_prefill_slope_alone():
    changed = perturbed(FIT, 1.5)
    assert changed.latency.prefill[1] == 1.5 * FIT.latency.prefill[1]
    assert changed.latency.decode_small == FIT.latency.decode_small
    assert changed.latency.prefill[0] == FIT.latency.prefill[0]
