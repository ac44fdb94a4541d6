"""As many workers as this process was given cores, or as it was asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.lab.cores import _quotas, allowed_cores, machine_cores, workers
from common.lab.errors import LabError
from common.lab.machine import describe
from tests.lab.toy import REPOSITORY, write


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_on_one_core_has_one_worker() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "from common.lab.runtime import Runtime; from common.lab.machine import describe; "
        "print(Runtime([0]).workers, describe()['allowed_cores'], describe()['cores'] == os.cpu_count())"
    )
    plain = {name: value for name, value in os.environ.items() if name != "PAPERLAB_WORKERS"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=plain, capture_output=True, text=True
    )
    assert ended.stdout == "1 1 True\n", ended.stderr


def test_a_slurm_task_has_as_many_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERLAB_WORKERS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert allowed_cores() == workers() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4096")
    assert allowed_cores() <= machine_cores() == describe()["cores"]


@pytest.mark.parametrize(
    ("membership", "files", "quotas"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, [2.0]),
        ("0::/", {"cpu.max": "max 100000"}, []),
        ("0::/job/step", {"job/cpu.max": "150000 100000", "job/step/cpu.max": "max 100000"}, [1.5]),
        ("4:memory:/x\n1:cpu,cpuacct:/docker/9", {"cpu,cpuacct/cpu.cfs_quota_us": "50000",
                                                  "cpu,cpuacct/cpu.cfs_period_us": "100000"}, [0.5]),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        (None, {}, []),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_counts(
    tmp_path: Path, membership: str | None, files: dict[str, str], quotas: list[float]
) -> None:
    if membership is not None:
        write(tmp_path / "self", membership + "\n")
    for name, content in files.items():
        write(tmp_path / "groups" / name, content + "\n")
    assert list(_quotas(tmp_path / "self", tmp_path / "groups")) == quotas


@pytest.mark.parametrize("asked", ["abc", "-1", "0", "1.5", "2 3"])
def test_a_wrong_number_of_workers_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("PAPERLAB_WORKERS", asked)
    with pytest.raises(LabError, match=f"PAPERLAB_WORKERS={asked}: is no number of worker processes"):
        workers()


def test_a_number_of_workers_is_taken_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLAB_WORKERS", "7")
    assert workers() == 7
