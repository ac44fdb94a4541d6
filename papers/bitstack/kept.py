"""Folders that are computed once and kept in the data cache, named after the digest of all that goes into them.

The digest covers the code of this package and of what it rests on, so that nothing stale is ever found. A folder
appears whole or not at all; those that nobody has asked for in a week are removed when a new one comes.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

from common import data

HERE = Path(__file__).resolve().parent
SOURCES = (HERE, HERE.parents[1] / "common" / "models", HERE.parents[1] / "common" / "quant")
UNUSED_SECONDS = 7 * 24 * 3600


@cache
def code_digest() -> str:
    """sha256 over the sources of this package, of common.models and common.quant, and torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for folder in SOURCES:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key_of(name: str, parts: object) -> str:
    """A folder's name: that of its kind, and the digest of its parts (plain JSON values) and of the code."""
    content = json.dumps([code_digest(), parts], sort_keys=True)
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def place_of(name: str, parts: object) -> Path:
    """Where the folder of `name` for these parts is, or will be."""
    place = data.cache() / "bitstack" / key_of(name, parts)
    with suppress(OSError):
        os.utime(place)
    return place


@contextmanager
def making(place: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `place` if all goes well."""
    place.parent.mkdir(parents=True, exist_ok=True)
    _clear(place.parent)
    part = Path(tempfile.mkdtemp(dir=place.parent, prefix=".part-"))
    try:
        yield part
        with suppress(OSError):  # somebody else was faster: theirs is the same
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _clear(home: Path) -> None:
    for folder in home.iterdir():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(folder)
