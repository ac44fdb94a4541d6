"""After a failure: one version that every group has, rebuilt where one node of a group was lost, or else the disk.

A version counts for a group when all its surviving snapshot processes have it complete, and no more nodes are missing
than parity can replace. Training goes on from the largest version that counts for every group: a state put together
from several versions would be none that ever was.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common.distributed.fleet import Fleet, Started
from common.distributed.questions import call
from common.distributed.sealed_file import Damaged, read_sealed
from common.distributed.throttled import Device
from common.distributed.traffic import Wire
from common.training.sharded.layout import Layout
from papers.in_memory_ft.saving_cost import Rates
from papers.in_memory_ft.snapshot_process import Seat, Switches, keep

Source = Literal["first values", "memory", "disk"]
Node = tuple[int, int]  # (pipeline stage, data rank)
BURST = 1 << 20  # bytes of one turn of a node's device


@dataclass(frozen=True)
class Start:
    """What an attempt begins from. versions: by pipeline stage; equal unless consistency is switched off."""

    epoch: int
    source: Source = "first values"
    versions: tuple[int, ...] = ()
    reports: tuple[str, ...] = ()  # damage that was found

    @property
    def version(self) -> int:
        return max(self.versions, default=0)


def chosen_versions(
    nodes: Mapping[Node, list[int] | None], layout: Layout, parity: bool = True, consistent: bool = True
) -> tuple[int, ...] | None:
    """The version to go on from, by stage; None where memory has none.

    nodes: complete versions of every node, None for a lost one. consistent: the same version for all groups.
    """
    groups: list[set[int]] = []
    for stage in range(layout.pipeline):
        members = [nodes[stage, data] for data in range(layout.data)]
        there = [set(one) for one in members if one is not None]
        replaced = 1 if parity and len(members) > 1 else 0
        groups.append(set.intersection(*there) if len(there) >= len(members) - replaced else set())
    if not consistent:
        return tuple(max(one) for one in groups) if all(groups) else None
    common = set.intersection(*groups)
    return (max(common),) * layout.pipeline if common else None


def payload_file(folder: Path, version: int, node: Node) -> Path:
    """Where a snapshot process writes a payload."""
    return folder / f"{version:08d}" / f"stage{node[0]}-data{node[1]}"


def disk_version(folder: Path, layout: Layout) -> int | None:
    """The last version of which every payload lies on disk, whole."""
    for version in sorted((int(one.name) for one in folder.glob("[0-9]*")), reverse=True):
        try:
            for node in nodes_of(layout):
                read_sealed(payload_file(folder, version, node))
        except (OSError, Damaged):
            continue
        return version
    return None


def nodes_of(layout: Layout) -> list[Node]:
    """All nodes: one for each data rank of each stage."""
    return [(stage, data) for stage in range(layout.pipeline) for data in range(layout.data)]


class Nodes:
    """The snapshot processes of a job, as its launcher sees them. A context manager: they end with the block."""

    def __init__(
        self, fleet: Fleet, layout: Layout, folder: Path, switches: Switches, rates: Rates | None = None
    ) -> None:
        """folder: of the checkpoints on disk, and of devices where nodes have stated rates."""
        self.fleet, self.layout, self.folder, self.switches = fleet, layout, folder, switches
        self.key = os.urandom(32)
        self.started: dict[Node, Started] = {}
        self.wires: dict[Node, Wire] = {}
        self.seats: dict[Node, Seat] = {}
        for node in nodes_of(layout):
            devices = {
                name: Device.make(folder / "devices" / f"{name}-{node[0]}-{node[1]}", rate, BURST)
                for name, rate in (asdict(rates) if rates else {}).items()
            }
            self.seats[node] = Seat("", self.key, node[1], layout.data, switches, **devices)
            self._start(node)
        self._introduce()

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        """Their job is over, and their memory wanted elsewhere."""
        self._kill()

    def _kill(self) -> None:
        for started in self.started.values():
            started.kill()

    def _start(self, node: Node) -> None:
        self.seats[node] = replace(self.seats[node], name=f"in-memory-ft-{os.getpid()}-{os.urandom(8).hex()}")
        self.started[node] = self.fleet.start(f"snapshot process {node}", keep, self.seats[node])
        self.wires[node] = Wire(self.started[node].connection)
        self.wires[node].receive()

    def _introduce(self) -> None:
        for (stage, own), wire in self.wires.items():
            peers = {data: self.seats[stage, data].address for data in range(self.layout.data) if data != own}
            call(wire, "meet", peers)

    def ask(self, node: Node, question: str, *arguments: Any) -> Any:
        """Ask a snapshot process."""
        return call(self.wires[node], question, *arguments)

    def alive(self, node: Node) -> bool:
        return self.started[node].alive

    def recover(self, epoch: int) -> Start:
        """Replace lost snapshot processes, and have every node hold the version that training goes on from."""
        if self.switches.inside:
            self._kill()
        lost = [node for node in self.seats if not self.alive(node)]
        found = {node: None if node in lost else self.ask(node, "inventory") for node in self.seats}
        versions = chosen_versions(found, self.layout, self.switches.parity, self.switches.consistent)
        for node in lost:
            self._start(node)
        self._introduce()
        reports: list[str] = []
        if versions is not None and self._rebuilt(versions, lost, epoch, reports):
            start = Start(epoch, "memory", versions, tuple(reports))
        elif (version := disk_version(self.folder, self.layout)) is not None:
            start = Start(epoch, "disk", (version,) * self.layout.pipeline, tuple(reports))
        else:
            start = Start(epoch, reports=tuple(reports))
        for (stage, _), wire in self.wires.items():
            call(wire, "settle", start.versions[stage] if start.source == "memory" else None, epoch)
        return start

    def _rebuilt(self, versions: tuple[int, ...], lost: list[Node], epoch: int, reports: list[str]) -> bool:
        """Whether every node has its stage's version in the end; notes the damage that was found."""
        for stage, version in enumerate(versions):
            members = [(stage, data) for data in range(self.layout.data)]
            missing = [node for node in members if node in lost]
            for node in members:
                if node not in lost and (bad := self.ask(node, "verify", version)):
                    reports += [f"stage {stage}, {one}, version {version}: checksum differs" for one in bad]
                    missing.append(node)
            if len(missing) > (1 if self.switches.parity else 0):
                return False
            for node in missing:
                self.ask(node, "settle", None, epoch)
                try:
                    self.ask(node, "rebuild", version)
                except Damaged as damage:
                    reports.append(str(damage))
                    return False
        return True
