"""Linear layers from a table: exact where measured, honest where not."""

import numpy as np
import pytest

from common.hardware.linear import LinearTable, product_bytes, product_flops
from common.hardware.operators import H100, OperatorTables, read_table

TABLE = OperatorTables.load(H100).linear
ROWS = read_table(H100 / "linear_bf16.csv")


def without(shape: tuple[int, int]) -> LinearTable:
    return LinearTable({s: p for s, p in TABLE.points.items() if s != shape}, TABLE.kernel_seconds)


def test_every_measured_point_is_reproduced_exactly() -> None:
    for row in ROWS:
        assert TABLE.seconds(int(row["m"]), int(row["k"]), int(row["n"])) == float(row["seconds"])


def test_time_between_measured_tokens_lies_between_their_times() -> None:
    for shape, (tokens, seconds) in TABLE.points.items():
        for m0, m1, s0, s1 in zip(tokens, tokens[1:], seconds, seconds[1:], strict=False):
            middle = TABLE.seconds(int(m0 + m1) // 2, *shape)
            assert min(s0, s1) <= middle <= max(s0, s1)


def test_fewer_tokens_than_measured_still_read_the_weights() -> None:
    tokens, seconds = TABLE.points[4096, 12288]
    assert tokens[0] == 4  # 1 and 2 were not measured for this shape
    assert TABLE.seconds(1, 4096, 12288) == seconds[0]


def test_more_tokens_than_measured_go_on_at_the_last_rate() -> None:
    tokens, seconds = TABLE.points[4096, 22016]
    assert TABLE.seconds(2 * int(tokens[-1]), 4096, 22016) == pytest.approx(2 * seconds[-1])


def test_no_tokens_take_no_time() -> None:
    assert TABLE.seconds(0, 4096, 4096) == 0


def test_unmeasured_shapes_are_estimated_within_4_percent_in_the_median() -> None:
    """Each measured shape in turn is left out of the table and estimated from the others."""
    errors = []
    for shape, (tokens, seconds) in TABLE.points.items():
        others = without(shape)
        errors += [abs(others.seconds(int(m), *shape) / s - 1) for m, s in zip(tokens, seconds, strict=True)]
    assert np.median(errors) < 0.04
    assert np.quantile(errors, 0.9) < 0.12


def test_a_large_unmeasured_product_runs_near_the_best_measured_rate() -> None:
    assert (8192, 32768) not in TABLE.points
    rate = product_flops(8192, 8192, 32768) / TABLE.seconds(8192, 8192, 32768)
    assert 0.75 * TABLE.flops < rate <= TABLE.flops


def test_an_output_head_at_one_token_runs_near_the_best_measured_bandwidth() -> None:
    rate = product_bytes(1, 5120, 50272) / TABLE.seconds(1, 5120, 50272)
    assert 0.85 * TABLE.bandwidth < rate <= TABLE.bandwidth


def test_a_table_of_a_pure_roofline_extends_to_other_shapes_exactly() -> None:
    peak, bandwidth, start = 700e12, 3e12, 2e-6

    def truth(m: int, k: int, n: int) -> float:
        return start + max(product_flops(m, k, n) / peak, product_bytes(m, k, n) / bandwidth)

    shapes = [(2**a, 2**b) for a in (10, 12, 14) for b in (10, 12, 14)]
    rows = [
        {"m": str(m), "k": str(k), "n": str(n), "seconds": repr(truth(m, k, n))}
        for k, n in shapes
        for m in (1, 64, 4096, 65536)
    ]
    table = LinearTable.from_rows(rows, bandwidth)
    assert table.kernel_seconds == pytest.approx(start)
    for m in (1, 64, 65536):
        assert table.seconds(m, 3000, 7000) == pytest.approx(truth(m, 3000, 7000), rel=0.02)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        LinearTable.from_rows([], 3e12)
