"""The tile sweep and its model against counts, closed forms and the kernel's own source; tables and the experiment."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.hardware.float32 import board
from common.hardware.gemm_tables import tiled_gemm
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from papers.gemm_perf.config import Config
from papers.gemm_perf.exercises import EXERCISES
from papers.gemm_perf.experiment import ADA_SIZES, ADA_TILES, run
from papers.gemm_perf.tile_model import tile_time
from papers.gemm_perf.tile_sweep import TileSweep, authors_sweep, measured_sweep, modelled_sweep
from papers.gemm_perf.tiled_kernel import (
    REGISTERS,
    SOURCE,
    barriers,
    lane_use,
    launch,
    loaded_bytes,
    passes,
    tiled_product,
)

TINY = Config(ms=[512, 128256], ns=[512, 1024], ks=[512, 2048], repeats=2, trees=4, power_repeats=1)


@pytest.mark.parametrize(
    ("tile", "use"), [(1, 1 / 32), (2, 1 / 8), (4, 1 / 2), (8, 1.0), (12, 0.9), (16, 1.0)]
)
def test_lanes_are_used_as_threads_fill_whole_warps(tile: int, use: float) -> None:
    assert lane_use(tile) == pytest.approx(use)


@pytest.mark.parametrize("tile", [1, 2, 4, 8, 16, 32])
def test_global_loads_fall_with_the_tile_and_barriers_are_two_a_step(tile: int) -> None:
    m, n, k = 512, 1024, 2048
    assert loaded_bytes(m, n, k, tile) == 8 * m * n * k / tile
    assert barriers(k, tile) == 2 * k / tile


@pytest.mark.parametrize(("tile", "loads", "lines"), [(4, 8, 8), (8, 32, 16), (16, 256, 32), (32, 2048, 64)])
def test_the_load_store_unit_takes_two_shared_passes_an_element_and_one_a_line(
    tile: int, loads: int, lines: int
) -> None:
    warps = max(1, tile * tile // 32)
    found = passes(tile)
    # no bank conflict: two loads an element of the inner loop and warp; each tile row is a line of its own, in A and B
    assert found.shared_loads == loads == 2 * tile * warps
    assert found.global_loads == lines == 2 * min(tile * tile, 32) / tile * warps
    assert found.shared_stores == 2 * warps


def test_a_tile_that_does_not_divide_a_line_touches_more_of_them() -> None:
    # 12 floats begin at multiples of 48 bytes: 2 of the 8 places in a period of 3 lines cross a border
    assert passes(12).global_loads > 2 * 12


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(0, 9))
def test_the_tiled_product_is_torchs(m: int, n: int, k: int, tile: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=generator, dtype=torch.float64)
    b = torch.randn(k, n, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(tiled_product(a, b, tile), a @ b)


def test_a_block_of_more_than_1024_threads_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1089 threads"):
        launch(64, 64, 33)
    with pytest.raises(ValueError, match="no product of shapes"):
        tiled_product(torch.ones(2, 3), torch.ones(2, 3), 4)


SHIM = """
#include <barrier>
#include <thread>
#include <vector>
struct Index { int x, y; };
static thread_local Index threadIdx, blockIdx;
static std::barrier<>* gate;
#define __global__
#define __shared__
#define __syncthreads() gate->arrive_and_wait()
float shared[2048];
"""
CALL = """
extern "C" void multiply(const float* A, const float* B, float* C, int M, int N, int K, int t) {
    for (int y = 0; y < (M + t - 1) / t; ++y) for (int x = 0; x < (N + t - 1) / t; ++x) {
        std::barrier<> here(t * t);
        gate = &here;
        std::vector<std::thread> threads;
        for (int i = 0; i < t * t; ++i) threads.emplace_back([=] {
            threadIdx = {i % t, i / t};
            blockIdx = {x, y};
            tiled_sgemm(A, B, C, M, N, K, t);
        });
        for (auto& one : threads) one.join();
    }
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel's CUDA source as C++: a thread for each thread of a block, a barrier for each barrier."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ with C++20 to compile the kernel's source for this CPU")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "k.cpp").write_text(SHIM + SOURCE + CALL)
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "k.cpp", "-o", "k.so"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if "barrier" in ended.stderr and ended.returncode:
        pytest.skip("this g++ has no <barrier>")
    assert ended.returncode == 0, ended.stderr
    return ctypes.CDLL(str(folder / "k.so"))


@pytest.mark.parametrize(
    ("m", "n", "k", "tile"), [(5, 7, 9, 1), (9, 6, 11, 4), (16, 8, 24, 8), (13, 10, 5, 3)]
)
def test_the_kernels_cuda_source_computes_the_product(
    compiled: ctypes.CDLL, m: int, n: int, k: int, tile: int
) -> None:
    generator = torch.Generator().manual_seed(m)
    a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    c = torch.full((m, n), float("nan"))
    pointers = [ctypes.c_void_p(matrix.data_ptr()) for matrix in (a, b, c)]
    compiled.multiply(*pointers, m, n, k, tile)
    torch.testing.assert_close(c, a @ b)
    a.fill_(1.0)
    b.fill_(2.0)
    compiled.multiply(*pointers, m, n, k, tile)
    assert bool(torch.all(c == 2.0 * k))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_registers_of_the_model_are_those_that_ptxas_gives_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text(SOURCE)
    for capability, registers in REGISTERS.items():
        command = ["nvcc", f"-arch=sm_{capability.replace('.', '')}", "-cubin", "-Xptxas", "-v", "k.cu"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        if ended.returncode:
            pytest.skip(f"nvcc cannot compile for {capability}")
        if "release 13.0" not in subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout:
            pytest.skip("the registers are those of CUDA 13.0")
        assert f"Used {registers} registers" in ended.stderr


@pytest.mark.parametrize("size", ADA_SIZES)
def test_the_model_of_ada_orders_the_tiles_16_32_8_4_1(size: tuple[int, int, int]) -> None:
    seconds = {tile: tile_time(board("rtx-4070"), *size, tile).seconds for tile in ADA_TILES}
    assert seconds[16] <= seconds[32] < seconds[8] < seconds[4]
    assert seconds[1] > 10 * seconds[4]


def test_a_single_resident_block_exposes_its_path_on_ada_and_two_hide_it_on_hopper() -> None:
    ada, hopper = (tile_time(board(name), 8192, 8192, 8192, 32) for name in ("rtx-4070", "h100-sxm"))
    assert (ada.bound, ada.occupancy) == ("block path", pytest.approx(2 / 3))
    assert (hopper.bound, hopper.occupancy) == ("load-store unit", 1.0)


def test_the_model_is_never_faster_than_lanes_or_device_memory_allow() -> None:
    for name in ("rtx-4070", "h100-sxm"):
        card = board(name)
        for tile in (1, 4, 8, 12, 16, 32):
            found = tile_time(card, 2048, 4096, 1024, tile)
            assert found.seconds >= 2 * 2048 * 4096 * 1024 / card.flops
            assert found.seconds >= found.memory_bytes / card.bandwidth
            assert found.memory_bytes >= 4 * (2048 * 1024 + 1024 * 4096 + 2048 * 4096)


def test_the_model_meets_the_h100_table_within_a_factor_of_two_without_a_fitted_constant() -> None:
    measured = measured_sweep(tiled_gemm(), (4, 8, 12, 16, 20, 24, 32))
    modelled = modelled_sweep(board("h100-sxm"), measured.sizes, measured.tiles)
    ratio = modelled.seconds / measured.seconds
    assert ratio.min() > 0.5 and ratio.max() < 1.5
    assert 0.8 < np.median(ratio) < 1.0  # the model ignores address arithmetic, so it is a little too fast


def test_one_code_path_for_all_tiles_leaves_no_best_tile() -> None:
    measured = measured_sweep(tiled_gemm(), (4, 8, 16, 32))
    same = measured.with_one_code_path(8)
    assert measured.modal_best() == 32
    assert same.modal_best() == 0 and np.all(same.lead(16) == 1.0)
    assert np.all(same.speedup(16, 8) == 1.0) and np.all(same.power_gain(16, 8) == 1.0)
    modelled = modelled_sweep(board("rtx-4070"), ADA_SIZES[:2], ADA_TILES, code_tile=8)
    assert modelled.modal_best() == 0


def test_a_sweeps_ratios_are_those_of_its_table() -> None:
    seconds = np.array([[2.0, 1.0, 4.0], [3.0, 2.0, 1.0]])
    sweep = TileSweep("card", ((1, 1, 1), (2, 2, 2)), (8, 16, 32), seconds, 10 * seconds)
    assert list(sweep.best()) == [16, 32]
    assert list(sweep.speedup(16, 8)) == [2.0, 1.5]
    assert sweep.power_gain(16, 8) == pytest.approx([2.0, 1.5])
    assert list(sweep.lead(16)) == [2.0, 0.5]
    with pytest.raises(ValueError, match="not swept with tile 4"):
        sweep.speedup(16, 4)
    with pytest.raises(ValueError, match="tables of that shape"):
        replace(sweep, tiles=(8, 16))


def test_shuffling_keeps_each_sizes_measurements_and_moves_time_with_power() -> None:
    measured = measured_sweep(tiled_gemm(), (4, 8, 16, 32))
    moved = measured.shuffled(np.random.default_rng(0))
    assert np.array_equal(np.sort(moved.seconds, axis=1), np.sort(measured.seconds, axis=1))
    assert np.allclose(np.sort(moved.seconds * moved.watts), np.sort(measured.seconds * measured.watts))
    assert moved.modal_best() != measured.modal_best() or len(set(moved.best())) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("ms=[]", "has 0 items"),
        ("ms=[512]", "has 1 items"),
        ("ms=[-512,512]", "out of range"),
        ("h100_tiles=[]", "has 0 items"),
        ("h100_tiles=[4,8,32]", "lacks 16"),
        ("power_repeats=0", "out of range"),
        ("baseline_tile=5", "4 or 8"),
        ("one_tile=7", "none of"),
        ("noise=nan", "no finite number"),
    ],
)
def test_bad_settings_get_one_line(changes: str, message: str) -> None:
    with pytest.raises(LabError, match=message) as refused:
        compose(Project.current(), "gemm_perf", "smoke", [f"paper.{changes}"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", EXERCISES)
def test_exercises_have_answers(name: str) -> None:
    assert EXERCISES[name].answer(None) > 0


def test_the_authors_tables_are_read_and_a_missing_tile_is_named(tmp_path: Path) -> None:
    times, power = tmp_path / "times.csv", tmp_path / "power.csv"
    times.write_text(
        "M,N,K,Tile Size,Execution Time\n512,512,512,8,6.5\n8192,8192,1024,8,97.4\n8192,8192,1024,16,87.7 \n"
    )
    power.write_text(
        "M,N,K,Tile Size,Average Power Usage (W)\n8192,8192,1024,8,57.0\n8192,8192,1024,16,53.0\n"
    )
    sweep = authors_sweep(times, power)
    assert (sweep.sizes, sweep.tiles) == (
        ((8192, 8192, 1024),),
        (8, 16),
    )  # small sizes time the launch: left out
    assert sweep.seconds == pytest.approx(np.array([[0.0974, 0.0877]]))
    power.write_text("M,N,K,Tile Size,Average Power Usage (W)\n8192,8192,1024,8,57.0\n")
    with pytest.raises(ValueError, match=r"lacks tiles \[16\]"):
        authors_sweep(times, power)


def test_two_runs_observe_the_same_bytes() -> None:
    pytest.importorskip("sklearn")
    first, again = (run(TINY, Runtime((0, 1), workers=1)).to_json() for _ in range(2))
    assert first == again


def test_the_full_profile_adds_depths_a_learning_curve_and_boosting() -> None:
    pytest.importorskip("sklearn")
    wide = replace(TINY, depths=[2, 6], shares=[0.1, 1.0], boosting=True)
    seen = run(wide, Runtime((0,), workers=1, wanted={"runtime_r2"}))
    assert [row.at["depth"] for row in seen.rows("depth_mape")] == [2, 6]
    assert [row.at["share"] for row in seen.rows("learning_mape")] == [0.1, 1.0]
    assert len(seen.rows("score_r2", model="gradient boosting")) == 1
    plain = run(TINY, Runtime((0,), workers=1, wanted={"runtime_r2"}))
    assert seen.values("runtime_r2") == plain.values("runtime_r2")


def test_a_control_reads_only_what_its_claims_need() -> None:
    pytest.importorskip("sklearn")
    seen = run(replace(TINY, one_tile=8), Runtime((0,), workers=1, wanted={"best_tile_simulated"}))
    assert seen.values("best_tile_simulated") == [0.0]
    assert "runtime_r2" not in seen.metrics and "tile_lead_h100" not in seen.metrics


def test_without_the_authors_tables_the_model_still_sweeps_their_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("papers.gemm_perf.experiment.authors_table", lambda lab, name: None)
    seen = run(replace(TINY, forests=False), Runtime((0,), workers=1))
    assert "best_tile" not in seen.metrics and "tile_speedup" not in seen.metrics
    assert seen.values("best_tile_simulated") == [16.0]
    assert seen.values("modelled_sizes") == [len(ADA_SIZES)]
