"""Parity against linear algebra, buffers and versions against their rules, survival against counting, engine costs."""

import itertools
import zlib
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.distributed.flat_state import FlatState, shard
from common.distributed.sealed_file import Damaged, read_sealed, write_sealed
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.training.sharded.layout import Layout
from papers.in_memory_ft import saving_cost, survival
from papers.in_memory_ft.buffers import NoVersion, Shard
from papers.in_memory_ft.config import Config
from papers.in_memory_ft.experiment import run
from papers.in_memory_ft.parity import block_bytes, covered, encode, holder, rebuild, xor_into
from papers.in_memory_ft.recovery import (
    chosen_versions,
    disk_version,
    nodes_of,
    payload_file,
)
from papers.in_memory_ft.replicas import HEADER, Header, payload_bytes
from papers.in_memory_ft.saving_cost import Rates, loading_seconds, saves_per_hour, saving_seconds
from papers.in_memory_ft.survival import Fleet


def padded(payloads: list[np.ndarray]) -> list[np.ndarray]:
    """Shards of a group, padded to whole blocks."""
    nodes = len(payloads)
    size = block_bytes(max(map(len, payloads)), nodes) * (nodes - 1)
    return [np.pad(one, (0, size - len(one))) for one in payloads]


# ---- parity


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8])
def test_every_block_has_one_parity_and_no_node_covers_its_own(nodes: int) -> None:
    seen = [(node, block) for parity in range(nodes) for node, block in covered(parity, nodes).items()]
    assert sorted(seen) == list(itertools.product(range(nodes), range(nodes - 1)))
    assert all(parity not in covered(parity, nodes) for parity in range(nodes))
    assert all(
        covered(holder(node, block, nodes), nodes)[node] == block
        for node, block in itertools.product(range(nodes), range(nodes - 1))
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(1, 400), st.integers(0, 2**32), st.data())
def test_any_lost_node_is_rebuilt_to_the_bit_for_any_size(
    nodes: int, size: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    payloads = [rng.integers(0, 256, size, dtype=np.uint8) for _ in range(nodes)]
    shards = padded(payloads)
    parities = encode(shards)
    lost = data.draw(st.integers(0, nodes - 1))
    found = rebuild(
        lost,
        nodes,
        {i: s for i, s in enumerate(shards) if i != lost},
        {i: p for i, p in enumerate(parities) if i != lost},
    )
    assert found[:size].tobytes() == payloads[lost].tobytes()


@pytest.mark.parametrize("nodes", [3, 4, 5])
def test_linear_algebra_over_two_elements_says_one_lost_node_can_be_rebuilt_and_two_can_not(
    nodes: int,
) -> None:
    data = list(itertools.product(range(nodes), range(nodes - 1)))
    rows = {
        node: [[int(one == (node, block)) for one in data] for block in range(nodes - 1)]
        + [[int(covered(node, nodes).get(n) == b) for n, b in data]]
        for node in range(nodes)
    }

    def rank(lost: set[int]) -> int:
        matrix = np.array([row for node in range(nodes) if node not in lost for row in rows[node]])
        done = 0
        for column in range(matrix.shape[1]):
            pivots = np.nonzero(matrix[done:, column])[0]
            if len(pivots):
                matrix[[done, done + pivots[0]]] = matrix[[done + pivots[0], done]]
                others = np.nonzero(matrix[:, column])[0]
                matrix[others[others != done]] ^= matrix[done]
                done += 1
        return done

    assert all(rank({one}) == len(data) for one in range(nodes))
    assert all(rank(set(two)) < len(data) for two in itertools.combinations(range(nodes), 2))


def test_parity_refuses_what_it_cannot_cover() -> None:
    with pytest.raises(ValueError, match="at least 2 nodes"):
        block_bytes(10, 1)
    with pytest.raises(ValueError, match="does not fit"):
        xor_into(np.zeros(16, np.uint8), b"12345678")
    with pytest.raises(ValueError, match="can be rebuilt"):
        rebuild(0, 3, {1: np.zeros(16, np.uint8)}, {1: np.zeros(8, np.uint8), 2: np.zeros(8, np.uint8)})
    with pytest.raises(ValueError, match="whole words"):
        rebuild(0, 2, {1: np.zeros(16, np.uint8)}, {1: np.zeros(8, np.uint8)})


@pytest.mark.parametrize("nodes", [3, 4, 5])
def test_two_lost_nodes_are_refused_also_where_the_last_one_is_among_them(nodes: int) -> None:
    rng = np.random.default_rng(1)
    shards = padded([rng.integers(0, 256, 50, dtype=np.uint8) for _ in range(nodes)])
    parities = encode(shards)
    for one, other in itertools.permutations(range(nodes), 2):
        left = [i for i in range(nodes) if i not in (one, other)]
        with pytest.raises(ValueError, match="can be rebuilt"):
            rebuild(one, nodes, {i: shards[i] for i in left}, {i: parities[i] for i in left})


# ---- state


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 2**32))
def test_shards_of_a_state_put_together_are_the_state(sizes: list[int], shards: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    state, whole = FlatState(tensors), FlatState([torch.zeros(size) for size in sizes])
    for index in range(shards):
        first, end = shard(state.nbytes, index, shards)
        part = np.empty(end - first, np.uint8)
        state.read(first, part)
        whole.write(first, part)
        assert HEADER + len(part) <= payload_bytes(state.nbytes, shards)
    assert whole.digest() == state.digest()
    assert state.digest() == FlatState([torch.cat(tensors)]).digest()


def test_a_header_keeps_step_position_and_generator() -> None:
    torch.manual_seed(3)
    torch.rand(5)
    packed = Header(7, 42, 1000, torch.get_rng_state()).pack()
    expected = torch.rand(3)
    back = Header.unpack(packed)
    torch.set_rng_state(back.rng)
    assert (back.step, back.position, back.state_bytes, len(packed)) == (7, 42, 1000, HEADER)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ValueError, match="no snapshot"):
        Header.unpack(bytes(HEADER))


