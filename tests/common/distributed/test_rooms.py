"""Temporary folders that go with their owner."""

import gc
import tempfile
from pathlib import Path

import pytest

from common.distributed.rooms import Room, clear_abandoned


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_room_is_gone_with_its_block_its_object_or_its_close(tmp_path: Path) -> None:
    with Room("a-") as path:
        (path / "file").write_text("there")
    assert list(tmp_path.iterdir()) == []
    room = Room("a-")
    assert list(tmp_path.iterdir()) == [room.path]
    del room
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    room = Room("a-")
    room.close()
    room.close()
    assert list(tmp_path.iterdir()) == []


def test_only_rooms_of_the_same_prefix_whose_owner_is_gone_are_cleared(tmp_path: Path) -> None:
    for name in ("a-dead", "b-dead", ".a-being-made.new"):
        (tmp_path / name).mkdir()
    living = Room("b-")  # clears its own kind
    assert not (tmp_path / "b-dead").exists()
    assert clear_abandoned("b-") == []
    assert clear_abandoned("a-") == [tmp_path / "a-dead"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".a-being-made.new", living.path.name])
