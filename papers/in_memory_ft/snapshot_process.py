"""The snapshot management process of a node: it owns the memory, and lives on when the node's trainers die.

It answers the launcher, its trainers and its peers, each over a connection of its own and on a thread of its own.
Killing it loses its memory, which is what losing the node means here.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from common.distributed.faults import Plan
from common.distributed.memory import Address
from common.distributed.questions import answer, call, connect, listen
from common.distributed.sealed_file import Damaged, checksum, write_sealed
from common.distributed.throttled import Device
from common.distributed.traffic import Wire
from papers.in_memory_ft.buffers import Half, Shard
from papers.in_memory_ft.parity import holder, rebuild_sources, xor_into

SECONDS_TO_COMPLETE = 120.0  # that a snapshot is given by its peers


class Stale(RuntimeError):
    """A message of an attempt that has failed meanwhile."""


@dataclass(frozen=True)
class Seat:
    """Where a snapshot process sits: `node` of the `nodes` of its group, and what it may use.

    name: of the socket it listens on, without a file. key: with which its connections prove themselves. sums: False to
    trust all bytes. plan: faults of this process, at the places "block sent" and "block received" of rank `node`.
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
    plan: Plan = field(default_factory=Plan)

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
        self.shards: dict[int, Shard] = {}
        self.changed = threading.Condition()
        self.peers: dict[int, str] = {}  # addresses
        self.wires: dict[int, Wire] = {}
        self.sent = threading.Lock()
        self.epoch = 0
        self.block_bytes_sent = 0
        self.failed: Exception | None = None

    # ---- from trainers

    def reserve(self, slot: int, payload: int) -> None:
        """Have memory for a tensor rank's payloads of this many bytes; what is there already stays."""
        with self.changed:
            known = self.shards.get(slot)
            if known is None or known.payload != payload:
                seat = self.seat
                self.shards[slot] = Shard(payload, seat.node, seat.nodes, seat.parity, seat.double)
            self.changed.notify_all()

    def begin(self, slot: int, snapshot: Snapshot) -> Region:
        """Where the payload of a snapshot goes."""
        with self.changed:
            one = self.shards[slot]
            return self._region(one, self._opened(one, snapshot))

    def copied(self, slot: int, snapshot: Snapshot, persist: str | None = None) -> None:
        """The payload is there: encode it with the peers, and answer when this node has the version complete.

        persist: a file into which it is then written too.
        """
        one = self.shards[slot]
        with self.changed:
            half = self._opened(one, snapshot)
            sums = one.take_sums(half)
            self.changed.notify_all()
        if one.parity:
            for index in range(one.blocks):
                peer = holder(self.seat.node, index, self.seat.nodes)
                with self.sent:
                    self._current(snapshot)
                    wire = self._wire(peer)
                    wire.send(("cover", (slot, snapshot, self.seat.node, index, sums)))
                    wire.send_bytes(one.own(half, index))
                    self.block_bytes_sent += one.block
                self.seat.plan.reached(self.seat.node, "block sent")
        self._wait(
            lambda: one.complete(half) or snapshot.epoch != self.epoch,
            f"version {snapshot.version} of node {self.seat.node}",
        )
        self._current(snapshot)  # else the half that completed is the next attempt's
        if persist is not None:
            self.persist(slot, snapshot.version, persist)

    def load(self, slot: int, version: int) -> Region:
        """Where a complete version's payload is."""
        with self.changed:
            one = self.shards[slot]
            return self._region(one, one.find(version))

    # ---- from peers

    def cover(
        self, slot: int, snapshot: Snapshot, node: int, index: int, sums: tuple[int, ...], block: bytes
    ) -> None:
        """A peer's block, to be XORed into the parity; the first word of a version may be a peer's."""
        self._wait(lambda: slot in self.shards, f"memory of node {self.seat.node}")
        with self.changed:
            one = self.shards[slot]
            one.cover(self._opened(one, snapshot), node, index, sums, block)
            self.changed.notify_all()
        self.seat.plan.reached(self.seat.node, "block received")

    def fetch(self, slot: int, version: int, index: int) -> bytes:
        """A block of a complete version (index m - 1: the parity). Damaged if its checksum says so."""
        one = self.shards[slot]
        half = one.find(version)
        block = one.own(half, index)
        known = half.parity_sum if index == one.blocks else half.sums[self.seat.node][index]
        if self.seat.sums and checksum(block) != known:
            what = "parity" if index == one.blocks else f"block {index}"
            raise Damaged(f"{what} of node {self.seat.node}, version {version}")
        return block.tobytes()

    def known(self, slot: int, version: int) -> tuple[int, dict[int, tuple[int, ...]]]:
        """Payload bytes and all checksums of a complete version."""
        one = self.shards[slot]
        return one.payload, dict(one.find(version).sums)

    # ---- from the launcher

    def meet(self, peers: dict[int, str]) -> None:
        """The addresses of the group's other snapshot processes, by node."""
        with self.sent:
            for wire in self.wires.values():
                wire.close()
            self.peers, self.wires = dict(peers), {}

    def inventory(self) -> dict[int, list[int]]:
        """Complete versions by slot."""
        with self.changed:
            return {slot: one.versions for slot, one in self.shards.items()}

    def verify(self, version: int) -> list[str]:
        """What of a version is not what was stored: "node 1: parity"; nothing where checksums are not looked at."""
        if not self.seat.sums:
            return []
        bad = []
        for one in self.shards.values():
            bad += [f"node {self.seat.node}: {what}" for what in one.check(one.find(version))]
        return bad

    def settle(self, version: int | None, epoch: int) -> None:
        """Attempt `epoch` goes on from this version: whatever else is here belongs to a future that did not come."""
        with self.changed:
            self.epoch, self.failed = epoch, None
            for one in self.shards.values():
                for half in one.halves:
                    if half.version != version or not one.complete(half):
                        one.clear(half)
            self.changed.notify_all()

    def rebuild(self, slot: int, version: int) -> None:
        """Make a lost node's shard and parity again from its peers. Damaged: what can't be used."""
        seat = self.seat
        wires = {peer: self._wire(peer) for peer in self.peers}
        facts = {peer: call(wire, "known", slot, version) for peer, wire in wires.items()}
        payload = next(iter(facts.values()))[0]
        self.reserve(slot, payload)
        one = self.shards[slot]
        with self.changed:
            half = one.open(version, None)
        for index in range(one.blocks):
            parity, others = rebuild_sources(seat.node, index, seat.nodes)
            own = one.own(half, index)
            xor_into(own, self._fetched(wires[parity], slot, version, one.blocks))
            for peer, place in others.items():
                xor_into(own, self._fetched(wires[peer], slot, version, place))
            told = facts[parity][1][seat.node][index]
            if seat.sums and checksum(own) != told:
                raise Damaged(
                    f"block {index} of lost node {seat.node}, version {version}, rebuilt from node {parity}"
                )
        one.take_sums(half)
        for peer in one.peers:
            index = (seat.node - peer - 1) % seat.nodes
            block = self._fetched(wires[peer], slot, version, index)
            one.cover(half, peer, index, facts[peer][1][peer] if seat.sums else _sums(index, block), block)

    def persist(self, slot: int, version: int, file: str) -> None:
        """Write a complete version's payload to disk; it is there whole or not at all."""
        one = self.shards[slot]
        half = one.find(version)
        start = one.start(half)
        write_sealed(Path(file), one.bytes[start : start + one.payload], self.seat.disk)

    def damage(self, slot: int, version: int, index: int) -> None:
        """Flip a bit in each of four bytes of a stored block (index m - 1: the parity), as failing memory would.

        For experiments. Four in a row touch the exponent of some number: its last bit alone may be rounded away.
        """
        one = self.shards[slot]
        middle = one.block // 2
        one.own(one.find(version), index)[middle : middle + 4] ^= 1

    def account(self) -> dict[str, int]:
        """Bytes of memory held, and of blocks sent to peers."""
        held = sum(one.memory.address.nbytes for one in self.shards.values())
        return {"memory": held, "sent": self.block_bytes_sent}

    # ---- inside

    def _region(self, one: Shard, half: Half) -> Region:
        return Region(one.memory.address, one.start(half), one.payload)

    def _current(self, snapshot: Snapshot) -> None:
        if snapshot.epoch != self.epoch:
            raise Stale(
                f"version {snapshot.version} belongs to attempt {snapshot.epoch}, this is {self.epoch}"
            )

    def _opened(self, one: Shard, snapshot: Snapshot) -> Half:
        self._current(snapshot)
        return one.open(snapshot.version, snapshot.clean)

    def _wait(self, true: Callable[[], bool], what: str) -> None:
        with self.changed:
            done = self.changed.wait_for(lambda: true() or self.failed is not None, SECONDS_TO_COMPLETE)
        if self.failed is not None:
            raise self.failed
        if not done:
            raise TimeoutError(f"{what} was not complete after {SECONDS_TO_COMPLETE:g} s")

    def _wire(self, peer: int) -> Wire:
        if peer not in self.wires:
            self.wires[peer] = connect(self.peers[peer], self.seat.key, self.seat.network)
        return self.wires[peer]

    def _fetched(self, wire: Wire, slot: int, version: int, index: int) -> bytes:
        return call(wire, "fetch", slot, version, index)

    def listen(self) -> None:
        """Answer whoever connects to the seat's address, each on a thread."""
        listen(self.seat.address, self.seat.key, self.serve, self.seat.network)

    def serve(self, wire: Wire) -> None:
        """Answer questions of one connection until it is closed. Blocks of peers need no answer."""
        while True:
            try:
                question, arguments = wire.receive()
                if question == "cover":
                    slot, snapshot, node, index, sums = arguments
                    self.cover(slot, snapshot, node, index, sums, wire.receive_bytes())
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


def _sums(index: int, block: bytes) -> tuple[int, ...]:
    """A checksum for a block that nobody checks."""
    return (0,) * index + (checksum(block),)
