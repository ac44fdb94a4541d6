"""A scratch folder goes with its maker; sealed files are whole or refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.distributed.scratch import scratch
from common.distributed.sealed_file import Damaged, read_sealed, write_sealed

MAKER = """
import sys, time
from common.distributed.scratch import scratch
with scratch("scratch-test-") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_scratch_folder_is_gone_after_its_block() -> None:
    with scratch("scratch-test-") as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()


def test_a_scratch_folder_is_gone_after_its_maker_was_killed() -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    folder = Path(maker.stdout.readline().strip())
    assert (folder / "file").exists()
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    end = time.monotonic() + 10
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not folder.exists()


def test_a_sealed_file_that_changed_or_was_cut_is_refused(tmp_path: Path) -> None:
    data = np.arange(100, dtype=np.uint8)
    write_sealed(tmp_path / "a" / "file", data)
    assert np.array_equal(read_sealed(tmp_path / "a" / "file"), data)
    whole = (tmp_path / "a" / "file").read_bytes()
    for other in (b"\1" + whole[1:], whole[:-1], b"", b"123"):
        (tmp_path / "b").write_bytes(other)
        with pytest.raises(Damaged):
            read_sealed(tmp_path / "b")
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["file"]
