"""Workloads against closed forms, and the committed quantile tables against the traces they were made of."""

import numpy as np
import pytest
from scipy import stats

from common import data
from common.serving import length_quantiles
from common.serving.workload import (
    QUANTILES,
    SYNTHETIC,
    TABLED,
    Lengths,
    Workload,
    draw_lengths,
    gamma,
    joined_turns,
    poisson,
    quantile_lengths,
    read_arrivals,
    read_trace,
    replayed,
)

TRACES = {  # name of the table -> data set it was made of
    "sharegpt": "nanoflow-sharegpt-lengths",
    "lmsys": "nanoflow-lmsys-lengths",
    "azure-conversation": "azure-2023-conversation",
    "azure-code": "azure-2023-code",
    "arxiv-summarisation": "arxiv-summarisation-lengths",
}


def rng(seed=0):
    return np.random.default_rng(seed)


def trace_file(name):
    path = data.find(TRACES.get(name, name))
    if path is None:
        pytest.skip(f"the data set of {name} is not on this machine")
    return path


def requests(arrival, prompt=None, output=None):
    ones = np.ones(len(arrival), dtype=int)
    return Workload(np.array(arrival), ones if prompt is None else prompt, ones if output is None else output)


# Workloads


@pytest.mark.parametrize(
    ("arrival", "prompt", "output", "reason"),
    [
        ([0.0, 1.0], [1, 1], [1], "equally long"),
        ([1.0, 0.0], [1, 1], [1, 1], "ascending"),
        ([-1.0, 0.0], [1, 1], [1, 1], "non-negative"),
        ([0.0, np.nan], [1, 1], [1, 1], "finite"),
        ([0.0, 1.0], [0, 1], [1, 1], "at least one prompt token"),
        ([0.0, 1.0], [1, 1], [1, 0], "one output token"),
        ([0.0, 1.0], [1, 1], [1, 2.5], "output: lengths must be whole"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(arrival, prompt, output, reason):
    with pytest.raises(ValueError, match=reason):
        Workload(np.array(arrival), np.array(prompt), np.array(output))


def test_types_are_the_same_whatever_is_passed():
    load = Workload([0, 1], [3.0, 4.0], np.array([1, 2], dtype=np.int16))  # type: ignore[arg-type]
    assert (load.arrival.dtype, load.prompt.dtype, load.output.dtype) == (np.float64, np.int64, np.int64)
    assert len(load) == 2


def test_scaling_speeds_arrivals_up_and_touches_no_request():
    load = requests(poisson(rng(), 500), prompt=rng(1).integers(1, 9, 500))
    fast = load.scaled(4.0)
    assert fast.arrival == pytest.approx(load.arrival / 4)
    assert np.array_equal(fast.prompt, load.prompt)
    with pytest.raises(ValueError, match="positive"):
        load.scaled(0)


# Arrivals


def test_poisson_gaps_are_exponential_at_unit_rate():
    gaps = np.diff(poisson(rng(), 20_000), prepend=0)
    assert stats.kstest(gaps, "expon").pvalue > 0.01


@pytest.mark.parametrize("cv", [0.25, 1.0, 3.0])
def test_gamma_gaps_have_unit_mean_and_the_asked_variation(cv):
    gaps = np.diff(gamma(rng(1), 200_000, cv), prepend=0)
    assert gaps.mean() == pytest.approx(1, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    at = np.array([0.1, 0.5, 1, 3])  # not a KS test: sums of 200,000 swallow gaps below 1e-11
    share = [np.mean(gaps <= x) for x in at]
    assert share == pytest.approx(stats.gamma(1 / cv**2, scale=cv**2).cdf(at), abs=0.01)


def test_gamma_without_variation_is_refused():
    with pytest.raises(ValueError, match="positive"):
        gamma(rng(), 5, 0)


def test_replayed_arrivals_keep_their_pattern_at_unit_rate():
    assert replayed(np.array([10.0, 10.0, 16.0, 99.0]), 3) == pytest.approx([0, 0, 2])  # 2 gaps in 6 seconds
    assert replayed(np.array([3.0, 1.0, 2.0]), 3) == pytest.approx([0, 1, 2])
    with pytest.raises(ValueError, match="holds 2 arrivals, 3"):
        replayed(np.array([1.0, 2.0]), 3)


# Trace files


def write(path, text):
    path.write_text(text)
    return path


def test_both_layouts_of_trace_files_are_read(tmp_path):
    one = write(tmp_path / "a.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n5.0,7,2\n6.5,9,3\n")
    other = write(
        tmp_path / "b.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,7,2\n2023-11-16 18:15:48.1805900,9,3\n",
    )
    for path in (one, other):
        lengths = read_trace(path)
        assert (lengths.prompt.tolist(), lengths.output.tolist()) == ([7, 9], [2, 3])
        assert read_arrivals(path) == pytest.approx([0, 1.5])


def test_a_trace_without_times_says_so(tmp_path):
    path = write(tmp_path / "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nXXX,7,2\n")
    assert len(read_trace(path).prompt) == 1
    with pytest.raises(ValueError, match="has no arrival times"):
        read_arrivals(path)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "num_prefill_tokens,num_decode_tokens\n"])
def test_a_file_that_is_no_trace_is_refused_with_the_columns_it_needs(tmp_path, text):
    with pytest.raises(ValueError, match="num_prefill_tokens and num_decode_tokens"):
        read_trace(write(tmp_path / "a.csv", text))


def test_a_length_that_is_no_number_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "num_prefill_tokens,num_decode_tokens\n1,x\n")
    with pytest.raises(ValueError, match="no whole numbers.*'x'"):
        read_trace(path)


def test_the_two_copies_of_the_azure_trace_agree():
    one, other = trace_file("azure-conversation"), trace_file("nanoflow-azure-conversation")
    assert np.array_equal(read_trace(one).prompt, read_trace(other).prompt)
    assert np.allclose(read_arrivals(one), read_arrivals(other), atol=1e-5)


def test_filtering_keeps_requests_below_the_limit_only():
    kept = Lengths(np.array([5, 6, 0, 5]), np.array([4, 4, 4, 0])).within(10)
    assert (kept.prompt.tolist(), kept.output.tolist()) == ([5], [4])


def test_drawing_from_a_trace_keeps_pairs_together():
    lengths = Lengths(np.arange(1, 100), 1000 + np.arange(1, 100))
    drawn = lengths.sample(rng(), 500)
    assert np.array_equal(drawn.output - drawn.prompt, np.full(500, 1000))


# Lengths without a trace at hand


@pytest.mark.parametrize("trace", TRACES)
def test_embedded_lengths_follow_the_trace(trace):
    real = read_trace(trace_file(trace)).within(TABLED)
    drawn = draw_lengths(trace, rng(), 40_000)
    for name in ("prompt", "output"):
        ours, theirs = getattr(drawn, name), getattr(real, name)
        assert ours.mean() == pytest.approx(theirs.mean(), rel=0.03)
        assert stats.ks_2samp(ours, theirs).statistic < 0.02
    ranks = (stats.spearmanr(one.prompt, one.output).statistic for one in (drawn, real))
    assert np.subtract(*ranks) == pytest.approx(0, abs=0.16)


def test_the_committed_tables_are_what_the_traces_give():
    assert length_quantiles.table({name: trace_file(name) for name in TRACES}) == QUANTILES.read_text()


@pytest.mark.parametrize("trace", TRACES)
def test_prompt_and_output_have_the_rank_correlation_of_the_table(trace):
    rows = [row.split(",") for row in QUANTILES.read_text().splitlines() if row.startswith(f"{trace},")]
    drawn = quantile_lengths(trace, rng(2), 40_000)
    found = stats.spearmanr(drawn.prompt, drawn.output).statistic
    assert found == pytest.approx(float(rows[0][4]), abs=0.02)


@pytest.mark.parametrize("name", [*TRACES, *SYNTHETIC, "sharegpt-joined"])
@pytest.mark.parametrize("total", [600, TABLED])
def test_every_draw_is_a_request_below_the_limit(name, total):
    if total < TABLED and name in ("longbench-like", "humaneval-like"):
        pytest.skip("longer by its definition")
    drawn = draw_lengths(name, rng(3), 3_000, total=total)
    assert len(drawn.prompt) == len(drawn.output) == 3_000
    assert drawn.prompt.min() >= 1 and drawn.output.min() >= 1
    assert (drawn.prompt + drawn.output).max() < total


def test_the_same_generator_gives_the_same_lengths():
    one, other = (draw_lengths("arxiv-summarisation", rng(4), 1_000) for _ in range(2))
    assert np.array_equal(one.prompt, other.prompt) and np.array_equal(one.output, other.output)


def test_longer_requests_than_the_tables_hold_need_the_trace():
    with pytest.raises(ValueError, match="needs the trace itself"):
        draw_lengths("sharegpt", rng(), 10, total=4096)
    drawn = draw_lengths("sharegpt", rng(), 2_000, trace_file("sharegpt"), total=4096)
    assert (drawn.prompt + drawn.output).max() > TABLED


def test_an_unknown_trace_names_those_there_are():
    with pytest.raises(KeyError, match="lmsys.*sharegpt"):
        draw_lengths("share-gpt", rng(), 10)


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [  # means and 90th percentiles of the prompt, mean of the output: from the distributions' parameters
        ("sharegpt-like", (375, 812), 190),
        ("humaneval-like", (172, 261), 98),
        ("longbench-like", (1745, 1941), 85),
    ],
)
def test_synthetic_lengths_have_the_means_that_they_claim(name, prompt, output):
    drawn = draw_lengths(name, rng(5), 100_000)
    assert drawn.prompt.mean() == pytest.approx(prompt[0], rel=0.02)
    assert np.quantile(drawn.prompt, 0.9) == pytest.approx(prompt[1], rel=0.02)
    assert drawn.output.mean() == pytest.approx(output, rel=0.1)


