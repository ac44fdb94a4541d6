"""What PROFILE=cuda does, on the CPU: the plan, the check against torch, timing and the energy bookkeeping."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common.lab.runtime import Observations
from papers.gemm_perf import devices, gpu_sweep
from papers.gemm_perf.config import Config
from papers.gemm_perf.devices import CpuDevice
from papers.gemm_perf.energy_meter import Nvml, Sustained, sustain
from papers.gemm_perf.gpu_sweep import Measured, Row, as_sweep, measure, plan, sweep


class Bench:
    """A clock that a burst moves on, and a board of constant power whose counter advances in steps."""

    def __init__(self, watts: float = 150.0, step: float = 0.1, bias: float = 1.0) -> None:
        self.now, self.power, self.step, self.bias = 0.0, watts, step, bias

    def clock(self) -> float:
        return self.now

    def burst(self) -> int:
        self.now += 0.013
        return 13

    def joules(self) -> float:
        return self.power * self.step * np.floor(self.now / self.step + 1e-9)

    def watts(self) -> float:
        return self.power * self.bias


class Wall:
    """A board of constant power on the wall clock."""

    def __init__(self, watts: float = 50.0) -> None:
        self.power = watts

    def joules(self) -> float:
        import time

        return self.power * time.perf_counter()

    def watts(self) -> float:
        return self.power


class Still(Wall):
    def joules(self) -> float:
        return 7.0


def test_energy_is_mean_power_times_time_within_a_burst_although_the_counter_advances_in_steps() -> None:
    bench = Bench()
    found = sustain(bench.burst, bench, 1.0, bench.clock)
    assert found.seconds == pytest.approx(0.001)
    assert found.counted_watts == pytest.approx(150.0, rel=0.03)  # a burst is 1.3% of the second
    assert found.joules == pytest.approx(0.150, rel=0.03)
    assert found.agrees
    assert found.runs * found.seconds >= 1.0


def test_instruments_that_differ_by_more_than_five_percent_do_not_agree() -> None:
    bench = Bench(bias=1.1)
    assert not sustain(bench.burst, bench, 1.0, bench.clock).agrees
    assert Sustained(1.0, 100.0, 100.0, 104.9, 1).agrees
    assert not Sustained(1.0, 100.0, 100.0, 105.1, 1).agrees


def test_a_counter_that_stands_still_gives_an_error_and_no_zero_energy() -> None:
    bench = Bench(step=1e9)
    with pytest.raises(RuntimeError, match="energy counter did not advance"):
        sustain(bench.burst, bench, 1.0, bench.clock)


def test_the_plan_leaves_out_what_would_take_minutes() -> None:
    chosen = plan([4096, 512, 8192, 2048], [1, 2, 16])
    assert chosen[0] == ((512, 512, 512), 1)
    assert max(size[0] for size, tile in chosen if tile == 1) == 2048
    assert max(size[0] for size, tile in chosen if tile == 2) == 4096
    assert ((8192, 8192, 8192), 16) in chosen
    with pytest.raises(ValueError, match="at least one size and tile"):
        plan([8192], [1])


def test_a_row_is_checked_against_torch_timed_and_sustained() -> None:
    row = measure(CpuDevice(Wall()), (24, 24, 24), 8, torch.Generator().manual_seed(0), 0.05)
    assert row.relative_error < 1e-5
    assert row.seconds > 0 and row.sustained.runs >= 1
    assert row.sustained.joules == pytest.approx(50.0 * row.sustained.seconds, rel=0.05)
    assert row.sustained.agrees


def test_a_wrong_kernel_is_found_by_both_checks() -> None:
    class Skips(CpuDevice):
        def product(self, a: torch.Tensor, b: torch.Tensor, tile: int) -> torch.Tensor:
            return super().product(a[:, :-1], b[:-1], tile)

    class Scales(CpuDevice):
        def product(self, a: torch.Tensor, b: torch.Tensor, tile: int) -> torch.Tensor:
            exact = super().product(a, b, tile)
            return exact if bool(torch.all(exact == exact[0, 0])) else 1.01 * exact

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match="1s times 2s are not 48"):
        gpu_sweep.check(Skips(Wall()), (8, 8, 24), 8, generator)
    with pytest.raises(RuntimeError, match="off by"):
        gpu_sweep.check(Scales(Wall()), (8, 8, 24), 8, generator)


def test_rows_without_energy_are_dropped_and_counted_and_disagreeing_power_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("papers.gemm_perf.energy_meter.LONGEST_WAIT", 0.05)
    chosen = plan([8], [4, 8])
    generator = torch.Generator().manual_seed(0)
    none = sweep(CpuDevice(Still()), chosen, generator, 0.01)
    assert none.rows == [] and none.without_energy == chosen
    good, bad = Sustained(1e-3, 0.1, 100.0, 101.0, 9), Sustained(2e-3, 0.2, 100.0, 120.0, 9)
    rows = [Row((8, 8, 8), 4, 2e-3, bad, 0.0), Row((8, 8, 8), 8, 1e-3, good, 0.0)]
    table = as_sweep(Measured(rows), (4, 8), "card")
    assert list(table.best()) == [8]
    assert np.isnan(table.watts[0, 0]) and table.watts[0, 1] == 100.0


def test_the_gpu_profile_observes_what_its_claims_read() -> None:
    seen = Observations()
    config = Config(gpu_sides=[16], gpu_tiles=[4, 8, 16], gpu_seconds=0.02)
    device, generator = CpuDevice(Wall()), torch.Generator().manual_seed(0)
    gpu_sweep.observe(device, plan([16], [4, 8, 16]), config, generator, 0, seen)
    for metric in ("tile_lead_gpu", "tile_speedup_gpu", "gpu_rows_without_energy", "gpu_rows_disagreeing"):
        assert len(seen.values(metric)) == 1
    assert len(seen.values("gpu_joules")) == 3
    assert len(seen.values("gpu_cublas_seconds")) == 1  # torch's own product, once a size
    assert max(seen.values("gpu_relative_error")) < 1e-5


def test_the_launch_has_the_authors_grid_block_and_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[dict[str, Any]] = []

    def compiled(source: str, name: str) -> Any:
        assert f"void {name}(" in source

        def kernel(**how: Any) -> None:
            launches.append(how)
            a, b, c, *_ = how["args"]
            c.copy_(a @ b)

        return kernel

    board = SimpleNamespace(name="card", major=8, minor=9, uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: board)
    monkeypatch.setattr(torch.cuda, "_compile_kernel", compiled)
    asked: list[str] = []
    monkeypatch.setattr(devices, "Nvml", lambda uuid: asked.append(uuid) or Wall())
    device = devices.CudaDevice("cuda")
    a, b = torch.ones(40, 24), torch.full((24, 70), 2.0)
    assert bool(torch.all(device.product(a, b, 16) == 48))
    assert launches[0]["grid"] == (5, 3, 1) and launches[0]["block"] == (16, 16, 1)
    assert launches[0]["shared_mem"] == 2 * 16 * 16 * 4 and launches[0]["args"][3:] == [40, 70, 24, 16]
    devices.CudaDevice("cuda", one_tile=8).product(a, b, 16)
    assert launches[1]["block"] == (8, 8, 1) and launches[1]["args"][-1] == 8  # the control: one code path
    assert asked == ["GPU-1234"] * 2


def test_the_meter_reads_millijoules_and_milliwatts_and_names_a_failing_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Driver:
        code = 0

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
            assert uuid == b"GPU-1"
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, to: Any) -> int:
            to._obj.value = 7_000_123_456
            return 0

        def nvmlDeviceGetPowerUsage(self, handle: Any, to: Any) -> int:
            to._obj.value = 143_500
            return self.code

    driver = Driver()
    monkeypatch.setattr("papers.gemm_perf.energy_meter.ctypes.CDLL", lambda name: driver)
    meter = Nvml("GPU-1")
    assert meter.joules() == pytest.approx(7_000_123.456)
    assert meter.watts() == pytest.approx(143.5)
    driver.code = 3
    with pytest.raises(RuntimeError, match="nvmlDeviceGetPowerUsage failed with NVML's code 3"):
        meter.watts()


def test_without_nvidias_driver_the_meter_says_so() -> None:
    try:
        Nvml("GPU-none")
    except OSError as error:
        assert "libnvidia-ml" in str(error)
    except RuntimeError as error:
        assert "NVML" in str(error)
    else:
        pytest.fail("no device is called GPU-none")
