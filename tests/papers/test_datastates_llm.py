"""The ring, the file and the engine: against a plain model of memory, safetensors, and what the state was."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.distributed.throttled import Device
from common.lab import bounds
from common.lab.errors import LabError
from papers.datastates_llm.at_scale import run_of
from papers.datastates_llm.baselines import Asynchronous, Snapshot, Synchronous, read
from papers.datastates_llm.cluster import Phases, Switches, simulate
from papers.datastates_llm.commit import Commit, file_of
from papers.datastates_llm.config import STATE_BYTES, Config, check
from papers.datastates_llm.engine import DataStates, by_place
from papers.datastates_llm.exercises import EXERCISES, young_daly
from papers.datastates_llm.file_format import (
    LENGTH,
    METADATA,
    Damaged,
    Entry,
    load,
    plan,
    read_header,
    same_bits,
    tensors_of,
)
from papers.datastates_llm.polaris import MODELS, host_rates, ranks
from papers.datastates_llm.pool import Closed, HostPool, Region
from papers.datastates_llm.tiers import Copier, Storage, Tier
from papers.datastates_llm.torn import saved_and_read_back
from papers.datastates_llm.training import Shape, Training, train

TEXT = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 5000))
TINY = Shape(hidden=32, layers=1, heads=2, context=16)


def random_state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def tensor(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    return {
        "step": 7,
        "rate": 1e-3,
        "name": "run",
        "none": None,
        "weights": {"a": tensor(5, 3).to(torch.bfloat16), "b": [tensor(4), tensor(0, 2), tensor()]},
        "counts": torch.arange(6).view(2, 3),
        "mask": tensor(3) > 0,
    }


# the ring


def test_a_region_never_wraps_and_starts_again_at_zero() -> None:
    pool = HostPool(10)
    first, second = pool.allocate(4), pool.allocate(4)
    pool.release(first)
    third = pool.allocate(3)  # two bytes are left at the end: too few
    assert (first.start, second.start, third.start) == (0, 4, 0)
    assert pool.used == 7


def test_only_the_oldest_region_can_be_released() -> None:
    pool = HostPool(10)
    pool.allocate(4)
    second = pool.allocate(4)
    with pytest.raises(ValueError, match="not the oldest"):
        pool.release(second)


def test_a_tensor_as_large_as_the_pool_fits_and_a_larger_one_is_refused() -> None:
    pool = HostPool(10)
    assert pool.allocate(10) == Region(0, 10)
    with pytest.raises(ValueError, match="does not fit into a pool of 10"):
        pool.allocate(11)
    with pytest.raises(ValueError, match="holds nothing"):
        HostPool(0)


def test_who_finds_no_room_waits_until_the_oldest_is_gone() -> None:
    pool = HostPool(10)
    first, second = pool.allocate(6), pool.allocate(3)
    got: list[Region] = []
    waiting = threading.Thread(target=lambda: got.append(pool.allocate(5)))
    waiting.start()
    time.sleep(0.05)
    assert not got
    pool.release(first)
    waiting.join(5)
    assert got == [Region(0, 5)]
    pool.release(second)


def test_a_closed_pool_lets_those_who_wait_go() -> None:
    pool = HostPool(4)
    pool.allocate(4)
    ended: list[str] = []

    def ask() -> None:
        with pytest.raises(Closed):
            pool.allocate(1)
        ended.append("closed")

    waiting = threading.Thread(target=ask)
    waiting.start()
    pool.close()
    waiting.join(5)
    assert ended == ["closed"]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_live_regions_never_overlap_and_lie_within_the_pool(
    total: int, requests: list[tuple[bool, int]]
) -> None:
    pool = HostPool(total)
    live: list[Region] = []
    for release, nbytes in requests:
        nbytes = min(nbytes, total)
        if release and live:
            pool.release(live.pop(0))
        while pool._place(nbytes) is None:  # what a waiting thread would wait for
            assert live, "an empty pool has room for all that can ever fit"
            pool.release(live.pop(0))
        live.append(pool.allocate(nbytes))
        taken = sorted((one.start, one.start + one.nbytes) for one in live)
        assert all(start >= 0 and end <= total for start, end in taken)
        assert all(a[1] <= b[0] for a, b in zip(taken, taken[1:], strict=False))
        assert pool.used == sum(one.nbytes for one in live)


# the file


def written(path: Path, state: dict[str, Any]) -> None:
    engine = DataStates(Copier(), Storage(), 1 << 20)
    engine.save(state, path)
    engine.finish()
    engine.close()


def test_a_file_gives_back_the_same_nesting_and_the_same_bits(tmp_path: Path) -> None:
    state = random_state()
    written(tmp_path / "a.ds", state)
    back = load(tmp_path / "a.ds")
    assert back.keys() == state.keys()
    assert {k: v for k, v in back.items() if not isinstance(v, (dict, torch.Tensor))} == {
        "step": 7, "rate": 1e-3, "name": "run", "none": None,
    }  # fmt: skip
    want, got = tensors_of(state), tensors_of(back)
    assert want.keys() == got.keys()
    assert all(same_bits(want[key], got[key]) for key in want)


def test_header_and_offsets_are_as_the_format_says(tmp_path: Path) -> None:
    state = {"layer": {"w": torch.arange(6, dtype=torch.float32)}, "step": 3, "n": torch.tensor([1, 2])}
    written(tmp_path / "a.ds", state)
    raw = (tmp_path / "a.ds").read_bytes()
    length = int.from_bytes(raw[:LENGTH], "little")
    header = json.loads(raw[LENGTH : LENGTH + length])
    assert header["layer|w"] == {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}
    assert header["n"]["data_offsets"] == [24, 40]
    start, end = header[METADATA]["data_offsets"]
    first = LENGTH + length
    assert first + end == len(raw)
    assert json.loads(raw[first + start : first + end]) == {
        "layer": {"w": "TENSOR|layer|w"}, "step": 3, "n": "TENSOR|n",
    }  # fmt: skip
    assert np.frombuffer(raw, np.float32, 6, first).tolist() == [0, 1, 2, 3, 4, 5]


def test_safetensors_reads_the_same_tensors(tmp_path: Path) -> None:
    read = pytest.importorskip("safetensors.torch").load_file
    state = random_state()
    written(tmp_path / "a.ds", state)
    got = read(tmp_path / "a.ds")
    assert bytes(got.pop(METADATA).numpy()) == plan(state).lean
    assert got.keys() == tensors_of(state).keys()
    assert all(same_bits(got[key], tensor) for key, tensor in tensors_of(state).items())


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=3).map(lambda size: torch.arange(float(np.prod(size))).view(size)),
)  # fmt: skip
names = st.text("abc", min_size=1, max_size=3)
nested = st.dictionaries(
    names,
    st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(nested)
def test_any_nested_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "a.ds"
    written(path, state)

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and same_bits(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(equal, a, b))
        return type(a) is type(b) and a == b

    assert equal(state, load(path))


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.ds", random_state())
    whole = (tmp_path / "a.ds").read_bytes()
    for kept in (0, 5, 40, len(whole) - 1):
        (tmp_path / "b.ds").write_bytes(whole[:kept])
        with pytest.raises(Damaged):
            load(tmp_path / "b.ds")
    with pytest.raises(Damaged, match="where the header says"):
        (tmp_path / "b.ds").write_bytes(whole + b"x")
        read_header(tmp_path / "b.ds")


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a": (1, 2)}, TypeError, "a: tuple is neither"),
        ({"a": {"b": object()}}, TypeError, r"a\|b: object is neither"),
        ({1: torch.zeros(1)}, ValueError, "can't name a part"),
        ({"a|b": 1}, ValueError, "can't name a part"),
        ({"a": "TENSOR|b"}, ValueError, "would be read as a tensor"),
        ({"a": torch.zeros(4, 4).T}, ValueError, "a: a tensor that is not contiguous"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, TypeError, "no name for torch.complex64"),
    ],
)
def test_a_state_that_could_not_come_back_is_refused(
    state: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(state)


# the engine


def test_writing_begins_before_the_last_tensor_is_copied(tmp_path: Path) -> None:
    state = {f"{i}": torch.randn(25_000) for i in range(8)}  # 100 KB each
    copier = Copier(Device.make(tmp_path / "copy", 8e6))
    storage = Storage(Device.make(tmp_path / "disk", 16e6))
    engine = DataStates(copier, storage, 1 << 20)
    begun = time.monotonic()
    engine.save(state, tmp_path / "a.ds")
    asked = time.monotonic() - begun
    engine.finish()
    engine.close()
    writes = [span for span in storage.spans if span.label != "header"]
    assert asked < 0.05 < copier.spans[-1].end - begun  # save did not wait for the copies
    assert writes[0].start < copier.spans[1].end  # the first tensor is written while the second is copied
    assert [span.label for span in copier.spans] == [span.label for span in writes] == list(state)


def test_without_streaming_nothing_is_written_before_all_is_copied(tmp_path: Path) -> None:
    state = {f"{i}": torch.randn(25_000) for i in range(4)}
    copier, storage = Copier(Device.make(tmp_path / "copy", 8e6)), Storage()
    engine = DataStates(copier, storage, 1 << 20, stream=False)
    engine.save(state, tmp_path / "a.ds")
    engine.close()
    assert min(s.start for s in storage.spans if s.label != "header") >= copier.spans[-1].end
    with pytest.raises(ValueError, match="the state takes 400000 bytes, the host buffer has 300000"):
        small = DataStates(Copier(), Storage(), 300_000, stream=False)
        small.save(state, tmp_path / "b.ds")


def test_the_update_waits_for_the_copies_and_for_nothing_else(tmp_path: Path) -> None:
    state = {"a": torch.zeros(100_000, dtype=torch.uint8)}
    engine = DataStates(
        Copier(Device.make(tmp_path / "copy", 1e6)), Storage(Device.make(tmp_path / "disk", 0.2e6)), 1 << 20
    )
    begun = time.monotonic()
    engine.save(state, tmp_path / "a.ds")
    engine.before_update()
    copied = time.monotonic() - begun
    state["a"].fill_(1)  # the update
    assert 0.1 <= copied < 0.4
    assert not (tmp_path / "a.ds").exists()
    engine.finish()
    assert time.monotonic() - begun >= 0.5
    assert load(tmp_path / "a.ds")["a"].sum() == 0
    engine.close()


def test_a_buffer_smaller_than_the_state_makes_copies_wait_for_the_storage(tmp_path: Path) -> None:
    state = {f"{i}": torch.full((1000,), i, dtype=torch.uint8) for i in range(10)}
    engine = DataStates(Copier(), Storage(Device.make(tmp_path / "disk", 50e3)), 2500)
    begun = time.monotonic()
    engine.save(state, tmp_path / "a.ds")
    engine.before_update()
    assert time.monotonic() - begun >= 0.1  # eight of ten had to leave first, some 20 ms each
    engine.close()
    assert all(int(load(tmp_path / "a.ds")[f"{i}"][0]) == i for i in range(10))
    assert max(used for _, used in engine.pool.history) <= 2500
    with pytest.raises(ValueError, match="the largest tensor takes 1000 bytes, the host buffer has 999"):
        DataStates(Copier(), Storage(), 999).save(state, tmp_path / "b.ds")


class Full(Storage):
    """A disk without room."""

    def write(self, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")


def raised_by(call: Any, seconds: float = 5.0) -> BaseException | None:
    """What a call raises once the engine's threads have come so far; None where it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            call()
        except BaseException as error:
            return error
        time.sleep(0.01)
    return None


