"""Which physical KV blocks each request holds: runs of neighbours (FastSwitch), or one block at a time (vLLM).

A copy call moves neighbours together. Both allocators count usage a block at a time: what a group holds in reserve
stays free for everybody and is taken away when somebody needs it, so that admission is the same with both.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

BLOCK_TOKENS = 16  # vLLM's default
INITIAL_TARGET = 60  # blocks of a first group; about what the paper starts with (unverified)
MOST_TARGET = 4 * INITIAL_TARGET  # however much is free (inferred)
SCARCE, PLENTY = 0.10, 0.30  # free shares below which groups halve, above which they double (inferred)


class Run(NamedTuple):
    """Neighbouring blocks start .. start + length - 1."""

    start: int
    length: int


class Piece(NamedTuple):
    """What one copy call moves a layer and K or V: `length` blocks, neighbours on both sides."""

    source: int
    target: int
    length: int


class BlockTables(Protocol):
    """The physical blocks of every owner, in the order of its tokens."""

    capacity: int

    @property
    def free(self) -> int:
        """Blocks that nobody uses, reserved or not."""

    def allocate(self, owner: Hashable, blocks: int) -> None:
        """Give `owner` so many more blocks. Raises MemoryError where fewer are free, ValueError below 0."""

    def runs(self, owner: Hashable) -> list[Run]:
        """The used blocks of an owner, as the runs that are copied as one."""

    def used(self, owner: Hashable) -> int:
        """How many blocks an owner uses."""

    def detach(self, owner: Hashable) -> list[Run]:
        """Take all from an owner, without freeing it: the used runs, which somebody may still read."""

    def give_back(self, runs: Iterable[Run]) -> None:
        """Free runs that were detached. Raises ValueError for more blocks than were."""

    def truncate(self, owner: Hashable, blocks: int) -> None:
        """Free an owner's blocks beyond its first `blocks`. Raises ValueError below 0."""


def _check(blocks: int, most: float, error: type[Exception] = MemoryError) -> None:
    if blocks < 0:
        raise ValueError(f"{blocks} blocks are fewer than none")
    if blocks > most:
        raise error(f"{blocks} blocks asked for or given back, at most {most} can be")


class FreeRuns:
    """Free blocks as maximal runs: neighbours merge, and the best fit is found by size."""

    def __init__(self, blocks: int) -> None:
        self._length: dict[int, int] = {}  # by start
        self._start: dict[int, int] = {}  # by the block behind the run's last
        self._by_size: list[tuple[int, int]] = []  # (length, start), ascending
        if blocks:
            self.add(0, blocks)

    def __iter__(self) -> Iterator[Run]:
        return iter(Run(start, length) for start, length in sorted(self._length.items()))

    def __len__(self) -> int:
        return len(self._length)

    def add(self, start: int, length: int) -> None:
        """Free a run, which merges with the free runs before and behind it."""
        if start in self._start:
            before = self._start[start]
            length += self._length[before]
            self._drop(before)
            start = before
        if start + length in self._length:
            behind = start + length
            length += self._length[behind]
            self._drop(behind)
        self._keep(start, length)

    def take(self, blocks: int) -> Run:
        """The start of the best fit: the smallest run of at least `blocks`, else all of the largest run."""
        place = bisect_left(self._by_size, (blocks, -1))
        length, start = self._by_size[min(place, len(self._by_size) - 1)]
        return self._cut(start, min(length, blocks))

    def take_at(self, start: int, most: int) -> int:
        """Take up to `most` blocks from the run that begins at `start`: how many there were (0: no such run)."""
        length = self._length.get(start, 0)
        return self._cut(start, min(length, most)).length if length else 0

    def _cut(self, start: int, blocks: int) -> Run:
        length = self._length[start]
        self._drop(start)
        if length > blocks:
            self._keep(start + blocks, length - blocks)
        return Run(start, blocks)

    def _keep(self, start: int, length: int) -> None:
        self._length[start] = length
        self._start[start + length] = start
        insort(self._by_size, (length, start))

    def _drop(self, start: int) -> None:
        length = self._length.pop(start)
        del self._start[start + length]
        del self._by_size[bisect_left(self._by_size, (length, start))]


@dataclass
class Group:
    """A run of blocks of one request, of which the first `used` store tokens."""

    start: int
    length: int
    used: int


