"""When a version counts: two phases between ranks, in the background (Section 5.1, consolidation).

    phase 1    a rank's file of a version is whole on the disk: it says so to all (a minimum over ranks)
    phase 2    all have said so: rank 0 names the version in `latest`; nobody goes on before that is on the disk

A rank that dies before phase 1 leaves `latest` at the version before, whatever files the others have finished.
"""

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from papers.datastates_llm.tiers import publish

LATEST = "latest"


def file_of(folder: Path, version: int, rank: int) -> Path:
    """Where a rank's part of a version goes; its folder is made."""
    place = folder / f"version-{version:06d}"
    place.mkdir(parents=True, exist_ok=True)
    return place / f"rank-{rank}.ds"


class Commit:
    """One rank's thread of the protocol, over a process group that nothing else uses.

    first: the version that comes first; versions follow one another. `committed` is the newest that counts.
    """

    def __init__(self, folder: Path, rank: int, world: int, group: Any, first: int) -> None:
        self.folder, self.rank, self.world, self.group = folder, rank, world, group
        self.committed = first - 1
        self._written: set[int] = set()
        self._last: int | None = None  # version after which there are none
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def written(self, path: Path) -> None:
        """This rank's file is whole: what an engine calls when it has finished one.

        Raises what broke the protocol, so that the engine's next `save` or `before_update` does.
        """
        if self._error is not None:
            raise self._error
        found = re.fullmatch(r"version-(\d+)", path.parent.name)
        if found is None:
            raise ValueError(f"{path} lies in no version's folder")
        with self._changed:
            self._written.add(int(found[1]))
            self._changed.notify_all()

    def finish(self, version: int) -> None:
        """Until `version` counts; there are none after it. Raises what broke the protocol, such as a dead rank.

        ValueError where this rank's file of it is not whole: nobody would ever agree.
        """
        if self._error is not None:
            raise self._error
        with self._changed:
            if version > self.committed and version not in self._written:
                raise ValueError(f"version {version} can't count: this rank's file of it is not whole")
            self._last = version
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while True:
                version = self.committed + 1
                with self._changed:
                    while version not in self._written and self._last != version - 1:
                        self._changed.wait()
                    if version not in self._written:
                        return
                agreed = torch.tensor([version])
                dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self.group)
                if self.rank == 0 and int(agreed) == version:
                    declare(self.folder, version, self.world)
                dist.barrier(group=self.group)
                self.committed = version
        except BaseException as error:
            self._error = error


def declare(folder: Path, version: int, world: int) -> None:
    """Write `latest`: the version, and the files it consists of with their sizes."""
    files = {path.name: path.stat().st_size for path in (file_of(folder, version, r) for r in range(world))}
    partial = folder / (LATEST + ".part")
    with partial.open("w") as file:
        json.dump({"version": version, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    publish(partial, folder / LATEST)


def latest(folder: Path) -> int | None:
    """The newest version that counts; None where there is none."""
    path = folder / LATEST
    return int(json.loads(path.read_text())["version"]) if path.exists() else None


def newest_file(folder: Path, rank: int) -> int | None:
    """The newest version of which one rank's file is whole: what it would take without a commit."""
    found = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"version-*/rank-{rank}.ds")]
    return max(found, default=None)
