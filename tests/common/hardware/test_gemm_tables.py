"""The measured products: complete, in plausible units, and zero-energy rows dropped with a count."""

from pathlib import Path

import numpy as np
import pytest

from common.hardware.float32 import board
from common.hardware.gemm_tables import ENERGY, GENERAL, TILED, digest, gemm_energy, gemm_times, tiled_gemm


def test_every_row_of_the_times_is_read() -> None:
    times = gemm_times()
    assert len(times) == 2101
    assert set(times.dtype) == {"fp32", "tf32", "fp16", "bf16"}
    assert len(np.unique(times.m)) == 20
    assert np.all(times.p05 <= times.seconds) and np.all(times.seconds <= times.p95)


def test_the_row_whose_counter_stood_still_is_dropped_and_counted() -> None:
    energy = gemm_energy()
    assert (len(energy), energy.dropped) == (136, 1)
    assert np.all(energy.energy_joule > 0) and np.all(energy.power_watt > 0)
    np.testing.assert_allclose(energy.power_watt * energy.seconds, energy.energy_joule, rtol=1e-9)


def test_no_product_beats_the_boards_float32_peak() -> None:
    peak = board("h100-sxm").flops
    times, tiled = gemm_times(), tiled_gemm()
    fp32 = times.dtype == "fp32"
    assert np.all(2 * (times.m * times.n * times.k)[fp32] / times.seconds[fp32] < peak)
    assert np.all(2 * tiled.m * tiled.n * tiled.k / tiled.sustained_seconds < peak)


def test_the_tiled_kernel_computed_the_right_product_on_every_row() -> None:
    tiled = tiled_gemm()
    assert (len(tiled), tiled.dropped) == (342, 0)
    assert tiled.relative_error.max() < 1e-5
    assert set(tiled.tile) == {1, 2, 4, 8, 12, 16, 20, 24, 32}


@pytest.mark.parametrize("name", [GENERAL, ENERGY, TILED])
def test_a_tables_digest_is_that_of_its_bytes(name: str) -> None:
    assert len(digest(name)) == 64


def test_a_broken_table_is_refused_with_file_and_column(tmp_path: Path) -> None:
    head = "dtype,m,n,k,seconds,p05,p95\n"
    (tmp_path / GENERAL).write_text(head + "fp32,64,64,64,oops,1e-5,1e-5\n")
    with pytest.raises(ValueError, match="gemm_general.csv: column seconds"):
        gemm_times(tmp_path)
    (tmp_path / GENERAL).write_text(head + "fp32,64,64,64,-1,1e-5,1e-5\n")
    with pytest.raises(ValueError, match="not positive"):
        gemm_times(tmp_path)
    (tmp_path / GENERAL).write_text("dtype,m,n,k,seconds,p05\nfp32,64,64,64,1e-5,1e-5\n")
    with pytest.raises(ValueError, match="no column p95"):
        gemm_times(tmp_path)
    (tmp_path / GENERAL).write_text(head)
    with pytest.raises(ValueError, match="no usable row"):
        gemm_times(tmp_path)
