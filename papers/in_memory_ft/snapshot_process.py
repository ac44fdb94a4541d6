"""The snapshot management process of a node: it owns the memory, and lives on when the node's trainer dies.

It answers the launcher, its trainer and its peers, each over a connection of its own and on a thread of its own.
Killing it loses its memory, which is what losing the node means here.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from common.distributed.memory import Address, Memory
from common.distributed.questions import answer, call, connect, listen
from common.distributed.sealed_file import Damaged, write_sealed
from common.distributed.throttled import Device
from common.distributed.traffic import Wire
from papers.in_memory_ft.buffers import Half, NoVersion, Shard
from papers.in_memory_ft.parity import covered, holder, rebuild

SECONDS_TO_COMPLETE = 120.0  # that a snapshot is given by its peers


class Stale(RuntimeError):
    """A message of an attempt that has failed meanwhile."""


@dataclass(frozen=True)
class Switches:
    """What of the method is on. inside: snapshot processes end with the trainers, as if they were a part of them."""

    parity: bool = True
    double: bool = True
    sums: bool = True
    consistent: bool = True
    inside: bool = False


@dataclass(frozen=True)
class Seat:
    """Where a snapshot process sits: `node` of the `nodes` of its group, and what its node has.

    name: of the socket it listens on, without a file. key: with which its connections prove themselves. copy, network,
    disk: the node's devices; None for as fast as can be.
    """

    name: str
    key: bytes
    node: int
    nodes: int
    switches: Switches
    copy: Device | None = None
    network: Device | None = None
    disk: Device | None = None

    @property
    def address(self) -> str:
        return "\0" + self.name  # Linux's abstract names: gone with the process


@dataclass(frozen=True)
class Snapshot:
    """Which snapshot is meant: of the attempt `epoch` (restarts so far), its version (steps taken), and `clean`, the
    version before it, which all groups have complete."""

    epoch: int
    version: int
    clean: int | None


@dataclass(frozen=True)
class Region:
    """A stretch of a snapshot process's memory that a trainer may map."""

    address: Address
    start: int
    nbytes: int

    def of(self, memory: Memory) -> np.ndarray:
        """Its bytes in the memory that was opened; uint8, a view."""
        return np.frombuffer(memory.view, np.uint8)[self.start : self.start + self.nbytes]


