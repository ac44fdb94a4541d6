"""When a version counts: two phases between ranks, in the background (Section 5.1, consolidation).

    phase 1    a rank's file of a version is whole on the disk: it says so to all (a minimum over ranks)
    phase 2    all have said so: rank 0 names the version in `latest`; nobody goes on before that is on the disk

A rank that dies before phase 1 leaves `latest` at the version before, whatever files the others have finished.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from papers.datastates_llm.tiers import Tier, publish

LATEST = "latest"


def file_of(folder: Path, version: int, rank: int) -> Path:
    """Where a rank's part of a version goes; its folder is made."""
    place = folder / f"version-{version:06d}"
    place.mkdir(parents=True, exist_ok=True)
    return place / f"rank-{rank}.ds"


class Commit:
    """One rank's thread of the protocol, over a process group that nothing else uses.

    first: the version that comes first; versions follow one another.
    """

    def __init__(self, folder: Path, rank: int, world: int, group: Any, first: int) -> None:
        self.folder, self.rank, self.world, self.group = folder, rank, world, group
        self._next = first  # version of which this rank has not said that its file is whole
        self._whole: set[int] = set()
        self._agreeing = Tier[int]("commit", self._agree)

    def written(self, path: Path) -> None:
        """This rank's file is whole: what an engine calls when it has finished one, from one thread.

        Raises what broke the protocol, so that the engine's next `save` or `before_update` does.
        """
        self._agreeing.errors.check()
        found = re.fullmatch(r"version-(\d+)", path.parent.name)
        if found is None:
            raise ValueError(f"{path} lies in no version's folder")
        self._whole.add(int(found[1]))
        while self._next in self._whole:  # all ranks say the same versions in the same order
            self._agreeing.put(self._next)
            self._next += 1

    def finish(self, version: int) -> None:
        """Until `version` counts; there are none after it. Raises what broke the protocol, such as a dead rank.

        ValueError where this rank's file of it is not whole: nobody would ever agree.
        """
        self._agreeing.errors.check()
        if version >= self._next:
            raise ValueError(f"version {version} can't count: this rank's file of it is not whole")
        self._agreeing.close()
        self._agreeing.errors.check()

    def _agree(self, version: int) -> None:
        agreed = torch.tensor([version])
        dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self.group)
        if self.rank == 0 and int(agreed) == version:
            declare(self.folder, version, self.world)
        dist.barrier(group=self.group)


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
