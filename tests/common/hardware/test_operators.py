"""Operator tables as a whole, and the roofline beside them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.hardware.attention import TILE
from common.hardware.linear import product_bytes, product_flops
from common.hardware.operators import H100, OperatorTables
from common.hardware.roofline import MEASURED, Efficiency, RooflineOperators, crossing
from common.hardware.specs import gpu

TABLES = OperatorTables.load(H100)
POINTS = [
    (int(m), *shape, s)
    for shape, (ms, ss) in TABLES.linear.points.items()
    for m, s in zip(ms, ss, strict=True)
]
CARD = gpu("h100-sxm")


def test_an_elementwise_kernel_costs_its_start_and_its_traffic() -> None:
    # copies.csv: 1 GiB copied (read and written) in 714.944 us.
    assert TABLES.copy_bandwidth == pytest.approx(2 * 2**30 / 714.944e-6, rel=1e-5)
    one, two = TABLES.elementwise_seconds(3e9), TABLES.elementwise_seconds(6e9)
    assert two - one == pytest.approx(3e9 / TABLES.copy_bandwidth)
    assert one == pytest.approx(TABLES.linear.kernel_seconds + two - one)


def test_missing_tables_name_the_command_that_makes_them(tmp_path: Path) -> None:
    shutil.copy(H100 / "device.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks linear_bf16.csv, .*gpu-profile"):
        OperatorTables.load(tmp_path)


def test_attention_timed_in_a_graph_keeps_its_whole_start(tmp_path: Path) -> None:
    for name in ("linear_bf16.csv", "attention_bf16.csv", "copies.csv"):
        shutil.copy(H100 / name, tmp_path)
    device = json.loads((H100 / "device.json").read_text())
    (tmp_path / "device.json").write_text(json.dumps({**device, "attention_timing": "graph"}))
    start = OperatorTables.load(tmp_path).attention.decode[32, 8].start
    assert start == pytest.approx(TABLES.attention.decode[32, 8].start + 2.4e-6)


def test_stated_compute_efficiency_is_the_measured_one() -> None:
    rates = [product_flops(m, k, n) / s / CARD.flops for m, k, n, s in POINTS if m >= 2048]
    assert pytest.approx(np.median(rates), abs=0.005) == MEASURED.compute


def test_stated_memory_efficiency_is_the_measured_one() -> None:
    best = max(product_bytes(m, k, n) / s / CARD.bandwidth for m, k, n, s in POINTS if m <= 16)
    assert pytest.approx(best, abs=0.005) == MEASURED.memory


def test_stated_attention_efficiency_is_the_measured_one() -> None:
    rate = TABLES.attention.sms * TILE * 4 * 128 / TABLES.attention.prefill.token / CARD.flops
    assert pytest.approx(rate, abs=0.005) == MEASURED.attention


def test_stated_kernel_start_is_the_measured_one() -> None:
    assert pytest.approx(TABLES.linear.kernel_seconds, abs=0.05e-6) == MEASURED.kernel_seconds


def test_roofline_turns_at_the_balance_point() -> None:
    roofline = RooflineOperators(CARD, Efficiency(1, 1, 1, 0))
    balance = CARD.flops / CARD.bandwidth
    assert roofline.seconds(0.5 * balance * 1e9, 1e9) == pytest.approx(1e9 / CARD.bandwidth)
    assert roofline.seconds(2 * balance * 1e9, 1e9) == pytest.approx(2e9 / CARD.bandwidth)


def test_roofline_of_causal_attention_counts_each_pair_once() -> None:
    roofline = RooflineOperators(CARD, Efficiency(1, 1, 1, 0))
    heads, dim, tokens = 32, 128, 4096
    pairs = sum(query + 1 for query in range(tokens))
    assert roofline.prefill_seconds(heads, heads, dim, [(tokens, 0)]) == pytest.approx(
        4 * heads * dim * pairs / CARD.flops
    )
    halves = [4 * heads * dim * sum(range(a + 1, b + 1)) / CARD.flops for a, b in ((0, 2048), (2048, 4096))]
    assert roofline.prefill_seconds(heads, heads, dim, [(2048, 2048)]) == pytest.approx(halves[1])
    assert roofline.prefill_seconds(heads, heads, dim, []) == 0


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_efficiency_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="compute is a share"):
        Efficiency(compute=share)


def test_lines_cross_where_they_are_equal() -> None:
    assert crossing((3.0, 1.0), (1.0, 2.0)) == 2.0
    assert crossing((3.0, 2.0), (1.0, 1.0)) == float("inf")