class BlockGroups:
    """The Dynamic Block Group Manager: each request's blocks in few long runs, the last of them "active".

    target: blocks that a new group asks for at least; it adapts to how much is free. longest: of any group; 1 leaves
    nothing of the idea.
    """

    def __init__(self, capacity: int, target: int = INITIAL_TARGET, longest: int | None = None) -> None:
        if min(capacity, target, 1 if longest is None else longest) < 1:
            raise ValueError(
                f"capacity ({capacity}), target ({target}), longest ({longest}): at least a block"
            )
        self.capacity = capacity
        self.free = capacity
        self._away = 0  # blocks detached, and not given back yet
        self.longest = longest or capacity
        self.target = min(target, self.longest)
        self._unused = FreeRuns(capacity)
        self._groups: dict[Hashable, list[Group]] = {}

    def allocate(self, owner: Hashable, blocks: int) -> None:
        """See BlockTables: the active group's reserve first, then the run behind it, then new groups."""
        _check(blocks, self.free)
        self.free -= blocks
        groups = self._groups.setdefault(owner, [])
        while blocks:
            if not (groups and groups[-1].used < groups[-1].length) and not self._extend(groups, blocks):
                groups.append(self._new_group(blocks))
            active = groups[-1]
            taken = min(blocks, active.length - active.used)
            active.used += taken
            blocks -= taken

    def _extend(self, groups: list[Group], blocks: int) -> bool:
        """Lengthen the active group by free neighbours behind it; False where there are none."""
        if not groups or groups[-1].length >= self.longest:
            return False
        active = groups[-1]
        wanted = min(max(blocks, self._adapted()), self.longest - active.length)
        found = self._unused.take_at(active.start + active.length, wanted)
        active.length += found
        return found > 0

    def _new_group(self, blocks: int) -> Group:
        wanted = min(max(blocks, self._adapted()), self.longest)
        run = self._unused.take(wanted) if len(self._unused) else self._steal()
        return Group(run.start, run.length, 0)

    def _adapted(self) -> int:
        """The target after a look at the free share of all blocks."""
        share = self.free / self.capacity
        if share < SCARCE:
            self.target = max(1, self.target // 2)
        elif share > PLENTY:
            self.target = min(2 * self.target, max(MOST_TARGET, self.target), self.longest)
        return self.target

    def _steal(self) -> Run:
        """The second half of the longest reserve of any request (the whole of a single block)."""
        active = (groups[-1] for groups in self._groups.values() if groups)
        donor = max(active, key=lambda group: group.length - group.used)
        taken = (donor.length - donor.used + 1) // 2
        donor.length -= taken
        return Run(donor.start + donor.length, taken)

    def runs(self, owner: Hashable) -> list[Run]:
        return [Run(group.start, group.used) for group in self._groups.get(owner, ()) if group.used]

    def used(self, owner: Hashable) -> int:
        return sum(group.used for group in self._groups.get(owner, ()))

    def detach(self, owner: Hashable) -> list[Run]:
        """See BlockTables; the reserve is free at once, for nobody reads it."""
        held = self._groups.pop(owner, [])
        for group in held:
            self._free_tail(group)
            self._away += group.used
        return [Run(group.start, group.used) for group in held if group.used]

    def give_back(self, runs: Iterable[Run]) -> None:
        for start, length in runs:
            _check(length, self._away, ValueError)
            self._away -= length
            self._unused.add(start, length)
            self.free += length

    def truncate(self, owner: Hashable, blocks: int) -> None:
        _check(blocks, math.inf)
        groups = self._groups.get(owner, [])
        surplus = self.used(owner) - blocks
        while surplus > 0:
            last = groups[-1]
            freed = min(surplus, last.used)
            last.used -= freed
            self.free += freed
            surplus -= freed
            self._free_tail(last)
            if not last.used:
                groups.pop()

    def _free_tail(self, group: Group) -> None:
        if group.length > group.used:
            self._unused.add(group.start + group.used, group.length - group.used)
            group.length = group.used


class SingleBlocks:
    """vLLM's block tables: blocks one at a time from a stack of free ones, and one copy call a block.

    Source: vLLM 0.3.3, vllm/core/block_manager.py (BlockAllocator: `free_blocks.pop()`), csrc/cache_kernels.cu
    (`swap_blocks`: a cudaMemcpyAsync a block).
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least one block, not {capacity}")
        self.capacity = capacity
        self._stack = [Run(block, 1) for block in range(capacity)]
        self._away = 0  # blocks detached, and not given back yet
        self._blocks: dict[Hashable, list[Run]] = {}

    @property
    def free(self) -> int:
        return len(self._stack)

    def allocate(self, owner: Hashable, blocks: int) -> None:
        _check(blocks, len(self._stack))
        if blocks:
            self._blocks.setdefault(owner, []).extend(self._stack[: -blocks - 1 : -1])
            del self._stack[-blocks:]

    def runs(self, owner: Hashable) -> list[Run]:
        """See BlockTables: no call moves more than one block, even where neighbours follow one another."""
        return list(self._blocks.get(owner, ()))

    def used(self, owner: Hashable) -> int:
        return len(self._blocks.get(owner, ()))

    def detach(self, owner: Hashable) -> list[Run]:
        held = self._blocks.pop(owner, [])
        self._away += len(held)
        return held

    def give_back(self, runs: Iterable[Run]) -> None:
        back = list(runs)
        _check(len(back), self._away, ValueError)
        self._away -= len(back)
        self._stack.extend(back)

    def truncate(self, owner: Hashable, blocks: int) -> None:
        _check(blocks, math.inf)
        held = self._blocks.get(owner, [])
        self._stack.extend(held[blocks:])
        del held[blocks:]


def pieces(source: list[Run], target: list[Run], first: int = 0, blocks: int | None = None) -> list[Piece]:
    """The copy calls, a layer and K or V, that bring blocks `first` .. `blocks` - 1 from source to target.

    Both sides are the runs of one request from its first block on; they are copied up to the shorter side's end, or to
    `blocks`. A call never reaches over the end of a run on either side.
    """
    if all(run.length == 1 for run in (*source, *target)):  # block by block: one pass
        pairs = zip(source[first:blocks], target[first:blocks], strict=False)
        return [Piece(one.start, other.start, 1) for one, other in pairs]
    left, right = _borders(source), _borders(target)
    end = min(left[-1], right[-1], left[-1] if blocks is None else blocks)
    cuts = sorted({border for border in (*left, *right) if first < border < end} | {first, end})
    return [
        Piece(_place(source, left, begin), _place(target, right, begin), until - begin)
        for begin, until in pairwise(cuts)
        if begin < end
    ]


def _borders(runs: list[Run]) -> list[int]:
    """How many blocks lie before each run, and in all."""
    return [0, *accumulate(run.length for run in runs)]


def _place(runs: list[Run], borders: list[int], block: int) -> int:
    """Where the `block`-th block of runs lies."""
    index = bisect_right(borders, block) - 1
    return runs[index].start + block - borders[index]
