"""The machine that a number was taken on: what a record says of it. Standard library, torch where it is loaded."""

import datetime
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from common.lab.cores import allowed_cores, machine_cores


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores (all, and those allowed), memory, system, torch and (for cuda) the GPU.

    No host name: records are committed.
    """
    known: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": machine_cores(),
        "allowed_cores": allowed_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": device,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        known["torch"] = torch.__version__
        if device == "cuda" and torch.cuda.is_available():
            gpu = torch.cuda.get_device_properties(0)
            known |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return known


def peak_rss_bytes() -> int:
    """The largest resident memory of this process or any of its finished children so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(each).ru_maxrss for each in who)


def now() -> str:
    """This moment in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
