"""Whoever holds its file lives, wherever it runs; who can't be told dead is left alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.lab.owned import PATIENCE, abandoned, boot, owned, told
from tests.lab.toy import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from common.lab.owned import owned
with owned(Path(sys.argv[1]), temporary="there"):
    print("held", flush=True)
    time.sleep(600)
"""
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def can_unshare() -> bool:
    """Whether this user may make a pid namespace, as containers have one each."""
    return shutil.which("unshare") is not None and subprocess.run([*NAMESPACE, "true"]).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason="pid namespaces may not be made here")


def hold(path: Path, *before: str) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("before", [(), pytest.param(NAMESPACE, marks=needs_namespaces)])
def test_an_owner_lives_until_it_is_killed_in_whatever_namespace(
    tmp_path: Path, before: tuple[str, ...]
) -> None:
    holder = hold(tmp_path / "owner", *before)
    try:
        assert not abandoned(tmp_path / "owner")
        assert told(tmp_path / "owner") == {
            "host": socket.gethostname(),
            "boot": boot(),
            "temporary": "there",
        }
        os.utime(tmp_path / "owner", (0, 0))
        assert not abandoned(tmp_path / "owner"), "age says nothing of a file that is held"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    deadline = time.monotonic() + 20
    while not abandoned(tmp_path / "owner") and time.monotonic() < deadline:
        time.sleep(0.1)  # of a namespace, the holder is a child of what was killed
    assert abandoned(tmp_path / "owner")


@pytest.mark.parametrize(
    ("host", "booted", "days", "gone"),
    [
        ("here", "now", 0.0, True),  # its lock is free on the machine where it ran
        ("elsewhere", "now", 0.0, True),  # another container of this machine
        ("here", "before", 0.0, True),  # this machine has been restarted since
        ("elsewhere", "before", 0.0, False),  # another machine, whose locks may not be seen from here
        ("elsewhere", "before", 6.0, False),
        ("elsewhere", "before", 8.0, True),
    ],
)
def test_what_nobody_holds_is_abandoned_where_its_owner_would_be_seen(
    tmp_path: Path, host: str, booted: str, days: float, gone: bool
) -> None:
    said = {
        "host": socket.gethostname() if host == "here" else host,
        "boot": boot() if booted == "now" else booted,
    }
    path = tmp_path / "owner"
    path.write_text(json.dumps(said))
    written = time.time() - days * 24 * 3600
    os.utime(path, (written, written))
    assert PATIENCE == 7 * 24 * 3600
    assert abandoned(path) is gone


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_an_owner_that_ended_before_it_said_anything_is_gone(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "owner").write_text(content)
    assert abandoned(tmp_path / "owner") and told(tmp_path / "owner") == {}


def test_a_file_is_owned_for_the_length_of_a_block_and_by_one_alone(tmp_path: Path) -> None:
    with owned(tmp_path / "owner"):
        assert not abandoned(tmp_path / "owner")
        with pytest.raises(Exception, match="can't be written: File exists"), owned(tmp_path / "owner"):
            pass
    assert abandoned(tmp_path / "owner")