@pytest.mark.parametrize("call", ["save", "before_update", "finish"])
def test_a_full_disk_is_what_the_next_call_says(tmp_path: Path, call: str) -> None:
    state = {f"{i}": torch.zeros(1000, dtype=torch.uint8) for i in range(3)}
    engine = DataStates(Copier(), Full(), 1500)
    engine.save(state, tmp_path / "a.ds")
    calls = {"save": lambda: engine.save(state, tmp_path / "b.ds")}
    error = raised_by(calls.get(call) or getattr(engine, call))
    assert isinstance(error, OSError)
    assert error.errno == 28
    engine.close()
    assert list(tmp_path.iterdir()) == []  # nothing half written stays


def fail(error: Exception) -> Any:
    def call(*_: Any) -> None:
        raise error

    return call


@pytest.mark.parametrize("what", ["callback", "fsync", "rename"])
@pytest.mark.parametrize("call", ["save", "before_update"])
def test_an_error_of_the_header_thread_reaches_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, call: str
) -> None:
    error = OSError(f"no {what}")
    state = {"a": torch.zeros(1000, dtype=torch.uint8)}
    finished = fail(error) if what == "callback" else lambda path: None
    engine = DataStates(Copier(), Storage(), 1500, on_file=finished)
    if what != "callback":
        monkeypatch.setattr(os, {"fsync": "fsync", "rename": "replace"}[what], fail(error))
    engine.save(state, tmp_path / "a.ds")
    again = (lambda: engine.save(state, tmp_path / "b.ds")) if call == "save" else engine.before_update
    assert raised_by(again) is error
    engine.close()