class SnapshotProcess:
    """What a node keeps, and the questions it answers (methods by name)."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.kept: Shard | None = None
        self.changed = threading.Condition()
        self.peers: dict[int, str] = {}  # addresses
        self.wires: dict[int, Wire] = {}
        self.sending = threading.Lock()
        self.epoch = 0
        self.block_bytes_sent = 0
        self.failed: Exception | None = None

    @property
    def shard(self) -> Shard:
        """NoVersion where no trainer has asked for memory yet."""
        if self.kept is None:
            raise NoVersion(f"node {self.seat.node} keeps nothing yet")
        return self.kept

    # ---- from the trainer

    def reserve(self, payload: int) -> None:
        """Have memory for payloads of this many bytes; what is there already stays."""
        with self.changed:
            if self.kept is None or self.kept.payload != payload:
                seat, on = self.seat, self.seat.switches
                self.kept = Shard(payload, seat.node, seat.nodes, on.parity, on.double, on.sums)
            self.changed.notify_all()

    def begin(self, snapshot: Snapshot) -> Region:
        """Where the payload of a snapshot goes."""
        with self.changed:
            return self._region(self._opened(snapshot))

    def copied(self, snapshot: Snapshot, persist: str | None = None) -> None:
        """The payload is there: encode it with the peers, and answer when this node has the version complete.

        persist: a file into which it is then written too, whole or not at all.
        """
        one, seat = self.shard, self.seat
        with self.changed:
            half = self._opened(snapshot)
            sums = one.take_sums(half)
        for index in range(one.blocks if one.parity else 0):
            with self.sending:
                self._current(snapshot)
                wire = self._wire(holder(seat.node, index, seat.nodes))
                wire.send(("cover", (snapshot, seat.node, index, sums)))
                wire.send_bytes(one.own(half, index))
                self.block_bytes_sent += one.block
        self._wait(lambda: one.complete(half) or snapshot.epoch != self.epoch)
        self._current(snapshot)  # else the half that completed is the next attempt's
        if persist is not None:
            write_sealed(Path(persist), one.bytes[half.start : half.start + one.payload], seat.disk)

    def load(self, version: int) -> Region:
        """Where a complete version's payload is. NoVersion where there is none."""
        with self.changed:
            return self._region(self.shard.find(version))

    # ---- from peers

    def cover(self, snapshot: Snapshot, node: int, index: int, sums: tuple[int, ...], block: bytes) -> None:
        """A peer's block, to be XORed into the parity; the first word of a version may be a peer's."""
        self._wait(lambda: self.kept is not None)
        with self.changed:
            self.shard.cover(self._opened(snapshot), node, index, sums, block)
            self.changed.notify_all()

    def give(self, version: int) -> tuple[int, np.ndarray, np.ndarray, dict[int, tuple[int, ...]]]:
        """Of a complete version the payload's size, the padded payload, the parity, and the checksums of all nodes."""
        one, half = self.shard, self.shard.find(version)
        parity = one.own(half, one.blocks)
        return one.payload, one.bytes[half.start :][: one.blocks * one.block], parity, half.sums

    # ---- from the launcher

    def meet(self, peers: dict[int, str]) -> None:
        """The addresses of the group's other snapshot processes, by node."""
        with self.sending:
            for wire in self.wires.values():
                wire.close()
            self.peers, self.wires = dict(peers), {}

    def inventory(self) -> list[int]:
        """Complete versions."""
        with self.changed:
            return self.kept.versions if self.kept else []

    def verify(self, version: int) -> list[str]:
        """What of a version is not what was stored: "node 1: parity"; nothing where checksums are not looked at."""
        bad = self.shard.damaged(self.shard.find(version))
        return [f"node {self.seat.node}: {block}" for block in bad]

    def settle(self, version: int | None, epoch: int) -> None:
        """Attempt `epoch` goes on from this version: whatever else is here belongs to a future that did not come."""
        with self.changed:
            self.epoch, self.failed = epoch, None
            for half in self.kept.halves if self.kept else ():
                if half.version != version or not self.shard.complete(half):
                    self.shard.clear(half)
            self.changed.notify_all()

    def rebuild(self, version: int) -> None:
        """Make a lost node's shard and parity again from its peers. Damaged: what can't be used."""
        seat = self.seat
        shards, parities = {}, {}
        for peer in self.peers:
            payload, shards[peer], parities[peer], sums = call(self._wire(peer), "give", version)
        self.reserve(payload)
        one = self.shard
        with self.changed:
            half = one.open(version, None)
        found = rebuild(seat.node, seat.nodes, shards, parities)
        one.bytes[half.start :][: len(found)] = found
        if one.take_sums(half) != sums[seat.node] and one.checked:
            raise Damaged(f"version {version} of lost node {seat.node}, rebuilt from its peers")
        for peer, index in covered(seat.node, seat.nodes).items():
            block = shards[peer][index * one.block : (index + 1) * one.block]
            one.cover(half, peer, index, sums[peer], block.tobytes())

    def damage(self, index: int) -> None:
        """Flip a bit in each of four bytes of a block (index m - 1: the parity) of all versions, as bad memory would.

        For experiments. Four in a row touch the exponent of some number: its last bit alone may be rounded away.
        """
        for version in self.inventory():
            block = self.shard.own(self.shard.find(version), index)
            block[len(block) // 2 :][:4] ^= 1

    def account(self) -> dict[str, int]:
        """Bytes of memory held, and of blocks sent to peers."""
        return {"memory": len(self.shard.bytes), "sent": self.block_bytes_sent}

    # ---- inside

    def _region(self, half: Half) -> Region:
        return Region(self.shard.memory.address, half.start, self.shard.payload)

    def _current(self, snapshot: Snapshot) -> None:
        if snapshot.epoch != self.epoch:
            raise Stale(f"version {snapshot.version} is of attempt {snapshot.epoch}, this is {self.epoch}")

    def _opened(self, snapshot: Snapshot) -> Half:
        self._current(snapshot)
        return self.shard.open(snapshot.version, snapshot.clean)

    def _wait(self, true: Callable[[], bool]) -> None:
        with self.changed:
            done = self.changed.wait_for(lambda: true() or self.failed is not None, SECONDS_TO_COMPLETE)
        if self.failed is not None:
            raise self.failed
        if not done:
            raise RuntimeError(f"node {self.seat.node} waited {SECONDS_TO_COMPLETE:g} s for its peers")

    def _wire(self, peer: int) -> Wire:
        if peer not in self.wires:
            self.wires[peer] = connect(self.peers[peer], self.seat.key, self.seat.network)
        return self.wires[peer]

    def serve(self, wire: Wire) -> None:
        """Answer questions of one connection until it is closed. Blocks of peers need no answer."""
        while True:
            try:
                question, arguments = wire.receive()
                if question == "cover":
                    snapshot, node, index, sums = arguments
                    self.cover(snapshot, node, index, sums, wire.receive_bytes())
                else:
                    answer(wire, self, question, arguments)
            except (EOFError, OSError):
                return
            except Stale:
                continue
            except Exception as error:  # a block that can't be used: whoever waits for it must hear of it
                with self.changed:
                    self.failed = self.failed or error
                    self.changed.notify_all()


def keep(connection: Connection, seat: Seat) -> None:
    """The life of a snapshot process: listen, and answer the launcher until it goes."""
    kept = SnapshotProcess(seat)
    listen(seat.address, seat.key, kept.serve, seat.network)
    wire = Wire(connection)
    wire.send("ready")
    kept.serve(wire)
