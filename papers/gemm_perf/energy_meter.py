"""Power while a kernel runs, and the check that two instruments agree: counted energy against mean power x time.

NVML's energy counter advances in steps of some tens of milliseconds. A run therefore begins and ends at such a step, so
that no part of a step is lost, and lasts a second at least. The board's power readings are averaged over the same run.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

AGREEMENT = 0.05  # relative: counted energy and mean power x time may differ by so much
LEAST_SECONDS = 1.0
LONGEST_WAIT = 5.0  # seconds without a step of the counter before it counts as absent


class Meter(Protocol):
    """Two instruments of a board."""

    def joules(self) -> float:
        """The energy counter since some moment in the past."""

    def watts(self) -> float:
        """The power that the board reports now."""


@dataclass(frozen=True)
class Sustained:
    """A kernel repeated for a while: seconds of one run, joules of one run, and mean watts by both instruments."""

    seconds: float
    joules: float
    counted_watts: float  # energy counter over time
    read_watts: float  # mean of the power readings
    runs: int

    @property
    def agrees(self) -> bool:
        """Whether energy = mean power x time holds within AGREEMENT."""
        return abs(self.read_watts / self.counted_watts - 1.0) <= AGREEMENT


def sustain(
    burst: Callable[[], int],
    meter: Meter,
    least_seconds: float = LEAST_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Sustained:
    """Call `burst` (which runs the kernel some times to the end and says how often) between two steps of the counter.

    RuntimeError where the counter does not advance: its energy would be zero, and no such row may be kept.
    """
    _to_the_next_step(burst, meter, clock)
    start, begun, runs, readings = clock(), meter.joules(), 0, []
    while True:
        before = meter.joules()
        runs += burst()
        readings.append(meter.watts())
        now, after = clock(), meter.joules()
        if after > before and now - start >= least_seconds:
            break
        if now - start > least_seconds + LONGEST_WAIT:
            raise RuntimeError(f"the energy counter did not advance within {LONGEST_WAIT:g} s")
    seconds = now - start
    counted = (after - begun) / seconds
    return Sustained(seconds / runs, (after - begun) / runs, counted, sum(readings) / len(readings), runs)


def _to_the_next_step(burst: Callable[[], int], meter: Meter, clock: Callable[[], float]) -> None:
    start, begun = clock(), meter.joules()
    while meter.joules() == begun:
        burst()
        if clock() - start > LONGEST_WAIT:
            raise RuntimeError(f"the energy counter did not advance within {LONGEST_WAIT:g} s")


class Nvml:
    """The Meter of an NVIDIA board, straight from the driver's library. OSError where there is none.

    uuid: as CUDA names the device ("GPU-..."), so that CUDA_VISIBLE_DEVICES does not mislead.
    """

    def __init__(self, uuid: str) -> None:
        self._library: Any = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(self._handle))

    def joules(self) -> float:
        """See Meter."""
        millijoules = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    def watts(self) -> float:
        """See Meter."""
        milliwatts = ctypes.c_uint()
        self._call("nvmlDeviceGetPowerUsage", self._handle, ctypes.byref(milliwatts))
        return milliwatts.value / 1e3

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} failed with NVML's code {code}")
