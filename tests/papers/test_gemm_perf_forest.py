"""The grid, the forest's recipe, the splits and the power protocol: exact counts, scikit-learn, closed cases."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.hardware.float32 import board
from papers.gemm_perf import baselines
from papers.gemm_perf.cutlass_grid import (
    IDLE_WATT,
    TARGETS,
    active_watts,
    flops,
    grid,
    kernel_seconds,
    measurements,
    moved_bytes,
)
from papers.gemm_perf.evaluation import Table, evaluate, splits
from papers.gemm_perf.forest import (
    Features,
    Recipe,
    clean,
    clip,
    grid_features,
    numeric,
    permuted_sizes,
    score,
)
from papers.gemm_perf.idle_power import (
    after_the_end,
    caught_as_in_the_figure,
    caught_at_random,
    during,
    read_after_the_end,
)

ADA = board("rtx-4070")


def test_the_grid_has_16128_runs_of_36_sizes_and_7_labels() -> None:
    runs = grid()
    assert len(runs) == 16128 == 36 * 4 * 4 * 7 * 4
    assert len(runs.sizes) == 36 and len(np.unique(runs.blocks, axis=0)) == 7
    assert np.all(np.bincount(runs.size) == 448)
    with pytest.raises(ValueError, match="1 to 64 times"):
        grid(repeats=65)


def test_a_small_product_takes_one_round_of_tiles_and_a_large_one_the_boards_peak() -> None:
    one = kernel_seconds(ADA, np.array([512]), np.array([512]), np.array([512]))[0]
    assert one == pytest.approx(4e-6 + 128 * 128 * 512 / 128 / 2.475e9)  # 16 tiles on 46 SMs
    two = kernel_seconds(ADA, np.array([1024]), np.array([1024]), np.array([512]))[0]
    assert two == pytest.approx(4e-6 + 2 * (one - 4e-6))  # 64 tiles: two rounds
    m, n, k = np.array([128256]), np.array([2048]), np.array([2048])
    assert flops(m, n, k)[0] / kernel_seconds(ADA, m, n, k)[0] == pytest.approx(ADA.flops, rel=0.01)


def test_power_lies_between_idle_and_the_limit_and_energy_is_watts_times_seconds() -> None:
    runs = grid(repeats=1)
    seconds, flop = kernel_seconds(ADA, runs.m, runs.n, runs.k), flops(runs.m, runs.n, runs.k)
    watts = active_watts(ADA, flop, seconds)
    assert watts.min() > IDLE_WATT and watts.max() <= ADA.power_limit_watt
    found = measurements(flop, seconds, watts)
    np.testing.assert_allclose(found.energy_joule, watts * seconds)
    np.testing.assert_allclose(found.gflops * 1e9 * seconds, flop)  # GFLOP/s, not TFLOP/s
    assert found.gflops.max() < ADA.flops / 1e9


def test_the_nine_features_are_the_papers() -> None:
    features = grid_features(grid(repeats=1))
    assert list(features.columns) == [
        "m", "n", "k", "blocksize1", "blocksize2", "blocksize3", "total_flops", "bytes", "intensity",
    ]  # fmt: skip
    first = features.matrix()[0]
    assert (
        first[6] == 2 * 512**3
        and first[7] == 4 * 3 * 512**2
        and first[8] == pytest.approx(first[6] / first[7])
    )
    assert features.matrix(labels_only=True).shape[1] == 3
    assert moved_bytes(np.array([2]), np.array([3]), np.array([5]), 2)[0] == 2 * (10 + 15 + 6)


def test_cleaning_strips_commas_fills_features_with_the_median_and_drops_rows_without_a_target() -> None:
    assert list(numeric(["1,024", " 2.5", "7"])) == [1024.0, 2.5, 7.0]
    assert np.isnan(numeric(["n/a"])[0])
    x = np.array([[1.0], [np.nan], [3.0], [9.0]])
    found = clean(x, np.array([[1.0], [2.0], [np.nan], [4.0]]))
    assert list(found.rows) == [0, 1, 3]
    assert list(found.x[:, 0]) == [1.0, 3.0, 9.0]  # the median of 1, 3, 9


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_clipping_keeps_order_and_moves_only_the_outermost(values: list[float]) -> None:
    column = np.array(values)[:, None]
    clipped = clip(column, column)[:, 0]
    low, high = np.quantile(column, (0.01, 0.99))
    assert np.all((clipped >= low) & (clipped <= high))
    inside = (column[:, 0] >= low) & (column[:, 0] <= high)
    assert np.array_equal(clipped[inside], column[inside, 0])


def test_scores_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth = rng.random(50) + 0.5
    guess = truth + 0.1 * rng.standard_normal(50)
    found = score(truth, guess)
    assert found.r2 == pytest.approx(metrics.r2_score(truth, guess))
    assert found.mse == pytest.approx(metrics.mean_squared_error(truth, guess))
    assert found.mae == pytest.approx(metrics.mean_absolute_error(truth, guess))
    assert found.mean_ape == pytest.approx(100 * metrics.mean_absolute_percentage_error(truth, guess))
    assert score(np.ones(3), np.ones(3)).r2 == 0.0
    with pytest.raises(ValueError, match="two equal rows"):
        score(truth, guess[:-1])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 99))
def test_permuting_sizes_moves_whole_groups_and_leaves_labels(groups: int, rows: int, seed: int) -> None:
    number = np.repeat(np.arange(groups), rows)
    features = Features({"m": 10.0 * number, "label": np.arange(len(number))}, ("label",))
    moved = permuted_sizes(features, number, np.random.default_rng(seed)).columns
    assert np.array_equal(moved["label"], features.columns["label"])
    by_group = moved["m"].reshape(groups, rows)
    assert np.all(by_group == by_group[:, :1])  # rows of one size stay together
    assert sorted(by_group[:, 0]) == [10.0 * g for g in range(groups)]


def test_the_lookup_knows_a_seen_group_by_its_mean_and_guesses_the_mean_of_all_else() -> None:
    group, y = np.array([0, 0, 2]), np.array([1.0, 3.0, 5.0])
    assert list(baselines.lookup(group, y, np.array([0, 2, 1]))) == [2.0, 5.0, 3.0]


def test_nearest_sizes_return_a_seen_sizes_own_mean() -> None:
    pytest.importorskip("sklearn")
    size = np.array([[512, 512, 512], [512, 512, 512], [1024, 512, 512], [2048, 512, 512]])
    guess = baselines.nearest(size, np.array([1.0, 4.0, 8.0, 16.0]), size[:1])
    assert guess[0] == pytest.approx(2.0)  # the geometric mean


def test_the_roofline_finds_the_efficiency_it_was_made_with() -> None:
    runs = grid(repeats=1)
    flop, moved = flops(runs.m, runs.n, runs.k), moved_bytes(runs.m, runs.n, runs.k)
    share = float(np.geomspace(0.05, 1.0, 40)[30])
    seconds = 4e-6 + np.maximum(flop / (share * ADA.flops), moved / ADA.bandwidth)
    np.testing.assert_allclose(baselines.roofline(ADA, flop, moved, seconds, flop, moved), seconds, rtol=1e-6)


def small_table() -> Table:
    runs = grid((512, 1024, 128256), (512, 1024), (512, 2048), 2)
    seconds, flop = kernel_seconds(ADA, runs.m, runs.n, runs.k), flops(runs.m, runs.n, runs.k)
    targets = measurements(flop, seconds, active_watts(ADA, flop, seconds)).columns()
    return Table(grid_features(runs), targets, runs.size)


def test_the_forest_is_the_authors_pipeline() -> None:
    sklearn = pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.preprocessing import StandardScaler

    assert sklearn
    table = small_table()
    parts = splits("random", table, np.random.default_rng(3))
    ours = evaluate(table, TARGETS, parts, Recipe(trees=5), seed=1)
    x = clip(table.features.matrix(), table.features.matrix())
    y = np.column_stack([table.targets[name] for name in TARGETS])
    y = clip(y, y)
    scaler = StandardScaler().fit(x[parts[0].train])
    forest = MultiOutputRegressor(RandomForestRegressor(5, max_depth=6, random_state=1))
    forest.fit(scaler.transform(x[parts[0].train]), y[parts[0].train])
    theirs = forest.predict(scaler.transform(x[parts[0].test]))
    for column, name in enumerate(TARGETS):
        np.testing.assert_allclose(ours.predicted[name], theirs[:, column])
    assert set(ours.scores()) == set(TARGETS)
    defaults = Recipe()
    assert (defaults.trees, defaults.depth) == (100, 6)


def test_grouped_and_leave_one_m_out_splits_hide_whole_sizes() -> None:
    table = small_table()
    for part in splits("grouped", table, np.random.default_rng(0)):
        assert not set(table.size[part.train]) & set(table.size[part.test])
    left_out = splits("leave-one-m-out", table, np.random.default_rng(0))
    m = np.asarray(table.features.columns["m"])
    assert [set(m[part.test]) for part in left_out] == [{512}, {1024}, {128256}]
    with pytest.raises(ValueError, match="no way to split"):
        splits("by colour", table, np.random.default_rng(0))


def test_a_random_split_of_replicates_leaks_and_permuting_whole_sizes_does_not_stop_it() -> None:
    pytest.importorskip("sklearn")
    table = small_table()
    rng = np.random.default_rng(0)
    shuffled = replace(table, features=permuted_sizes(table.features, table.size, rng))
    recipe = Recipe(trees=10)
    random, grouped = (
        evaluate(shuffled, ("runtime_ms",), splits(way, table, rng), recipe, 0).scores()["runtime_ms"].r2
        for way in ("random", "grouped")
    )
    assert random > 0.9  # a size in another's clothes is still recognised
    assert grouped < 0.1


def test_the_sound_recipe_clips_with_the_training_part_alone_and_answers_for_values_as_measured() -> None:
    pytest.importorskip("sklearn")
    table = small_table()
    parts = splits("leave-one-m-out", table, np.random.default_rng(0))[2:]  # the largest m: never seen
    ours = evaluate(table, ("runtime_ms",), parts, Recipe(5, clip_before_split=False, log_targets=True), 0)
    assert np.array_equal(ours.truth["runtime_ms"], table.targets["runtime_ms"][parts[0].test])
    assert (
        ours.predicted["runtime_ms"].max() <= table.targets["runtime_ms"][parts[0].train].max()
    )  # can't extrapolate


def test_a_reading_after_the_end_sees_an_idle_board_and_one_during_sees_the_kernel() -> None:
    assert set(after_the_end(40e-6, 140.0, 30.0).readings()) == {30.0}
    assert set(during(40e-6, 140.0, 30.0).readings()) == {140.0}


def test_the_protocol_writes_down_which_sizes_were_caught() -> None:
    caught = caught_at_random(36, np.random.default_rng(0))
    assert caught.sum() == caught_as_in_the_figure(grid().sizes).sum() == 4
    size = np.repeat(np.arange(36), 3)
    read = read_after_the_end(size, np.full(len(size), 150.0), IDLE_WATT, caught)
    assert set(size[read == 150.0]) == set(np.flatnonzero(caught))
    assert np.all((read == 150.0) | (read == IDLE_WATT))
