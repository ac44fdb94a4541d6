"""A Spark session starts, answers, and is gone: with its block, and with its process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.data.spark import JavaMissing, java, session

pytest.importorskip("pyspark")
try:
    java()
    MISSING = ""
except JavaMissing as missing:
    MISSING = str(missing)
needs_java = pytest.mark.skipif(bool(MISSING), reason=MISSING)
ROOT = Path(__file__).resolve().parents[3]


def jvms() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "java" in child.name()]


@needs_java
def test_a_session_answers_twice_and_leaves_neither_process_nor_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    for _ in range(2):  # a second one in the same process
        with session("test", short=True) as spark:
            assert spark.sparkContext.master == os.environ.get("SPARK_MASTER", "local[2]")
            assert spark.range(1000).selectExpr("sum(id)").collect()[0][0] == 499500
            spark.range(10).createOrReplaceTempView("numbers")
            assert spark.sql("select count(*) from numbers").collect()[0][0] == 10
            assert spark.sparkContext.uiWebUrl is None
            running = jvms()
            assert running
            with pytest.raises(RuntimeError, match="already"), session("another"):
                pass
            for process in running:
                for socket in process.net_connections("inet"):
                    assert socket.laddr.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1")
        assert not any(process.is_running() for process in running)
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


@needs_java
def test_the_jvm_ends_and_cleans_up_when_python_is_killed(tmp_path: Path) -> None:
    code = (
        "import time\nfrom common.data.spark import session\n"
        "with session('killed', short=True) as spark:\n    spark.range(10).repartition(3).count()\n"
        "    print('up', flush=True)\n    time.sleep(60)\n"
    )
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    python = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path, env=environment
    )
    assert python.stdout is not None and python.stdout.readline() == b"up\n"
    children = psutil.Process(python.pid).children(recursive=True)
    assert any("java" in child.name() for child in children)
    python.send_signal(signal.SIGKILL)
    python.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    deadline = time.monotonic() + 5
    while list((tmp_path / "tmp").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_missing_or_old_java_is_asked_for_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaMissing, match="Java 17 or later.*install") as caught, session("none"):
        pass
    assert "\n" not in str(caught.value)
    (tmp_path / "bin").mkdir()
    old = tmp_path / "bin" / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    with pytest.raises(JavaMissing, match="is Java 11"):
        java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaMissing, match="none in PATH"):
        java()