# ---- buffers and versions


def filled(one: Shard, version: int, clean: int | None, value: int, peers: dict[int, int]) -> None:
    """A whole snapshot of constant bytes, with constant blocks of the peers."""
    half = one.open(version, clean)
    one.bytes[half.start : half.start + one.payload] = value
    one.take_sums(half)
    for peer, number in peers.items():
        block = bytes([number]) * one.block
        index = covered(one.node, 1 + len(one.peers))[peer]
        sums = tuple(zlib.crc32(block) if i == index else 0 for i in range(one.blocks))
        one.cover(half, peer, index, sums, block)


def test_a_snapshot_in_progress_leaves_the_clean_version_whole() -> None:
    one = Shard(100, node=0, nodes=3)
    filled(one, 1, None, 5, {1: 3, 2: 4})
    half = one.open(2, clean=1)
    one.bytes[half.start : half.start + 50] = 9
    assert one.versions == [1]
    assert one.damaged(one.find(1)) == []
    assert set(one.own(one.find(1), one.blocks)) == {3 ^ 4}
    with pytest.raises(NoVersion, match=r"has versions \[1\]"):
        one.find(2)


def test_with_one_buffer_it_does_not() -> None:
    one = Shard(100, node=0, nodes=3, double=False)
    filled(one, 1, None, 5, {1: 3, 2: 4})
    one.open(2, clean=1)
    assert one.versions == []


def test_a_version_is_complete_only_with_every_peers_block() -> None:
    one = Shard(64, node=0, nodes=3)
    filled(one, 1, None, 5, {1: 3})
    assert one.versions == []
    assert Shard(64, 0, 3, parity=False).peers == set()


def test_memory_of_a_half_is_the_shard_and_an_mth_less_one_of_it() -> None:
    for nodes in (2, 3, 5):
        one = Shard(960, node=0, nodes=nodes)
        assert one.half_bytes == 960 * (1 + 1 / (nodes - 1))
        assert one.memory.address.nbytes == 2 * one.half_bytes


def test_a_flipped_bit_is_found_and_a_damaged_block_refused() -> None:
    one = Shard(64, node=0, nodes=3)
    filled(one, 1, None, 5, {1: 3, 2: 4})
    half = one.find(1)
    one.own(half, one.blocks)[2] ^= 8
    assert one.damaged(half) == ["parity"]
    one.own(half, 1)[0] ^= 1
    assert one.damaged(half) == ["block 1", "parity"]
    one.checked = False
    assert one.damaged(half) == []
    with pytest.raises(Damaged, match="block 0 of node 1"):
        other = Shard(64, node=0, nodes=3)
        other.cover(other.open(1, None), 1, 0, (0, 0), b"x" * other.block)