@pytest.mark.parametrize("make", [Asynchronous, lambda *of: Snapshot(*of, chunk=500)])
def test_the_rivals_too_say_at_the_next_call_what_broke_them(tmp_path: Path, make: Any) -> None:
    engine = make(Copier(), Full(), 10_000)
    engine.save({"a": torch.zeros(1000, dtype=torch.uint8)}, tmp_path / "a.ds")
    error = raised_by(engine.before_update)
    assert isinstance(error, OSError)
    assert error.errno == 28
    engine.close()


def test_a_broken_commit_is_what_the_next_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("rank 1 is gone")
    monkeypatch.setattr("papers.datastates_llm.commit.dist.all_reduce", lambda *_, **__: fail(error)())
    commit = Commit(tmp_path, 0, 2, None, first=1)
    commit.written(file_of(tmp_path, 1, 0))
    assert raised_by(lambda: commit.written(file_of(tmp_path, 2, 0))) is error
    with pytest.raises(RuntimeError, match="rank 1 is gone"):
        commit.finish(2)


@pytest.mark.parametrize("first", ["cpu", "meta"])
def test_each_tensor_of_a_mixed_state_goes_by_its_own_place(first: str) -> None:
    places = (first, "meta" if first == "cpu" else "cpu")
    parts = [Entry(place, torch.zeros(1, device=place), 0) for place in places]
    on_device, on_host = by_place(parts)
    assert [one.key for one in on_device] == ["meta"]
    assert [one.key for one in on_host] == ["cpu"]


