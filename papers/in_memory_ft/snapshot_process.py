"""The snapshot management process of a node: it owns the memory, and lives on when the node's trainer dies.

It answers the launcher, its trainer and its peers, each over a connection of its own and on a thread of its own.
Killing it loses its memory, which is what losing the node means here.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from common.distributed.memory import Address
from common.distributed.questions import answer, call, connect, listen
from common.distributed.sealed_file import Damaged, checksum, write_sealed
from common.distributed.throttled import Device
from common.distributed.traffic import Wire
from papers.in_memory_ft.buffers import Half, NoVersion, Shard
from papers.in_memory_ft.parity import covered, holder, rebuild_sources, xor_into

SECONDS_TO_COMPLETE = 120.0  # that a snapshot is given by its peers


class Stale(RuntimeError):
    """A message of an attempt that has failed meanwhile."""


@dataclass(frozen=True)
class Seat:
    """Where a snapshot process sits: `node` of the `nodes` of its group, and what it may use.

    name: of the socket it listens on, without a file. key: with which its connections prove themselves. sums: False to
    trust all bytes.
    """

    name: str
    key: bytes
    node: int
    nodes: int
    parity: bool = True
    double: bool = True
    sums: bool = True
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
                seat = self.seat
                self.kept = Shard(payload, seat.node, seat.nodes, seat.parity, seat.double)
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

    def fetch(self, version: int, index: int) -> bytes:
        """A block of a complete version (index m - 1: the parity). Damaged if its checksum says so."""
        half = self.shard.find(version)
        if self.seat.sums and (bad := self.shard.check(half, index)):
            raise Damaged(f"{bad} of node {self.seat.node}, version {version}")
        return self.shard.own(half, index).tobytes()

    def known(self, version: int) -> tuple[int, dict[int, tuple[int, ...]]]:
        """Payload bytes and all checksums of a complete version."""
        return self.shard.payload, dict(self.shard.find(version).sums)

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
        one, half = self.shard, self.shard.find(version)
        found = [one.check(half, index) for index in range(one.blocks + one.parity)] if self.seat.sums else []
        return [f"node {self.seat.node}: {bad}" for bad in found if bad]

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
        wires = {peer: self._wire(peer) for peer in self.peers}
        facts = {peer: call(wire, "known", version) for peer, wire in wires.items()}
        self.reserve(next(iter(facts.values()))[0])
        one = self.shard
        with self.changed:
            half = one.open(version, None)
        for index in range(one.blocks):
            parity, others = rebuild_sources(seat.node, index, seat.nodes)
            own = one.own(half, index)
            for peer, place in {parity: one.blocks, **others}.items():
                xor_into(own, call(wires[peer], "fetch", version, place))
            if seat.sums and checksum(own) != facts[parity][1][seat.node][index]:
                raise Damaged(
                    f"block {index} of lost node {seat.node}, version {version}, rebuilt from {parity}"
                )
        one.take_sums(half)
        for peer, index in covered(seat.node, seat.nodes).items():
            block = call(wires[peer], "fetch", version, index)
            unread = (0,) * index + (checksum(block),)  # where nobody looks at checksums
            one.cover(half, peer, index, facts[peer][1][peer] if seat.sums else unread, block)

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

    def listen(self) -> None:
        """Answer whoever connects to the seat's address, each on a thread."""
        listen(self.seat.address, self.seat.key, self.serve, self.seat.network)

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
    kept.listen()
    wire = Wire(connection)
    wire.send("ready")
    kept.serve(wire)