def test_all_stages_go_on_from_the_largest_version_that_all_have() -> None:
    layout = Layout(data=2, pipeline=2)
    nodes = {(0, 0): [4, 6], (0, 1): [4, 6], (1, 0): [4, 6], (1, 1): [4]}
    assert chosen_versions(nodes, layout) == (4, 4)
    assert chosen_versions(nodes, layout, consistent=False) == (6, 4)
    assert chosen_versions({**nodes, (0, 1): None}, layout) == (4, 4)
    assert chosen_versions({**nodes, (0, 1): None}, layout, parity=False) is None
    assert chosen_versions({**nodes, (0, 0): None, (0, 1): None}, layout) is None
    assert chosen_versions({**nodes, (1, 1): [2]}, layout) is None


def test_a_checkpoint_counts_only_when_all_its_files_are_whole(tmp_path: Path) -> None:
    layout = Layout(data=2)
    for version in (2, 4):
        for node in nodes_of(layout):
            write_sealed(payload_file(tmp_path, version, node), np.full(50, version, np.uint8))
    assert disk_version(tmp_path, layout) == 4
    damaged = payload_file(tmp_path, 4, (0, 1))
    damaged.write_bytes(b"\1" + damaged.read_bytes()[1:])
    with pytest.raises(Damaged):
        read_sealed(damaged)
    assert disk_version(tmp_path, layout) == 2
    assert disk_version(tmp_path / "none", layout) is None


# ---- survival, intervals, costs


@pytest.mark.parametrize("group", [2, 3, 4])
def test_survival_is_the_sum_over_all_sets_of_lost_nodes(group: int) -> None:
    fleet = Fleet(nodes=2 * group, group=group, hardware=0.01)
    hours = 12.0
    one = float(np.exp(-fleet.hardware * hours))
    expected = 0.0
    for alive in itertools.product((0, 1), repeat=fleet.nodes):
        lost = [group - sum(alive[i * group : (i + 1) * group]) for i in range(2)]
        if max(lost) <= 1:
            expected += one ** sum(alive) * (1 - one) ** (fleet.nodes - sum(alive))
    assert float(survival.erasure_coded(fleet, hours)) == pytest.approx(expected)
    assert float(survival.snapshot_processes(fleet, hours)) == pytest.approx(one**fleet.nodes)


def surviving_share(ends: np.ndarray, hours: float) -> float:
    """Of histories whose state is still there after these hours."""
    return float(np.mean(ends > hours))


def test_simulated_histories_agree_with_the_formula() -> None:
    rng = np.random.default_rng(5)
    for group in (4, 8):
        fleet = Fleet(nodes=64, group=group)
        ends = survival.histories(fleet, 20000, rng)
        for probability in (0.9, 0.5, 0.1):
            hours = survival.hours_at(survival.erasure_coded, fleet, probability)
            deviation = (probability * (1 - probability) / 20000) ** 0.5
            assert abs(surviving_share(ends, hours) - probability) < 4 * deviation


def test_larger_groups_survive_shorter_and_parity_is_worth_at_least_ten_times() -> None:
    hours = [survival.hours_at(survival.erasure_coded, Fleet(group=m), 0.9) for m in (2, 4, 8, 16)]
    assert hours == sorted(hours, reverse=True)
    assert hours[-1] > 10 * survival.hours_at(survival.snapshot_processes, Fleet(), 0.9)


def test_racks_that_take_two_nodes_of_a_group_leave_parity_nothing() -> None:
    fleet, rng = Fleet(nodes=16, group=4, rack=2), np.random.default_rng
    with_parity = survival.histories(fleet, 500, rng(1))
    assert np.array_equal(with_parity, survival.histories(fleet, 500, rng(1), parity=False))
    alone = survival.histories(Fleet(nodes=16, group=1), 500, rng(1))
    assert np.array_equal(alone, survival.histories(Fleet(nodes=16, group=1), 500, rng(1), parity=False))


def test_state_in_the_trainers_ends_with_the_first_failure_of_any_kind() -> None:
    fleet = Fleet(nodes=64)
    ends = survival.histories(fleet, 20000, np.random.default_rng(2), parity=False, apart=False)
    hours = survival.hours_at(survival.plain_memory, fleet, 0.5)
    assert abs(surviving_share(ends, hours) - 0.5) < 4 * (0.25 / 20000) ** 0.5


