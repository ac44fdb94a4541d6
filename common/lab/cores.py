"""How many processes may run side by side: what this process was given, not what the machine has. Standard library."""

import os
from collections.abc import Iterator
from pathlib import Path

from common.lab.errors import LabError

WORKERS = "PAPERLAB_WORKERS"  # asks for another number
GROUPS = Path("/sys/fs/cgroup")


def workers() -> int:
    """PAPERLAB_WORKERS, or a worker a core that this process may use. LabError where that is no number from 1."""
    asked = os.environ.get(WORKERS, "").strip()
    if not asked:
        return allowed_cores()
    if not asked.isdecimal() or int(asked) < 1:
        raise LabError(f"{WORKERS}={asked}: is no number of worker processes; it is a whole number from 1")
    return int(asked)


def machine_cores() -> int:
    """The cores of this machine."""
    return os.cpu_count() or 1


def allowed_cores() -> int:
    """The cores that this process may use: by its affinity, its control group's quota, and its Slurm task."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    given = len(affinity(0)) if affinity else machine_cores()
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits = [given, *_quotas(), *([int(task)] if task.isdecimal() else [])]
    return max(1, int(min(limits)))


def _quotas(membership: Path = Path("/proc/self/cgroup"), groups: Path = GROUPS) -> Iterator[float]:
    """Cores' worth of time that this process's control group, and each group around it, may use."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = groups / controllers if controllers else groups  # version 1 has a tree a controller
        inside = path.strip("/").split("/") if path.strip("/") else []
        for depth in range(len(inside), -1, -1):
            yield from _quota(base.joinpath(*inside[:depth]))


def _quota(group: Path) -> Iterator[float]:
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in files).split()
            if float(quota) > 0:  # -1 and "max" are no limit
                yield float(quota) / float(period)
        except (OSError, ValueError):
            continue
