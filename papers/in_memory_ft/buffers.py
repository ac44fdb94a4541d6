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
    """What is known of one half. sums: CRC-32 of every block, by the nodes of the group whose bytes are in here."""

    start: int  # where its payload begins in the memory
    version: int | None = None
    sums: dict[int, tuple[int, ...]] = field(default_factory=dict)
    parity_sum: int = 0


class Shard:
    """The memory of one rank's shard, which this process owns.

    double: False for one half instead of two. checked: False to trust all bytes.
    """

    def __init__(
        self,
        payload: int,
        node: int,
        nodes: int,
        parity: bool = True,
        double: bool = True,
        checked: bool = True,
    ) -> None:
        self.payload, self.node, self.checked = payload, node, checked
        self.parity = parity and nodes > 1
        self.peers = set(range(nodes)) - {node} if self.parity else set()
        self.block = block_bytes(payload, nodes) if self.parity else payload
        self.blocks = nodes - 1 if self.parity else 1
        self.half_bytes = self.block * (self.blocks + self.parity)
        self.memory = Memory.make(self.half_bytes * (2 if double else 1))
        self.bytes = np.frombuffer(self.memory.view, np.uint8)
        self.halves = [Half(start) for start in range(0, len(self.bytes), self.half_bytes)]

    def complete(self, half: Half) -> bool:
        return half.version is not None and half.sums.keys() == self.peers | {self.node}

    @property
    def versions(self) -> list[int]:
        """The versions that are complete here."""
        return sorted(half.version or 0 for half in self.halves if self.complete(half))

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
        half.version, half.sums, half.parity_sum = None, {}, 0
        self.bytes[half.start : half.start + self.half_bytes] = 0

    def own(self, half: Half, index: int) -> np.ndarray:
        """A block of the own payload (index m - 1: the parity that this node holds); uint8, a view."""
        first = half.start + index * self.block
        return self.bytes[first : first + self.block]

    def take_sums(self, half: Half) -> tuple[int, ...]:
        """Note that the payload is complete; its blocks' checksums."""
        half.sums[self.node] = tuple(checksum(self.own(half, i)) for i in range(self.blocks))
        return half.sums[self.node]

    def cover(self, half: Half, node: int, index: int, sums: tuple[int, ...], block: bytes) -> None:
        """XOR a peer's block into the parity. Damaged where it is not what the peer sent."""
        if self.checked and checksum(block) != sums[index]:
            raise Damaged(f"block {index} of node {node}, version {half.version}, arrived damaged")
        if node in half.sums:
            raise ValueError(f"node {node} sent version {half.version} twice")
        parity = self.own(half, self.blocks)
        xor_into(parity, block)
        half.sums[node] = sums
        if self.peers <= half.sums.keys():
            half.parity_sum = checksum(parity)

    def damaged(self, half: Half) -> list[str]:
        """Names of the blocks of a complete half that no longer have their checksum: "block 0", "parity"."""
        known = [*half.sums[self.node], *([half.parity_sum] if self.parity else [])]
        return [
            f"block {index}" if index < self.blocks else "parity"
            for index, one in enumerate(known)
            if self.checked and checksum(self.own(half, index)) != one
        ]