@pytest.mark.parametrize("total", [2, 11])
def test_a_bound_that_no_conversation_keeps_is_refused(total):
    turns = Lengths(np.array([5, 90]), np.array([6, 90]))
    with pytest.raises(ValueError, match=f"too few requests below {total} tokens"):
        joined_turns(turns, rng(0), 10, total=total)
    assert len(joined_turns(turns, rng(0), 10, total=12).prompt) == 10


def test_no_arrivals_and_no_conversations_are_refused():
    with pytest.raises(ValueError, match="ask for at least one"):
        replayed(np.array([1.0, 2.0]), 0)
    with pytest.raises(ValueError, match="ask for at least one"):
        joined_turns(Lengths(np.array([5]), np.array([6])), rng(0), 0)


def test_joined_turns_make_prompts_of_earlier_messages():
    turns = Lengths(np.array([10]), np.array([100]))  # every message known: human 10, answer 100
    joined = joined_turns(turns, rng(6), 5_000, most=3, total=10_000)
    # one message is a prompt of 10 and an output of 100; two: 110 and 10; three: 120 and 100
    assert set(zip(joined.prompt.tolist(), joined.output.tolist(), strict=True)) == {
        (10, 100),
        (110, 10),
        (120, 100),
    }
    assert np.mean(joined.prompt == 10) == pytest.approx(1 / 3, abs=0.03)