# what a run can be told


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"intervals": [100]}, "intervals: every 100 updates is never within 10 steps"),
        ({"intervals": [0]}, r"intervals\[0\]"),
        ({"steps": 0}, "steps"),
        ({"share": 0.0}, "share"),
        ({"shares": [0.0]}, "shares"),
        ({"gaps": [1]}, "gaps"),
        ({"data": 1}, "data"),
        ({"data": 3}, "data"),
        ({"models": ["99B"]}, "models"),
        ({"copy_rate": 1.0}, "copy_rate: 1 bytes/s are too few"),
        ({"killed_at": 8}, "killed_at"),
        ({"hidden": 100}, "multiple of 64"),
        ({"lazy": False, "stream": False}, "one of them can be switched off"),
    ],
)
def test_a_config_that_cannot_run_is_refused_in_one_line(told: dict[str, Any], message: str) -> None:
    with pytest.raises((LabError, ValueError), match=message) as refused:
        compose(told)
    assert "\n" not in str(refused.value)


def compose(told: dict[str, Any]) -> Config:
    """A config as the lab checks it: each field by its bounds, then all together."""
    config = Config(**told)
    for name, hint in get_type_hints(Config, include_extras=True).items():
        bounds.check(getattr(config, name), getattr(hint, "__metadata__", ()), name)
    check(config)
    return config


def test_every_field_has_its_bounds() -> None:
    assert bounds.unbounded(Config) == []
    assert compose({}) == Config()


# the model


def test_7b_by_hand() -> None:
    """83 GB on 8 GPUs, 4 GB/s a node: 10.4 s of storage a checkpoint beside 3.2 s of iteration."""
    model = MODELS["7B"]
    lone = simulate("datastates", ranks(model, 4e9), model.phases, 2, 1)
    assert lone.blocked[0] == pytest.approx(20e-6 * model.tensors)  # the copy, 0.4 s, lies under 3.08 s
    total = simulate("datastates", ranks(model, 4e9), model.phases, 50, 1).total
    assert total == pytest.approx(49 * 83e9 / 8e9, rel=0.05)  # as slow as the storage
    assert simulate("sync", ranks(model, 4e9), model.phases, 50, 0).total == pytest.approx(50 * 3.2)


def test_one_writer_is_a_switch_of_our_engine_alone() -> None:
    config = Config(through_rank_zero=True)
    rival = run_of(config, "async", "13B", 4e9, 1).total
    assert rival == run_of(Config(), "async", "13B", 4e9, 1).total
    assert (
        run_of(config, "datastates", "13B", 4e9, 1).total
        > run_of(Config(), "datastates", "13B", 4e9, 1).total
    )