def test_groups_on_random_gpus_lose_more_pairs_and_hold_every_gpu_once() -> None:
    fleet = Fleet(nodes=96)
    placed, drawn = survival.node_sets(fleet), survival.node_sets(fleet, np.random.default_rng(3))
    assert placed.shape == (24, 4) and drawn.shape == (24 * survival.GPUS, 4)
    assert set(np.bincount(drawn.ravel())) == {survival.GPUS}
    ends = [survival.histories(fleet, 2000, np.random.default_rng(4), sets=sets) for sets in (placed, drawn)]
    assert np.quantile(ends[1], 0.1) < np.quantile(ends[0], 0.1)


def test_fleets_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="must divide"):
        Fleet(nodes=10, group=4)
    with pytest.raises(ValueError, match="between 0 and 1"):
        survival.hours_at(survival.erasure_coded, Fleet(), 1.0)


def test_seconds_of_a_save_and_a_load_are_those_of_the_brief() -> None:
    rates, state = Rates(12e9, 3e9, 0.3e9), 48e9
    theirs = saving_seconds("TorchSnapshot", state, 4, rates)
    assert theirs / saving_seconds("REFT", state, 4, rates) == pytest.approx(8, rel=0.01)
    assert theirs / saving_seconds("REFT", state, 1, rates) == pytest.approx(10, rel=0.01)  # whole, no parity
    for peers in (2, 8):
        ratio = saving_seconds("TorchSnapshot", state, peers, rates) / saving_seconds(
            "REFT", state, peers, rates
        )
        assert ratio == pytest.approx(8, rel=0.01)
    assert loading_seconds("whole disk", state, 4, rates) > loading_seconds("sharded disk", state, 4, rates)
    with pytest.raises(KeyError, match="no engine"):
        saving_seconds("tape", state, 4, rates)


def test_saves_are_limited_by_the_step_by_the_save_and_by_the_budget() -> None:
    assert saves_per_hour(1.0, 0.0, 2.0, 0.02) == 1800
    assert saves_per_hour(4.0, 0.0, 2.0, 0.02) == 900
    assert saves_per_hour(1.0, 0.2, 2.0, 0.02) == 360


def test_simulated_failures_cost_what_the_closed_form_says() -> None:
    one = saving_cost.Protection(stall=20.0, saving=20.0, restart=100.0)
    mean = 20000.0
    found = saving_cost.simulated(one, mean, 1.0, 20000, np.random.default_rng(0))
    interval = saving_cost.interval_of(one, mean, 1.0)
    assert interval == pytest.approx((2 * 20 * mean) ** 0.5)
    assert found.redone.mean() == pytest.approx(interval / 2, rel=0.1)
    lost = (interval / 2 + one.saving + one.restart) / mean
    assert found.share == pytest.approx((1 - 20 / (interval + 20)) * (1 - lost), abs=0.005)


def test_young_s_interval_loses_least() -> None:
    best = saving_cost.interval_of(saving_cost.Protection(30.0, 30.0, 0.0), 50000.0, 1.0)

    def waste(interval: float) -> float:
        return 30.0 / interval + interval / 2 / 50000.0

    assert all(waste(best) <= waste(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_binomial_terms_are_those_of_the_formula() -> None:
    fleet = Fleet(nodes=8, group=8, hardware=0.02)
    one = float(np.exp(-fleet.hardware * 5.0))
    terms = [comb(8, lost) * one ** (8 - lost) * (1 - one) ** lost for lost in (0, 1)]
    assert float(survival.erasure_coded(fleet, 5.0)) == pytest.approx(sum(terms))


# ---- the rest


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("paper.state_bytes=0", "state_bytes"),
        ("paper.scenarios=[foo]", "scenarios"),
        ("paper.rack=2 paper.placement=random", "rack"),
        ("paper.rows=24 paper.peers=5", "peers"),
        ("paper.step_share=1", "step_share"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(setting: str, named: str) -> None:
    with pytest.raises(LabError) as caught:
        compose(Project.current(), "in_memory_ft", "default", setting.split())
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_two_runs_of_the_simulations_give_the_same_bytes() -> None:
    config = Config(groups=[4], histories=500, train_hours=500.0)
    lab = Runtime([0, 1], wanted=["lasting_gain", "redone_gain"])
    first, second = (run(config, lab).to_json() for _ in range(2))
    assert first == second
    assert '"lasting_gain"' in first
