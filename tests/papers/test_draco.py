"""DRACO: the choice of group size and width by exhaustive search, real training, and facts of the mapping."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Observations, Runtime
from papers.draco import accuracy as training
from papers.draco.accuracy import Training, accuracy, batches
from papers.draco.config import Config
from papers.draco.cooptimization import (
    BASELINE,
    FOLDS,
    Point,
    Speed,
    choose,
    front,
    held_out,
    loses_at_most,
)
from papers.draco.exercises import EXERCISES, best_group, layer_by_layer
from papers.draco.experiment import CHOSEN, run
from papers.draco.group_convolution import seconds
from papers.draco.images import cifar10, digits, mnist_5k

MAPPED = Config(swept_groups=[1, 8], swept_arrays=[16, 64], widths=[1.0, 0.5])
FREE = ("work_rate_gain", "starved_share", "macs_per_energy", "cycles")  # metrics that train nothing
TINY = Config(
    epochs=1, data="digits", group_sizes=[1, 8], widths=[1.0, 0.5], swept_groups=[1], swept_arrays=[16, 64]
)


def mapped_alone(config: Config = MAPPED) -> Observations:
    """What the experiment observes without training a network."""
    return run(config, Runtime((0,), wanted=FREE))


points = st.builds(Point, st.sampled_from([1, 2, 4, 8]), st.sampled_from([0.5, 0.75, 1.0]))
speeds = st.builds(Speed, st.integers(1, 50), st.floats(0.1, 1.0))


@given(st.dictionaries(points, speeds, min_size=1), speeds, st.sets(points))
def test_the_choice_is_the_fastest_of_all_kept_points_or_the_baseline(
    drawn: dict[Point, Speed], first: Speed, kept: set[Point]
) -> None:
    known = drawn | {BASELINE: first}
    allowed = kept & known.keys()
    best = choose(known, allowed)
    assert best in (allowed or {BASELINE})
    assert known[best].cycles == min(known[point].cycles for point in allowed or {BASELINE})


def test_without_a_kept_point_the_choice_is_the_baseline_and_of_equals_the_one_that_fills_more() -> None:
    known = {BASELINE: Speed(100, 0.4), Point(4, 1.0): Speed(100, 0.5), Point(8, 0.5): Speed(10, 0.9)}
    assert choose(known, []) == BASELINE
    assert choose(known, [Point(4, 1.0)]) == Point(4, 1.0)
    with pytest.raises(ValueError, match=r"no speed is known of Point\(group_size=2"):
        choose(known, [Point(2, 1.0)])


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=12), st.floats(0, 2))
def test_a_loss_is_ruled_out_as_a_one_sided_t_test_does(gains: list[float], allowed: float) -> None:
    spread = float(np.std(gains, ddof=1))
    assume(spread > 1e-6)
    test = ttest_1samp(gains, -allowed, alternative="greater")
    assume(abs(test.pvalue - 0.05) > 1e-9)
    assert loses_at_most(gains, allowed) is bool(test.pvalue < 0.05)


def test_one_network_or_one_that_is_no_number_proves_nothing() -> None:
    assert not loses_at_most([5.0], 0.5)
    assert not loses_at_most([], 0.5)
    assert not loses_at_most([5.0, 5.0, float("nan")], 0.5)
    assert loses_at_most([0.0, 0.0], 0.0)  # equal networks lose nothing


def test_a_choice_for_a_seed_looks_at_seeds_with_other_test_images_alone() -> None:
    assert held_out({0: 5.0, 1: 1.0, 2: 3.0}, 0) == [1.0, 3.0]
    assert held_out({0: 5.0, 1: 1.0, FOLDS: 9.0}, 0) == [1.0]
    assert held_out({0: 5.0}, 0) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_holds_exactly_what_nothing_beats(drawn: list[tuple[int, int]]) -> None:
    pairs = [(float(cost), float(value)) for cost, value in drawn]
    kept = {pairs[index] for index in front(pairs)}
    for cost, value in pairs:
        beaten = any((c <= cost and v >= value) and (c, v) != (cost, value) for c, v in pairs)
        assert ((cost, value) in kept) is (not beaten)


# Facts of the mapping -----------------------------------------------------------------------------------------------


def test_depthwise_mobilenet_takes_378112_cycles_of_which_most_idle() -> None:
    # the authors' simulator (tests/common/accelerator/test_row_stationary.py says how it was run)
    seen = mapped_alone()
    at: dict[str, object] = {"group": 1, "width": 1.0, "goal": "energy"}
    assert seen.values("cycles", **at) == [378_112]  # type: ignore[arg-type]
    assert seen.values("spatial_cycles", **at) == [225_792]  # type: ignore[arg-type]
    assert seen.values("mean_utilization", **at) == pytest.approx([0.463], abs=5e-4)  # type: ignore[arg-type]
    assert seen.values("time_utilization", **at) == pytest.approx([567_716_352 / (378_112 * 4096)])  # type: ignore[arg-type]


def test_larger_groups_alone_take_no_time_for_the_least_energy_and_less_for_the_least_time() -> None:
    seen = mapped_alone()
    assert seen.values("added_time", goal="energy") == [1.0]
    assert seen.values("work_rate_gain") == seen.values("added_macs", goal="energy")
    before, after = (seen.values("cycles", group=g, width=1.0, goal="time")[0] for g in (1, 8))
    assert after / before == pytest.approx(1 - 0.416, abs=5e-4)  # the authors' simulator with opt_goal 'd'


def test_a_full_array_or_groups_side_by_side_let_added_work_take_time() -> None:
    for changed in (replace(MAPPED, array=8), replace(MAPPED, sharing="parallel")):
        seen = run(changed, Runtime((0,), wanted=["work_rate_gain"]))
        assert seen.values("added_time", goal="energy")[0] > 1.05


def test_switched_off_the_mechanism_changes_nothing() -> None:
    seen = mapped_alone(replace(MAPPED, grouped=False))
    assert seen.values("work_rate_gain") == seen.values("macs_per_energy") == [1.0]
    assert seen.values("starved_share") == mapped_alone().values("starved_share")


def test_a_standard_convolution_gains_nothing_from_g() -> None:
    seen = mapped_alone(replace(MAPPED, standard=True))
    assert seen.values("macs_per_energy") == [1.0]
    assert len(set(seen.values("cycles", width=1.0, goal="time"))) == 1


def test_only_the_depthwise_network_starves_on_a_large_array() -> None:
    seen = mapped_alone()
    use = {
        (name, size): seen.values("time_utilization_by_array", network=name, array=size)[0]
        for name in ("MobileNetV1", "ResNet-50", "SqueezeNext")
        for size in (16, 64)
    }
    assert use["MobileNetV1", 64] < 0.5 * use["MobileNetV1", 16]
    for name in ("ResNet-50", "SqueezeNext"):
        assert use[name, 64] > 0.95 * use[name, 16]


# Training -----------------------------------------------------------------------------------------------------------


def task(**changes: object) -> Training:
    return replace(Training(1, 1.0, 0, "digits", 2, 64, 0.02), **changes)  # type: ignore[arg-type]


def test_five_seeds_test_on_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits()
    learned = []
    monkeypatch.setattr(training, "train", lambda *call, **_: learned.append(call))
    monkeypatch.setattr(training, "batches", lambda pixels, labels, rest, rows, seed: rest)
    left_out = []
    for seed in range(FOLDS):
        accuracy(task(seed=seed))
        rest = set(learned[-1][2].tolist())
        left_out.append(set(range(len(images.labels))) - rest)
    assert sum(map(len, left_out)) == len(images.labels)
    assert set.union(*left_out) == set(range(len(images.labels)))


def test_an_epoch_deals_out_every_image_once_and_the_next_in_another_order() -> None:
    labels = torch.arange(50)
    at = batches(torch.zeros(50, 1), labels, torch.arange(5, 50), 9, seed=1)
    first, second = (torch.cat([at(step)[1] for step in range(5 * e, 5 * e + 5)]) for e in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(5, 50))
    assert first.tolist() != second.tolist()
    with pytest.raises(ValueError, match="a batch of 51 rows"):
        batches(torch.zeros(50, 1), labels, torch.arange(50), 51, seed=1)


def test_frozen_groups_keep_their_random_weights_and_depthwise_ones_learn() -> None:
    assert accuracy(task(frozen=True)) == accuracy(task())
    assert accuracy(task(group_size=8, frozen=True)) != accuracy(task(group_size=8))


def test_a_network_learns_the_digits() -> None:
    assert accuracy(task(epochs=6, group_size=8)) > 90


def test_two_runs_give_equal_observations() -> None:
    seen = []
    for _ in range(2):
        seen.append(run(replace(TINY, widths=[1.0]), Runtime((0, 1), workers=1, wanted=CHOSEN)).to_json())
    assert seen[0] == seen[1]


def test_a_control_trains_only_what_its_claims_read() -> None:
    seen = run(TINY, Runtime((0,), workers=1, wanted=["accuracy_gain"]))
    assert {(row.at["group"], row.at["width"]) for row in seen.rows("accuracy")} == {(1, 1.0), (8, 1.0)}
    assert not seen.values("cycles")


def test_mnist_lines_become_images(tmp_path: Path) -> None:
    path = tmp_path / "two.csv.gz"
    table = np.zeros((2, 785))
    table[0, 0], table[1, 783], table[:, 784] = 255, 255, (7, 3)
    np.savetxt(path, table, delimiter=",", fmt="%d")
    images = mnist_5k(path)
    assert images.pixels.shape == (2, 1, 28, 28)
    assert images.labels.tolist() == [7, 3]
    assert images.pixels.argmax().item() in (0, 2 * 784 - 1)
    assert images.pixels.mean().item() == pytest.approx(0, abs=1e-6)


def test_pictures_in_zips_become_images_of_sorted_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, colour in (("frog", (250, 0, 0)), ("cat", (0, 0, 250))):
            content = io.BytesIO()
            image.new("RGB", (32, 32), colour).save(content, "jpeg")
            archive.writestr(f"{name}/0000.jpg", content.getvalue())
    images = cifar10((path,))
    assert images.pixels.shape == (2, 3, 32, 32)
    assert images.labels.tolist() == [0, 1]
    assert images.pixels[0, 2].mean() > images.pixels[0, 0].mean()  # the cat is blue


def test_a_group_convolution_is_timed_on_this_machine() -> None:
    times = [seconds(32, 7, group, 2, "cpu", repeats=3) for group in (1, 8)]
    assert all(0 < time < 1 for time in times)
    with pytest.raises(ValueError, match="do not divide"):
        seconds(32, 7, 5, 2, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("group_sizes=[2,4]", "group size 1"),
        ("widths=[0.5]", "width 1"),
        ("group_sizes=[1,7]", "7 is none of 1, 2, 4"),
        ("compared=100000", "100000 is none of 1, 2, 4"),
        ("compared=1", "above 1"),
        ("learning_rate=1e9", "out of range"),
        ("epochs=-1", "out of range"),
        ("epochs=0", "out of range"),
        ("data=imagenet", "is none of mnist-5k"),
        ("sharing=all", "is none of shared"),
        ("array=0", "out of range"),
    ],
)
def test_bad_settings_get_one_line(changes: str, message: str) -> None:
    with pytest.raises(LabError, match=message) as refused:
        compose(Project.current(), "draco", "smoke", [f"paper.{changes}"])
    assert "\n" not in str(refused.value)


def test_a_training_that_fails_gives_no_verdict() -> None:
    seen = run(replace(TINY, learning_rate=1.0), Runtime((0, 1), workers=1, wanted=["accuracy_gain"]))
    assert np.mean(seen.values("baseline_accuracy")) < 92.4  # the floor of every claim on accuracy


@pytest.mark.parametrize("name", EXERCISES)
def test_exercises_have_answers(name: str) -> None:
    assert EXERCISES[name].answer(None) > 0


def test_the_best_group_of_each_layer_beats_any_constant() -> None:
    assert layer_by_layer() < 1.0
    assert best_group(64) > best_group(16)
