"""The attention model: its schedule by hand, its fit against known constants and against the measured table."""

import math

import numpy as np
import pytest

from common.hardware.attention import EVENT_SECONDS, AttentionTable, Row, causal_tiles
from common.hardware.operators import H100, OperatorTables, read_table

TABLE = OperatorTables.load(H100).attention
ROWS = [Row.of(row) for row in read_table(H100 / "attention_bf16.csv")]
KERNEL_ROWS = [row for row in ROWS if row.p05 > TABLE.launch_floor]


def errors(phase: str) -> np.ndarray:
    return np.array([abs(TABLE.call_seconds(r) / r.seconds - 1) for r in KERNEL_ROWS if r.phase == phase])


@pytest.mark.parametrize(
    ("phase", "median", "p90"),
    [("prefill_causal", 0.03, 0.10), ("chunk_full", 0.03, 0.08), ("decode", 0.02, 0.05)],
)
def test_calls_longer_than_a_launch_are_predicted(phase: str, median: float, p90: float) -> None:
    assert np.median(errors(phase)) < median
    assert np.quantile(errors(phase), 0.9) < p90


def test_the_launch_floor_is_the_few_tens_of_microseconds_of_the_smallest_calls() -> None:
    smallest = [row.seconds for row in ROWS if row.kv_len == 128 and row.batch == 1]
    assert 20e-6 < TABLE.launch_floor < 50e-6
    assert max(smallest) <= TABLE.launch_floor


def test_no_kernel_is_predicted_longer_than_the_call_that_launched_it() -> None:
    """Rows at the launch floor bound their kernels from above; one call in twenty may be a lucky one."""
    hidden = [row for row in ROWS if row.seconds <= TABLE.launch_floor]
    assert len(hidden) > 50
    kernels = {row: _kernel(row) for row in hidden}
    assert sum(kernels[row] > row.seconds for row in hidden) <= 0.05 * len(hidden)


def _kernel(row: Row) -> float:
    if row.phase == "decode":
        start, slope = TABLE.decode_line(row.heads, row.kv_heads, row.head_dim, row.batch)
        return start + slope * row.batch * row.kv_len
    return TABLE.prefill_seconds(row.heads, row.head_dim, [(row.q_len, row.kv_len - row.q_len)] * row.batch)


def test_small_kernels_inside_a_graph_take_microseconds_not_a_launch() -> None:
    assert TABLE.prefill_seconds(32, 128, [(128, 0)]) < 10e-6
    start, slope = TABLE.decode_line(32, 32, 128, 1)
    assert start + 128 * slope < 10e-6


def test_tiles_of_a_chunk_see_the_cache_and_themselves() -> None:
    assert causal_tiles(300, 1000) == [1128, 1256, 1300]
    assert causal_tiles(128, 0) == [128]
    assert causal_tiles(0, 500) == []


def constants() -> AttentionTable:
    """132 SMs; prefill starts in 2 us and 1 us a wave, 10 ns a key; decode at 3 TB/s, 11 ns a token."""
    start, bandwidth, token = 5e-6, 3e12, 11e-9
    calls = [("prefill_causal", 32, 32, 1, q, q) for q in (128, 2048, 4096, 8192)]
    calls += [("chunk_full", 32, 32, 1, q, kv) for q in (256, 1024, 2048) for kv in (4096, 16384)]
    calls += [("decode", 32, 8, b, 1, kv) for b in (1, 8, 64, 256) for kv in (128, 1024, 4096, 8192)]
    rows = []
    for phase, heads, kv_heads, batch, q_len, kv_len in calls:
        if phase == "decode":
            read = batch * kv_len * kv_heads * 128 * 4
            seconds = start + max(read / bandwidth, token * kv_len)
        else:
            full = [kv_len] * math.ceil(q_len / 128)
            tiles = sorted((causal_tiles(q_len, 0) if phase == "prefill_causal" else full) * heads)[::-1]
            seconds = 2e-6 + sum(1e-6 + 10e-9 * keys for keys in tiles[::132])
        seconds = max(seconds + EVENT_SECONDS, 30e-6)
        rows.append(Row(phase, heads, kv_heads, 128, batch, q_len, kv_len, seconds, seconds))
    return AttentionTable.from_rows(rows, 132, 800e12, 2.9e12, 1e-6, in_graph=False)


def test_known_constants_are_recovered_from_under_a_launch_floor() -> None:
    table = constants()
    assert table.launch_floor == pytest.approx(30e-6)
    assert table.prefill == pytest.approx((2e-6, 1e-6, 10e-9))
    assert table.decode[32, 8] == pytest.approx((5e-6, 3e12, 11e-9))


def test_one_kernel_serves_all_chunks_of_an_iteration() -> None:
    # Each chunk has tiles of 1024, 896, 768, 640 keys. Two of them, 32 heads: 64 blocks of each size, so that the
    # second wave of 132 starts with 768. One alone: 128 blocks, one wave.
    table, chunk = constants(), (512, 512)
    assert table.prefill_seconds(32, 128, [chunk] * 2) == pytest.approx(
        2e-6 + 2 * 1e-6 + (1024 + 768) * 10e-9
    )
    assert table.prefill_seconds(32, 128, [chunk]) == pytest.approx(2e-6 + 1e-6 + 1024 * 10e-9)
    assert table.prefill_seconds(32, 128, []) == 0


def test_chunks_of_a_prompt_take_longer_than_the_whole() -> None:
    whole = TABLE.prefill_seconds(32, 128, [(4096, 0)])
    chunks = sum(TABLE.prefill_seconds(32, 128, [(512, before)]) for before in range(0, 4096, 512))
    assert chunks > whole


@pytest.mark.parametrize("heads", [(32, 32), (32, 8), (40, 40), (20, 20), (16, 2), (96, 96)])
def test_decode_grows_with_context_and_with_the_batch(heads: tuple[int, int]) -> None:
    totals = []
    for batch in range(1, 300):
        start, slope = TABLE.decode_line(*heads, 128, batch)
        assert start > 0 and slope > 0
        totals.append(start + slope * batch * 1000)
    assert np.all(np.diff(totals) > -1e-15)


def test_unmeasured_heads_take_the_nearest_of_the_same_grouping() -> None:
    assert TABLE.decode_line(36, 36, 128, 256)[0] == TABLE.decode[40, 40].start
    assert TABLE.decode_line(48, 6, 128, 256)[0] == TABLE.decode[32, 8].start


def test_half_the_head_dimension_halves_the_work() -> None:
    for batch in (1, 64):
        assert TABLE.decode_line(32, 8, 64, batch)[1] == pytest.approx(
            TABLE.decode_line(32, 8, 128, batch)[1] / 2
        )


def test_too_few_rows_are_refused_with_the_floor_named() -> None:
    row = Row("prefill_causal", 32, 32, 128, 1, 8192, 8192, 1e-3, 1e-3)
    with pytest.raises(ValueError, match="1 prefill rows exceed the launch floor"):
        AttentionTable.from_rows([row], 132, 800e12, 2.9e12, 1e-6, in_graph=True)