def test_without_the_ring_the_next_checkpoint_waits_until_the_memory_of_the_last_is_free() -> None:
    rank = replace(ranks(MODELS["13B"], 4e9)[0], enqueue=0.0)
    written = rank.nbytes / rank.storage
    found = simulate("datastates", [rank], Phases(1.0, 0.0), 3, 1, Switches(pool=False)).blocked
    assert found[0] == pytest.approx(rank.nbytes / rank.pin)
    assert found[1] == pytest.approx(written - 1.0 + rank.nbytes / rank.pin)  # 2 x 10.4 GB are more than 16
    small = replace(rank, nbytes=rank.nbytes / 4, copy=100e9)
    both = simulate("datastates", [small], Phases(1.0, 0.0), 3, 1, Switches(pool=False)).blocked
    assert both == pytest.approx([small.nbytes / small.pin] * 2)  # both fit


def test_without_the_background_a_checkpoint_blocks_until_it_is_written() -> None:
    rank = replace(ranks(MODELS["7B"], 4e9)[0], enqueue=0.0)
    found = simulate("datastates", [rank], Phases(3.0, 0.1), 4, 1, Switches(background=False))
    assert found.blocked == pytest.approx([rank.nbytes / rank.storage] * 3)
    assert found.total == pytest.approx(4 * 3.1 + 3 * rank.nbytes / rank.storage)


def test_the_notebooks_exercises_have_answers() -> None:
    assert EXERCISES["exercise-1"].answer(None) == pytest.approx(166 / 16 * (1 - 1 / 25))
    cost = young_daly(None) ** 2 / (2 * 3 * 3600)
    each = 444e9 / 32
    assert cost == pytest.approx(each / 1e9 + each / host_rates()["serialise"])


def test_a_tier_handles_items_in_order() -> None:
    seen: list[int] = []
    tier = Tier[int]("order", seen.append)
    for i in range(20):
        tier.put(i)
    tier.wait()
    assert seen == list(range(20))
    tier.close()


# training


def test_the_state_is_fourteen_bytes_a_parameter_and_changes_in_the_update_alone() -> None:
    training = Training(TINY, TEXT, 0)
    found = tensors_of(training.state())
    parameters = sum(p.numel() for p in training.model.parameters())
    assert sum(t.numel() * t.element_size() for t in found.values()) == STATE_BYTES * parameters
    before = {key: tensor.clone() for key, tensor in found.items()}
    training.gradients()
    assert all(same_bits(before[key], tensor) for key, tensor in tensors_of(training.state()).items())
    training.update()
    after = tensors_of(training.state())
    changed = [key for key in after if not same_bits(before[key], after[key])]
    assert {key.split("|")[0] for key in changed} == {"weights", "master", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("kind", ["sync", "async", "snapshot", "datastates"])
def test_every_engine_saves_the_state_of_its_step_and_changes_no_loss(tmp_path: Path, kind: str) -> None:
    engine: Any = {
        "sync": lambda: Synchronous(Copier(), Storage()),
        "async": lambda: Asynchronous(Copier(), Storage(), 1 << 20),
        "snapshot": lambda: Snapshot(Copier(), Storage(), 1 << 20, chunk=1000),
        "datastates": lambda: DataStates(Copier(), Storage(), 1 << 17),
    }[kind]()
    training, plain = Training(TINY, TEXT, 3), Training(TINY, TEXT, 3)
    truth: dict[str, torch.Tensor] = {}

    def path_of(version: int) -> Path:
        truth.update((key, tensor.clone()) for key, tensor in tensors_of(training.state()).items())
        return tmp_path / f"{version}.ds"

    run = train(training, engine, path_of, 4, 3)
    engine.close()
    assert len(run.blocked) == 1
    assert 0 < run.blocked[0] < run.total
    assert run.total >= sum(run.compute)
    back = read(tmp_path / "3.ds")
    assert back.keys() == truth.keys()
    assert all(same_bits(back[key], truth[key]) for key in truth)
    for loss in run.losses:  # checkpoints change no arithmetic
        assert plain.gradients() == loss
        plain.update()


def test_every_version_is_read_back_equal_and_without_the_wait_it_is_torn(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    good = saved_and_read_back(tmp_path / "a", TEXT, 0, 3)
    assert [one.version for one in good] == [1, 2, 3]
    assert all(found == one.version for one in good for found in one.found)
    bad = saved_and_read_back(tmp_path / "b", TEXT, 0, 3, wait=False)
    assert all(any(found != one.version for found in one.found) for one in bad)
    assert any(len(set(one.found)) > 1 for one in bad)  # of more than one version: torn


def test_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 10"):
        Snapshot(Copier(), Storage(), 10, chunk=11)
    with pytest.raises(ValueError, match="does not fit into 10 of host memory"):
        Asynchronous(Copier(), Storage(), 10).save({"a": torch.zeros(3)}, Path(os.devnull))
