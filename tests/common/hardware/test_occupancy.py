"""Resident blocks against closed cases, NVIDIA's own calculator where it is installed, and invariants."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.hardware.occupancy import LIMITS, WARP, limits, occupancy

NVIDIAS = next(
    (
        path
        for path in (
            Path(folder) / "include" / "cuda_occupancy.h"
            for folder in ("/usr/local/cuda", "/usr/local/cuda-13.0", "/usr/local/cuda-12.8", "/opt/cuda")
        )
        if path.is_file()
    ),
    None,
)
TILES = (1, 2, 4, 8, 12, 16, 20, 24, 32)


def of_tile(capability: str, tile: int, registers: int = 32):
    return occupancy(limits(capability), tile * tile, 8 * tile * tile, registers)


@pytest.mark.parametrize(
    ("tile", "share"), [(1, 24 / 48), (4, 24 / 48), (8, 48 / 48), (16, 48 / 48), (32, 32 / 48)]
)
def test_a_tiled_kernel_on_ada_fills_the_warps_that_blocks_and_threads_allow(tile: int, share: float) -> None:
    # one or two warps a block: 24 blocks; 8 warps: 6 blocks; two blocks of 32 warps do not fit into 48
    assert of_tile("8.9", tile, 40).share == pytest.approx(share)


def test_a_block_of_32_by_32_fills_a_hopper_sm_only_with_32_registers_a_thread() -> None:
    assert of_tile("9.0", 32, 32).share == 1.0
    full = of_tile("9.0", 32, 40)  # 64 warps x 1,280 registers are more than 65,536
    assert (full.share, full.limited_by) == (0.5, ("registers",))


def test_each_limit_can_be_the_one_that_binds() -> None:
    ada = limits("8.9")
    assert occupancy(ada, 32, 0, 16).limited_by == ("blocks",)
    assert occupancy(ada, 1024, 0, 16).limited_by == ("warps",)
    assert occupancy(ada, 64, 48 << 10, 16).limited_by == ("shared memory",)
    assert occupancy(ada, 256, 0, 128).limited_by == ("registers",)


def test_the_systems_kilobyte_of_shared_memory_counts() -> None:
    assert occupancy(limits("8.9"), 64, 50 << 10).blocks == 1  # 2 x 50 KiB would be all, but for 2 x 1 KiB
    assert occupancy(limits("8.9"), 64, 49 << 10).blocks == 2


def test_a_block_that_no_sm_can_run_is_refused() -> None:
    with pytest.raises(ValueError, match="threads a block: 1025"):
        occupancy(limits("8.9"), 1025)
    with pytest.raises(ValueError, match="shared memory"):
        occupancy(limits("8.9"), 32, 100 << 10)
    with pytest.raises(ValueError, match="registers"):
        occupancy(limits("9.0"), 1024, 0, 80)
    with pytest.raises(KeyError, match="known: 8.0, 8.9, 9.0"):
        limits("3.5")


kernels = st.tuples(
    st.sampled_from(sorted(LIMITS)), st.integers(1, 1024), st.integers(0, 99 << 10), st.integers(1, 64)
)


@given(kernels)
def test_the_resident_blocks_respect_every_limit(kernel: tuple[str, int, int, int]) -> None:
    capability, threads, shared, registers = kernel
    of = limits(capability)
    found = occupancy(of, threads, shared, registers)
    assert 1 <= found.blocks <= of.blocks
    assert found.warps == found.blocks * -(-threads // WARP) <= of.warps
    assert 0 < found.share <= 1 and found.limited_by
    assert found.blocks * (shared + of.shared_reserved) <= of.shared_bytes
    assert found.warps * WARP * registers <= of.registers


@given(kernels, st.sampled_from(("threads", "shared", "registers")))
def test_a_kernel_that_asks_for_less_is_never_given_fewer_blocks(
    kernel: tuple[str, int, int, int], less: str
) -> None:
    capability, threads, shared, registers = kernel
    of = limits(capability)
    smaller = occupancy(
        of,
        max(1, threads - 32) if less == "threads" else threads,
        shared // 2 if less == "shared" else shared,
        max(1, registers - 8) if less == "registers" else registers,
    )
    assert smaller.blocks >= occupancy(of, threads, shared, registers).blocks


PROGRAM = """
#include <cstdio>
#include <cstddef>
#include <cuda_occupancy.h>
int main() {
  int known[3][4] = {{8, 0, 2048, 164}, {8, 9, 1536, 100}, {9, 0, 2048, 228}};
  int tiles[9] = {1, 2, 4, 8, 12, 16, 20, 24, 32}, registers[4] = {24, 32, 40, 64};
  for (auto& one : known) for (int tile : tiles) for (int used : registers) {
    cudaOccDeviceProp p;
    p.computeMajor = one[0]; p.computeMinor = one[1]; p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiprocessor = one[2]; p.regsPerBlock = p.regsPerMultiprocessor = 65536; p.warpSize = 32;
    p.sharedMemPerBlock = 48 << 10; p.sharedMemPerMultiprocessor = one[3] << 10; p.numSms = 1;
    p.sharedMemPerBlockOptin = (one[3] - 1) << 10; p.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes a;
    a.maxThreadsPerBlock = 1024; a.numRegs = used; a.sharedSizeBytes = 0; a.partitionedGCConfig = PARTITIONED_GC_OFF;
    a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN; a.maxDynamicSharedSizeBytes = p.sharedMemPerBlockOptin;
    a.numBlockBarriers = 1;
    cudaOccDeviceState s; s.cacheConfig = CACHE_PREFER_NONE; s.carveoutConfig = 100;
    cudaOccResult r;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, tile * tile, 8 * tile * tile)) return 1;
    printf("%d.%d %d %d %d\\n", one[0], one[1], tile, used, r.activeBlocksPerMultiprocessor);
  }
}
"""


@pytest.mark.skipif(NVIDIAS is None or shutil.which("g++") is None, reason="needs a CUDA toolkit and g++")
def test_nvidias_own_calculator_counts_the_same_blocks(tmp_path: Path) -> None:
    assert NVIDIAS is not None
    (tmp_path / "p.cpp").write_text("#include <initializer_list>\n" + PROGRAM)
    build = ["g++", "-I", str(NVIDIAS.parent), str(tmp_path / "p.cpp"), "-o", str(tmp_path / "p")]
    subprocess.run(build, check=True, capture_output=True)
    said = subprocess.run([str(tmp_path / "p")], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in said.splitlines()]
    assert len(rows) == 3 * len(TILES) * 4
    for capability, tile, registers, blocks in rows:
        assert of_tile(capability, int(tile), int(registers)).blocks == int(blocks), (capability, tile)
