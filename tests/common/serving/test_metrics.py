"""Objectives and rates on traces small enough to do by hand."""

import math

import numpy as np
import pytest

from common.serving.metrics import (
    goodput,
    keeps_pace,
    normalised_latency,
    slowest_running_rate,
    token_gaps,
)
from common.serving.trace import Trace


def trace(*times, arrival=0.0, started=0.0):
    """A trace whose requests gave their tokens at `times`."""
    n = len(times)
    rows = tuple(np.array(row, dtype=float) for row in times)
    return Trace(
        np.full(n, arrival),
        np.ones(n, dtype=np.int64),
        np.array([len(row) for row in rows]),
        np.array([row[0] for row in rows]),
        np.array([row[-1] for row in rows]),
        np.zeros(n, dtype=np.int64),
        rows,
        np.full(n, started),
    )


def test_gaps_are_pooled_over_requests_and_skip_the_first_token():
    assert token_gaps(trace([5, 6, 8], [1], [2, 9])).tolist() == [1, 2, 7]


def test_gaps_of_an_unrecorded_trace_are_refused():
    whole = trace([1, 2])
    bare = Trace(
        whole.arrival, whole.prompt, whole.output, whole.first_token, whole.finish, whole.preemptions
    )
    with pytest.raises(ValueError, match="records_tokens=True"):
        token_gaps(bare)


def test_normalised_latency_is_seconds_a_token():
    assert normalised_latency(trace([3, 4, 6], [8], arrival=2.0)).tolist() == [4 / 3, 6]


def test_pace_needs_short_gaps_and_a_short_queue():
    steady = trace(np.arange(1, 1002))
    assert keeps_pace(steady, tbt=1.0)
    assert not keeps_pace(steady, tbt=0.99)
    assert not keeps_pace(trace(np.arange(1, 1002), started=2.5), tbt=1.0), "scheduled after 2.5 s"
    stalls = trace(np.cumsum([1.0] * 985 + [50.0] * 16))
    assert not keeps_pace(stalls, tbt=1.0), "1.6% of the gaps are stalls"
    assert keeps_pace(stalls, tbt=1.0, quantile=0.98)


def test_the_slowest_running_rate_follows_the_average_of_gaps():
    assert slowest_running_rate(np.array([0, 0.5, 1.0, 1.5]), 0.2) == pytest.approx(2.0)
    # averages of the gaps 1, 1, 3, 1 with weight 1/2 on the newest: 1, 1, 2, 1.5
    assert slowest_running_rate(np.array([0, 1, 2, 5, 6.0]), 0.5) == pytest.approx(1 / 2)
    assert slowest_running_rate(np.array([0, 1, 2, 5, 6.0]), 1.0) == pytest.approx(1 / 3)
    assert slowest_running_rate(np.array([4.0]), 0.2) == math.inf
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        slowest_running_rate(np.array([0, 1.0]), 0.0)


@pytest.mark.parametrize("limit", [0.037, 1.0, 61.8])
@pytest.mark.parametrize("start", [0.01, 1.0, 100.0])
def test_goodput_finds_the_limit_from_any_start(limit, start):
    found = goodput(lambda rate: rate <= limit, start, resolution=0.01)
    assert found <= limit <= found * 1.01


def test_goodput_says_when_nothing_or_everything_is_sustained():
    assert goodput(lambda rate: False, 1.0) == 0.0
    assert goodput(lambda rate: True, 1.0, highest=50.0) == 50.0


@pytest.mark.parametrize("resolution", [0.0, -0.1, math.nan])
def test_a_resolution_that_no_bisection_reaches_is_refused(resolution):
    with pytest.raises(ValueError, match="never reached"):
        goodput(lambda rate: rate <= 3, 1.0, resolution)
