"""What an experiment sees of the lab: rows, generators, processes."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.lab.runtime import Observations, Runtime
from tests.lab.toy import REPOSITORY


def square(x: int) -> int:
    return x * x


def broken_at(bad: int, x: int) -> int:
    if x == bad:
        raise ValueError("no good")
    return x


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()


def process(_: int) -> int:
    time.sleep(0.2)  # long enough that one worker does not take all
    return os.getpid()


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.integers(0, 9),
        st.dictionaries(
            st.sampled_from(["rate", "model"]), st.integers() | st.booleans() | st.text(max_size=5)
        ),
    )
)


@given(ROWS)
def test_observations_survive_json_byte_for_byte(
    rows: list[tuple[str, float, int | None, dict[str, str | int]]],
) -> None:
    seen = Observations()
    for metric, value, seed, at in rows:
        seen.add(metric, value, seed, **at)
    text = seen.to_json()
    again = Observations.from_json(text)
    assert again.to_json() == text and list(again) == list(seen)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(value: float) -> None:
    with pytest.raises(ValueError, match=r"observation 'gain' is -?(nan|inf) at seed=3, rate=2"):
        Observations().add("gain", value, 3, rate=2)


def test_rows_are_found_by_metric_seed_and_coordinates() -> None:
    seen = Observations()
    for seed in (0, 1):
        for rate in (1, 2):
            seen.add("gain", 10 * seed + rate, seed, rate=rate)
    seen.add("other", 5.0)
    assert seen.values("gain", rate=2) == [2, 12]
    assert seen.values("gain", rate=2, seed=1) == [12]
    assert seen.values("gain", model="x") == []
    assert seen.metrics == ["gain", "other"]
    assert list(seen.frame().columns) == ["metric", "value", "seed", "rate"] and len(seen.frame()) == 5


def test_numpy_values_become_plain_ones_and_other_objects_are_refused() -> None:
    seen = Observations()
    seen.add("gain", np.float32(2), np.int64(1), rate=np.float64(0.5))  # type: ignore[arg-type]
    assert '"rate": 0.5' in seen.to_json()
    with pytest.raises(TypeError, match="a coordinate is"):
        seen.add("gain", 1.0, 0, rate=[1])  # type: ignore[arg-type]


def test_broken_observations_are_refused() -> None:
    for text in ("{", "[1]", '[{"metric": "a"}]'):
        with pytest.raises(ValueError, match="no observations"):
            Observations.from_json(text)


def test_generators_are_the_same_in_every_process() -> None:
    code = "from common.lab.runtime import Runtime; print(Runtime([0]).rng(7, 'a', 'b').integers(2**60))"
    here = Runtime([0]).rng(7, "a", "b").integers(2**60)
    for salt in ("0", "1"):  # hash() differs between them
        there = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(there.stdout) == here


def test_streams_and_seeds_are_independent() -> None:
    lab = Runtime([0])
    draws = [
        lab.rng(seed, *stream).standard_normal(2000)
        for seed in (0, 1)
        for stream in ((), ("a",), ("b",), ("a", "b"), ("ab",))
    ]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)  # five standard errors


def test_torch_generators_repeat() -> None:
    import torch

    lab = Runtime([0])
    first, again, other = (torch.rand(3, generator=lab.torch_generator(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_map_keeps_the_order_and_names_the_item_that_failed(workers: int) -> None:
    lab = Runtime([0], workers=workers)
    assert lab.map(square, range(20), "squares") == [x * x for x in range(20)]
    assert lab.map(square, [], "nothing") == []
    with pytest.raises(ValueError, match="no good") as caught:
        lab.map(partial(broken_at, 3), range(6), "items")
    assert caught.value.__notes__ == ["items: 3"]


def test_map_runs_each_item_on_one_thread_whatever_the_number_of_workers() -> None:
    assert Runtime([0], workers=1).map(threads, [1, 2], "x") == [1, 1]
    assert Runtime([0], workers=2).map(threads, [1, 2], "x") == [1, 1]


def test_map_uses_several_processes() -> None:
    used = set(Runtime([0], workers=2).map(process, range(4), "x"))
    assert len(used) == 2 and os.getpid() not in used


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from common.lab.runtime import Runtime; from tests.lab.test_runtime import stay; "
        "Runtime([0], workers=2).map(stay, [sys.argv[1]] * 2, 'x')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert len(workers) == 2 and all(_alive(pid) for pid in workers)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)


def stay(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(120)


def _alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_progress_is_silent_by_default_and_passes_everything_through() -> None:
    told: list[tuple[str, int | None]] = []

    def watch(items, label, total):  # type: ignore[no-untyped-def]
        told.append((label, total))
        yield from items

    assert list(Runtime([0]).progress([1, 2], "x")) == [1, 2]
    assert list(Runtime([0], progress=watch).progress([1, 2], "x")) == [1, 2]
    assert told == [("x", 2)]


def test_only_a_controls_run_may_skip_metrics() -> None:
    assert Runtime([0]).wants("anything")
    control = Runtime([0], wanted=["gain"])
    assert control.wants("gain") and control.wants("other", "gain") and not control.wants("other")


def test_a_stopwatch_stands_still_after_its_block() -> None:
    with Runtime([0]).stopwatch() as watch:
        time.sleep(0.01)
    first = watch.seconds
    time.sleep(0.01)
    assert watch.seconds == first >= 0.01


def test_map_once_computes_each_item_once_for_all_arms_of_a_command() -> None:
    kept: dict[Hashable, Any] = {}
    done: list[int] = []

    def squared(item: int) -> int:
        done.append(item)
        return square(item)

    first = Runtime((0,), workers=1, kept=kept).map_once("squares", squared, [2, 3, 2], "squares")
    second = Runtime((0,), workers=1, kept=kept).map_once("squares", squared, [3, 4], "squares")
    assert (first, second) == ({2: 4, 3: 9}, {3: 9, 4: 16})
    assert done == [2, 3, 4]
    Runtime((0,), workers=1, kept=kept).map_once("other squares", squared, [2], "squares")
    Runtime((0,), workers=1).map_once("squares", squared, [2], "squares")
    assert done == [2, 3, 4, 2, 2]
