"""A device passes its rate and no more, whoever asks, and survives those who are killed while they wait."""

import multiprocessing
import os
import signal
import time

import pytest

from common.distributed.throttled import Device


def send(device, nbytes, times):
    for _ in range(times):
        device.pass_through(nbytes)


def test_a_transfer_takes_bytes_over_rate(tmp_path):
    device = Device.make(tmp_path / "link", 10e6, chunk=100_000)
    begun = time.monotonic()
    waited = device.pass_through(2_000_000)
    assert 0.2 <= waited <= time.monotonic() - begun < 0.6
    assert device.passed_bytes == 2_000_000


def test_two_processes_share_one_device(tmp_path):
    device = Device.make(tmp_path / "link", 10e6, chunk=100_000)
    context = multiprocessing.get_context("fork")
    pair = [context.Process(target=send, args=(device, 1_000_000, 2)) for _ in range(2)]
    begun = time.monotonic()
    for one in pair:
        one.start()
    for one in pair:
        one.join(30)
    assert [one.exitcode for one in pair] == [0, 0]
    assert time.monotonic() - begun >= 0.4  # 4 MB at 10 MB/s, however they are dealt
    assert device.passed_bytes == 4_000_000


def test_files_come_back_as_they_went(tmp_path):
    device = Device.make(tmp_path / "state" / "disk", 1e9, chunk=7)
    data = os.urandom(100)
    device.write(tmp_path / "file", data)
    assert device.read(tmp_path / "file") == data
    assert device.read(tmp_path / "file", 13, 20) == data[13:33]
    assert device.passed_bytes == 100 + 100 + 20
    with pytest.raises(EOFError, match="bytes 90 to 110 of 100"):
        device.read(tmp_path / "file", 90, 20)


def test_a_killed_process_leaves_the_device_free(tmp_path):
    device = Device.make(tmp_path / "link", 1e6, chunk=100_000)
    child = multiprocessing.get_context("fork").Process(target=send, args=(device, 100_000, 1000))
    child.start()
    deadline = time.monotonic() + 20
    while device.passed_bytes == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    before = device.passed_bytes
    assert before > 0 and device.pass_through(100_000) < 1.0
    assert device.passed_bytes == before + 100_000


@pytest.mark.parametrize("rate, chunk", [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_a_device_without_a_rate_is_refused(tmp_path, rate, chunk):
    with pytest.raises(ValueError, match="not both positive"):
        Device.make(tmp_path / "link", rate, chunk)
