"""After a failure: one version that every group has, rebuilt where one node of a group was lost, or else the disk.

A version counts for a group when all its surviving snapshot processes have it complete, and no more nodes are missing
than parity can replace. Training goes on from the largest version that counts for every group: a state put together
from several versions would be none that ever was.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.distributed.faults import Plan
from common.distributed.fleet import Fleet, Started
from common.distributed.questions import call, connect
from common.distributed.sealed_file import Damaged, read_sealed
from common.distributed.throttled import Device
from common.distributed.traffic import Wire
from common.training.sharded.layout import Layout
from papers.in_memory_ft.snapshot_process import Seat, keep

Source = Literal["first values", "memory", "disk"]
Node = tuple[int, int]  # (pipeline stage, data rank)
Inventory = Mapping[int, list[int]]  # complete versions by slot


@dataclass(frozen=True)
class Switches:
    """What of the method is on. inside: snapshot processes are threads of the trainers instead."""

    parity: bool = True
    double: bool = True
    sums: bool = True
    consistent: bool = True
    inside: bool = False


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


@dataclass(frozen=True)
class Ports:
    """The nodes' network cards, storage and copy engines, by (stage, data rank); none: as fast as can be."""

    network: Mapping[Node, Device] = field(default_factory=dict)
    disk: Mapping[Node, Device] = field(default_factory=dict)
    copy: Mapping[Node, Device] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, nodes: list[Node], copy: float, network: float, disk: float) -> "Ports":
        """Devices of these rates, bytes per second, for every node."""

        def each(name: str, rate: float) -> dict[Node, Device]:
            return {
                node: Device.make(folder / f"{name}-{node[0]}-{node[1]}", rate, 1 << 20) for node in nodes
            }

        return cls(each("network", network), each("disk", disk), each("copy", copy))


def group_versions(members: Mapping[int, Inventory | None], slots: int, parity: bool) -> set[int]:
    """The versions that count for one sharding group; members: by data rank, None for a lost node."""
    lost = sum(one is None for one in members.values())
    if lost > (1 if parity and len(members) > 1 else 0):
        return set()
    sets = [set(one.get(slot, ())) for one in members.values() if one is not None for slot in range(slots)]
    return set.intersection(*sets) if sets else set()


def chosen_versions(
    nodes: Mapping[Node, Inventory | None], layout: Layout, parity: bool = True, consistent: bool = True
) -> tuple[int, ...] | None:
    """The version to go on from, by stage; None where memory has none. consistent: the same for all groups."""
    groups = []
    for stage in range(layout.pipeline):
        members = {data: nodes[stage, data] for data in range(layout.data)}
        groups.append(group_versions(members, layout.tensor, parity))
    if not consistent:
        return tuple(max(one) for one in groups) if all(groups) else None
    common = set.intersection(*groups)
    return (max(common),) * layout.pipeline if common else None


def payload_file(folder: Path, version: int, stage: int, data: int, slot: int) -> Path:
    """Where a snapshot process writes a payload."""
    return folder / f"{version:08d}" / f"stage{stage}-data{data}-slot{slot}"


def disk_version(folder: Path, layout: Layout) -> int | None:
    """The last version of which every payload lies on disk, whole."""
    for one in sorted(folder.glob("[0-9]*"), reverse=True):
        files = [
            payload_file(folder, int(one.name), *node, slot)
            for node in nodes_of(layout)
            for slot in range(layout.tensor)
        ]
        try:
            for file in files:
                read_sealed(file)
        except (OSError, Damaged):
            continue
        return int(one.name)
    return None


def nodes_of(layout: Layout) -> list[Node]:
    """All nodes: one for each data rank of each stage, with that place's tensor ranks on it."""
    return [(stage, data) for stage in range(layout.pipeline) for data in range(layout.data)]


