"""What a device holds: the top of the stack, in memory. Blocks are read from their files and dropped, one at a time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from papers.bitstack.block_files import BlockFiles
from papers.bitstack.decomposition import Block, restored
from papers.bitstack.universal_stack import Counts, Stack


@dataclass(frozen=True)
class Move:
    """What following a budget took: blocks read and dropped, bytes read, seconds of both."""

    loaded: int
    dropped: int
    bytes_read: int
    seconds: float


class Resident:
    """The blocks of each matrix that are in memory, most significant first; at least one each.

    misread: (matrix, block) to the matrix whose block is read in its place (a negative control).
    """

    def __init__(
        self, files: BlockFiles, misread: Callable[[str, int], str] = lambda name, index: name
    ) -> None:
        self.files, self._misread = files, misread
        self.blocks: dict[str, list[Block]] = {name: [files.read(name, 0)] for name in files.shapes}
        self._summed = dict.fromkeys(self.blocks, 0)  # blocks that are already in a matrix's weight

    @property
    def nbytes(self) -> int:
        """Of all blocks in memory, counted."""
        return sum(block.nbytes for held in self.blocks.values() for block in held)

    def counts(self) -> dict[str, int]:
        """Blocks of each matrix."""
        return {name: len(held) for name, held in self.blocks.items()}

    def push(self, name: str) -> int:
        """Read a matrix's next block from its file; its bytes."""
        held = self.blocks[name]
        block = self.files.read(self._misread(name, len(held)), len(held))
        held.append(block)
        return block.nbytes

    def pop(self, name: str) -> None:
        """Drop a matrix's last block. ValueError for its first one."""
        if len(self.blocks[name]) == 1:
            raise ValueError(f"{name} keeps its first block")
        self.blocks[name].pop()
        if self._summed[name] > len(self.blocks[name]):
            self._summed[name] = 0  # not subtracted: the sum is exactly that of a fresh load

    def hold(self, counts: Counts) -> Move:
        """Read and drop until each matrix has as many blocks as asked for."""
        loaded = dropped = read = 0
        begun = time.perf_counter()
        for name, count in counts.items():
            for _ in range(len(self.blocks[name]) - count):
                self.pop(name)
                dropped += 1
            for _ in range(count - len(self.blocks[name])):
                read += self.push(name)
                loaded += 1
        return Move(loaded, dropped, read, time.perf_counter() - begun)

    def follow(self, stack: Stack, budget: float) -> Move:
        """Hold the longest prefix of a stack that fits in `budget` bytes. ValueError where not even the base fits."""
        return self.hold(stack.counts(stack.fitting(budget)))

    def restore_into(self, layers: Mapping[str, nn.Linear]) -> list[str]:
        """Bring the weights of all matrices up to date; the names of those that changed.

        New blocks are added to a weight, in place; after a drop it is summed up anew.
        """
        changed = [name for name, held in self.blocks.items() if self._summed[name] != len(held)]
        for name in changed:
            weight, done = layers[name].weight.data, self._summed[name]
            restored(self.blocks[name][done:], weight if done else weight.zero_())
            self._summed[name] = len(self.blocks[name])
        return changed
