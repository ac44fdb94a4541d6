"""Two halves for each shard: the clean one holds the last version that every group has, the dirty one the next.

A half is [own payload, padded to m - 1 blocks | parity block]. It is complete when the own payload was copied and every
peer's block was received; a failure before that leaves the other half as it was.
"""

from dataclasses import dataclass, field

import numpy as np

from common.distributed.memory import Memory
from common.distributed.sealed_file import Damaged, checksum
from papers.in_memory_ft.parity import block_bytes, xor_into


class NoVersion(RuntimeError):
    """A version that a process does not have complete."""


@dataclass
class Half:
    """What is known of one half. sums: CRC-32 of every block, by node of the group; this node's own among them."""

    version: int | None = None
    copied: bool = False
    received: set[int] = field(default_factory=set)
    sums: dict[int, tuple[int, ...]] = field(default_factory=dict)
    parity_sum: int = 0


class Shard:
    """The memory of one rank's shard: two halves (one, where double is False) in memory that this process owns."""

    def __init__(self, payload: int, node: int, nodes: int, parity: bool = True, double: bool = True) -> None:
        self.payload, self.node, self.nodes = payload, node, nodes
        self.parity = parity and nodes > 1
        self.block = block_bytes(payload, nodes) if self.parity else payload
        self.blocks = nodes - 1 if self.parity else 1
        self.half_bytes = self.block * (self.blocks + self.parity)
        self.memory = Memory.make(self.half_bytes * (2 if double else 1))
        self.bytes = np.frombuffer(self.memory.view, np.uint8)
        self.halves = [Half() for _ in range(2 if double else 1)]

    @property
    def peers(self) -> list[int]:
        return [node for node in range(self.nodes) if node != self.node] if self.parity else []

    def complete(self, half: Half) -> bool:
        return half.version is not None and half.copied and half.received == set(self.peers)

    @property
    def versions(self) -> list[int]:
        """The versions that are complete here."""
        return sorted(
            half.version for half in self.halves if self.complete(half) and half.version is not None
        )

    def find(self, version: int) -> Half:
        """The half that holds a version complete. NoVersion otherwise."""
        for half in self.halves:
            if half.version == version and self.complete(half):
                return half
        raise NoVersion(f"node {self.node} has versions {self.versions} complete, not {version}")

    def open(self, version: int, clean: int | None) -> Half:
        """The half into which a version goes: opened by whoever comes first, the trainer or a peer's block.

        clean: the last version that every group has complete; its half is not touched. NoVersion if it is not here.
        """
        for half in self.halves:
            if half.version == version:
                return half
        kept = self.find(clean) if clean is not None and len(self.halves) > 1 else None
        half = next(half for half in self.halves if half is not kept)
        self.clear(half)
        half.version = version
        return half

    def clear(self, half: Half) -> None:
        """Forget what a half holds; its bytes become zeros, which padding and parity begin with."""
        half.version, half.copied, half.parity_sum = None, False, 0
        half.received, half.sums = set(), {}
        self.bytes[self.start(half) : self.start(half) + self.half_bytes] = 0

    def start(self, half: Half) -> int:
        """Where a half's payload begins in the memory."""
        return self.half_bytes * next(i for i, one in enumerate(self.halves) if one is half)

    def own(self, half: Half, index: int) -> np.ndarray:
        """A block of the own payload; uint8, a view."""
        first = self.start(half) + index * self.block
        return self.bytes[first : first + self.block]

    def parity_block(self, half: Half) -> np.ndarray:
        """The parity that this node holds; uint8, a view."""
        return self.own(half, self.blocks)

    def take_sums(self, half: Half) -> tuple[int, ...]:
        """Note that the payload is complete; its blocks' checksums."""
        half.sums[self.node] = tuple(checksum(self.own(half, i)) for i in range(self.blocks))
        half.copied = True
        return half.sums[self.node]

    def cover(self, half: Half, node: int, index: int, sums: tuple[int, ...], block: bytes) -> None:
        """XOR a peer's block into the parity. Damaged where it is not what the peer sent."""
        if checksum(block) != sums[index]:
            raise Damaged(f"block {index} of node {node}, version {half.version}, arrived damaged")
        if node in half.received:
            raise ValueError(f"node {node} sent version {half.version} twice")
        xor_into(self.parity_block(half), block)
        half.sums[node] = sums
        half.received.add(node)
        if half.received == set(self.peers):
            half.parity_sum = checksum(self.parity_block(half))

    def check(self, half: Half) -> list[str]:
        """What of a complete half no longer has its checksum: "block 0", "parity"."""
        own = half.sums[self.node]
        bad = [f"block {i}" for i in range(self.blocks) if checksum(self.own(half, i)) != own[i]]
        if self.parity and checksum(self.parity_block(half)) != half.parity_sum:
            bad.append("parity")
        return bad