class Nodes:
    """The snapshot processes of a job, as its launcher sees them."""

    def __init__(
        self,
        fleet: Fleet,
        layout: Layout,
        folder: Path,
        switches: Switches,
        ports: Ports,
        faults: Plan | None = None,
    ) -> None:
        """faults: of snapshot processes; a fault's rank is stage * data degree + data rank."""
        self.fleet, self.layout, self.folder, self.switches = fleet, layout, folder, switches
        self.key = os.urandom(32)
        self.started: dict[Node, Started] = {}
        self.wires: dict[Node, Wire] = {}
        self.seats: dict[Node, Seat] = {}
        self._generation = 0
        for node in nodes_of(layout):
            self.seats[node] = Seat(
                name="",
                key=self.key,
                node=node[1],
                nodes=layout.data,
                parity=switches.parity,
                double=switches.double,
                sums=switches.sums,
                network=ports.network.get(node),
                disk=ports.disk.get(node),
                plan=self._own(faults, node),
            )
            self._start(node, first=True)
        self._introduce()

    def _own(self, faults: Plan | None, node: Node) -> Plan:
        number = node[0] * self.layout.data + node[1]
        own = [replace(one, rank=node[1]) for one in (faults.faults if faults else ()) if one.rank == number]
        return Plan(tuple(own))

    def _start(self, node: Node, first: bool = False) -> None:
        self._generation += 1
        name = f"in-memory-ft-{os.getpid()}-{self.key[:4].hex()}-{self._generation}"
        plan = self.seats[node].plan if first else Plan()  # what replaces a lost one has no faults to come
        self.seats[node] = replace(self.seats[node], name=name, plan=plan)
        if self.switches.inside:  # a thread of the trainer listens there
            return
        started = self.fleet.start(f"snapshot process {node}", keep, self.seats[node])
        self.started[node] = started
        self.wires[node] = Wire(started.connection)
        self.wires[node].receive()

    def addresses(self, node: Node) -> dict[int, str]:
        """Of a node's peers, by data rank."""
        stage, data = node
        return {d: self.seats[stage, d].address for d in range(self.layout.data) if d != data}

    def _introduce(self) -> None:
        for node, wire in self.wires.items():
            call(wire, "meet", self.addresses(node))

    def ask(self, node: Node, question: str, *arguments: Any) -> Any:
        """Ask a snapshot process."""
        return call(self.wires[node], question, *arguments)

    def pid(self, node: Node) -> int:
        return self.started[node].pid

    def alive(self, node: Node) -> bool:
        return node in self.started and self.started[node].alive

    def end(self) -> None:
        """Kill the snapshot processes: their job is over, and their memory wanted elsewhere."""
        for started in self.started.values():
            started.kill()

    def recover(self, epoch: int) -> Start:
        """Replace lost snapshot processes, and have every node hold the version that training goes on from."""
        lost = [node for node in self.seats if not self.alive(node)]
        found = {node: None if node in lost else self.ask(node, "inventory") for node in self.seats}
        versions = chosen_versions(found, self.layout, self.switches.parity, self.switches.consistent)
        for node in lost:
            self._start(node)
        self._introduce()
        if versions is None:
            return self._settled(self._from_disk(epoch, ()))
        reports: list[str] = []
        for stage, version in enumerate(versions):
            members = [(stage, data) for data in range(self.layout.data)]
            missing = [node for node in members if node in lost]
            for node in members:
                if node not in lost and (bad := self.ask(node, "verify", version)):
                    reports += [f"stage {stage}, {one}, version {version}: checksum differs" for one in bad]
                    missing.append(node)
            if len(missing) > (1 if self.switches.parity else 0):
                return self._settled(self._from_disk(epoch, tuple(reports)))
            for node in missing:
                self.ask(node, "settle", None, epoch)
                for slot in range(self.layout.tensor):
                    try:
                        self.ask(node, "rebuild", slot, version)
                    except Damaged as damage:
                        return self._settled(self._from_disk(epoch, (*reports, str(damage))))
        return self._settled(Start(epoch, "memory", versions, tuple(reports)))

    def _from_disk(self, epoch: int, reports: tuple[str, ...]) -> Start:
        version = disk_version(self.folder, self.layout)
        if version is None:
            return Start(epoch, reports=reports)
        return Start(epoch, "disk", (version,) * self.layout.pipeline, reports)

    def _settled(self, start: Start) -> Start:
        for (stage, _), wire in self.wires.items():
            call(wire, "settle", start.versions[stage] if start.source == "memory" else None, start.epoch)
        return start


def trainers_wire(seat: Seat) -> Wire:
    """A trainer's connection to the snapshot process of its node."""
    return connect(seat.address, seat.key)
