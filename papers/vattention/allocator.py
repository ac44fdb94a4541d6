"""Which slot a request gets, and when pages are mapped and taken back: vAttention's allocator.

A slot is a request's fixed part of every KV tensor. Pages of a slot are mapped from its beginning on and unmapped from
its end. Memory is counted in KV blocks: one page in each tensor (2 x layers of them). Sources: vAttention (ASPLOS
2025), Sections 5.3 and 6; order of reclamation and eager limits as in the authors' vattention/vattention.cu.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

EAGER_STEPS = 9  # iterations to look ahead (vattention.cu: EAGER_NUM_STEPS 10, exclusive)
EAGER_BLOCKS = 2  # blocks after which looking ahead stops (vattention.cu: EAGER_NUM_KVBLOCKS)


@dataclass(frozen=True)
class Layout:
    """Sizes of the KV tensors on one worker, each of shape (slots, longest, kv_heads, head_dim)."""

    layers: int
    slots: int  # B, the largest batch
    longest: int  # L, tokens
    kv_heads: int
    head_dim: int
    element_bytes: int
    page_bytes: int
    sliced: bool = (
        False  # one K and one V tensor for all layers, shape (slots, longest, layers, kv_heads, head_dim)
    )

    @property
    def tensors(self) -> int:
        """Virtual tensors, and so pages of a KV block."""
        return 2 if self.sliced else 2 * self.layers

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in one tensor."""
        return self.kv_heads * self.head_dim * self.element_bytes * (self.layers if self.sliced else 1)

    @property
    def tokens_per_page(self) -> int:
        """Whole tokens of a page in one tensor."""
        return self.page_bytes // self.token_bytes

    @property
    def slot_bytes(self) -> int:
        """S: a slot's part of a tensor, whole pages, so that each slot begins at a mappable address."""
        return -(-self.longest * self.token_bytes // self.page_bytes) * self.page_bytes

    @property
    def virtual_bytes(self) -> int:
        """Of all tensors."""
        return self.tensors * self.slots * self.slot_bytes

    @property
    def block_bytes(self) -> int:
        """Physical bytes of a KV block."""
        return self.tensors * self.page_bytes

    @property
    def pages_per_slot(self) -> int:
        return self.slot_bytes // self.page_bytes

    def __post_init__(self) -> None:
        sizes = (self.layers, self.slots, self.longest, self.kv_heads, self.head_dim, self.element_bytes)
        if min(sizes) < 1 or self.page_bytes < 1:
            raise ValueError(f"a layout has sizes of one at least, not {self}")
        if self.token_bytes > self.page_bytes:
            raise ValueError(f"a page of {self.page_bytes} bytes holds no token of {self.token_bytes}")

    def pages(self, tokens: int) -> int:
        """Pages in each tensor behind the first `tokens` tokens of a slot."""
        return -(-tokens * self.token_bytes // self.page_bytes)


class Backing(Protocol):
    """What maps a KV block: page number `index` of a slot in every tensor."""

    def map(self, slot: int, index: int, block: int) -> None: ...

    def unmap(self, slot: int, index: int) -> None: ...


class OutOfPages(RuntimeError):
    """A prompt needs more pages than the pool and all reclaimable pages: whoever admitted it counted wrongly."""


class Allocator:
    """Slots, their pages, and the background thread.

    blocks: KV blocks of the pool. deferred: keep the pages of a finished request for the next one (False: give one
    page an iteration back when nothing else is to do). overlap: map the next iterations' pages during compute (False:
    wait for the thread before compute, the negative control).
    """

    def __init__(
        self, layout: Layout, blocks: int, backing: Backing, *, deferred: bool = True, overlap: bool = True
    ) -> None:
        self.layout, self.backing = layout, backing
        self.deferred, self.overlap = deferred, overlap
        self.capacity = blocks
        self.pool = list(range(blocks))[::-1]  # free KV blocks
        self.held: list[list[int]] = [[] for _ in range(layout.slots)]  # KV blocks behind each slot, in order
        self.lengths = [0] * layout.slots  # tokens; 0: inactive
        self.background_blocks = 0  # mapped by the thread so far
        self.critical_blocks = 0  # mapped while a step waited
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-mapper")
        self._running: Future[None] | None = None

    def mapped(self, slot: int) -> int:
        """Pages of a slot in each tensor."""
        return len(self.held[slot])

    def free_blocks(self) -> int:
        """KV blocks that a new request may count on: the pool, and what slots hold beyond their need (or lack)."""
        self.wait()
        return len(self.pool) + sum(self.mapped(slot) - self._need(slot) for slot in range(self.layout.slots))

    def alloc_reqid(self, tokens: int) -> int:
        """A slot for a request of `tokens` tokens: the inactive one with fewest pages that suffice, else the first.

        RuntimeError where every slot is active; ValueError for no tokens, or more than a slot holds.
        """
        if not 1 <= tokens <= self.layout.longest:
            raise ValueError(f"a slot holds 1 to {self.layout.longest} tokens, not {tokens}")
        self.wait()
        inactive = [slot for slot, length in enumerate(self.lengths) if length == 0]
        if not inactive:
            raise RuntimeError(f"all {self.layout.slots} slots are active")
        need = self.layout.pages(tokens)
        fitting = [slot for slot in inactive if self.mapped(slot) >= need]
        slot = min(fitting, key=self.mapped) if fitting else inactive[0]
        self.lengths[slot] = tokens
        return slot

    def free_reqid(self, slot: int) -> None:
        """The request has ended; its pages stay mapped (deferred reclamation). ValueError for a slot without one."""
        if not 0 <= slot < self.layout.slots or self.lengths[slot] == 0:
            raise ValueError(f"slot {slot} has no request to end; slots are 0 to {self.layout.slots - 1}")
        self.wait()
        self.lengths[slot] = 0

    def step_async(self, lengths: Sequence[int]) -> None:
        """Before an iteration: map what it needs, then map ahead for the next ones in the background.

        lengths: tokens of each slot after this iteration, 0 where inactive. Raises OutOfPages, and ValueError where
        they are not one length a slot, each of at most `longest` tokens.
        """
        self._take(lengths)
        self._map_current()
        self._running = self._thread.submit(self._map_ahead)
        if not self.overlap:
            self.wait()

    def step(self, lengths: Sequence[int], eager_reclaim: bool = False) -> None:
        """The same without overlap or looking ahead. eager_reclaim: unmap every page of an inactive slot."""
        self._take(lengths)
        for slot, length in enumerate(self.lengths):
            if eager_reclaim and length == 0:
                self._shrink(slot, 0)
        self._map_current()

    def _take(self, lengths: Sequence[int]) -> None:
        if len(lengths) != self.layout.slots or not all(0 <= each <= self.layout.longest for each in lengths):
            raise ValueError(
                f"{self.layout.slots} slots have lengths of 0 to {self.layout.longest} tokens each, not {list(lengths)}"
            )
        self.wait()
        self.lengths = list(lengths)

    def wait(self) -> None:
        """Until the background thread is done; what it raised is raised here."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """End the background thread and unmap everything; what the thread raised last is raised at the end."""
        self._thread.shutdown()
        for slot in range(self.layout.slots):
            self._shrink(slot, 0)
        self.wait()

    def _need(self, slot: int) -> int:
        return self.layout.pages(self.lengths[slot])

    def _missing(self, slot: int, ahead: int) -> int:
        """Pages that an active slot lacks for `ahead` more tokens."""
        if self.lengths[slot] == 0:
            return 0
        need = min(self.layout.pages(self.lengths[slot] + ahead), self.layout.pages_per_slot)
        return max(0, need - self.mapped(slot))

    def _map_current(self) -> None:
        """Pages of this iteration, on the critical path; normally only new prompts need any."""
        for slot in range(self.layout.slots):
            need = self._need(slot) - self.mapped(slot)
            if need <= 0:
                continue
            if len(self.pool) < need:
                self._reclaim(need)
            if len(self.pool) < need:
                raise OutOfPages(
                    f"slot {slot} needs {need} more KV blocks; {len(self.pool)} are free and none can be reclaimed"
                )
            self._grow(slot, need)
            self.critical_blocks += need

    def _map_ahead(self) -> None:
        """The background thread: pages of the next iterations, or one page given back."""
        slots = range(self.layout.slots)
        if not any(self._missing(slot, EAGER_STEPS) for slot in slots):  # the usual case, decided at once
            if not self.deferred:
                self._give_one_back()
            return
        need = sum(self._missing(slot, 1) for slot in slots)
        if len(self.pool) < need:
            self._reclaim(need)
        if len(self.pool) < need:
            return  # memory may come free when a request ends
        grown = 0
        for ahead in range(1, EAGER_STEPS + 1):
            for slot in slots:
                missing = self._missing(slot, ahead)
                if missing <= len(self.pool):
                    self._grow(slot, missing)
                    self.background_blocks += missing
                    grown += missing
                if ahead > 1 and grown >= EAGER_BLOCKS:
                    break
            if ahead > 1 and grown >= EAGER_BLOCKS:
                break
        if need == 0 and not self.deferred:
            self._give_one_back()

    def _reclaim(self, blocks: int) -> None:
        """From the highest slot down, unmap what is beyond need, until the pool has `blocks`."""
        for slot in reversed(range(self.layout.slots)):
            if len(self.pool) >= blocks:
                return
            self._shrink(slot, self._need(slot))

    def _give_one_back(self) -> None:
        """Unmap one page of the highest inactive slot, but of the next one to be allocated (eager allocation)."""
        inactive = [slot for slot, length in enumerate(self.lengths) if length == 0]
        for slot in reversed(inactive[1:]):
            if self.mapped(slot):
                self._shrink(slot, self.mapped(slot) - 1)
                return

    def _grow(self, slot: int, blocks: int) -> None:
        for _ in range(blocks):
            self.backing.map(slot, self.mapped(slot), self.pool[-1])  # where it fails, the block stays free
            self.held[slot].append(self.pool.pop())

    def _shrink(self, slot: int, keep: int) -> None:
        while self.mapped(slot) > keep:
            self.backing.unmap(slot, self.mapped(slot) - 1)
            self.pool.append(self.held[slot].pop())


class Counted:
    """A backing without memory: counts pages mapped and unmapped, in all tensors."""

    def __init__(self, layout: Layout) -> None:
        self.tensors = layout.tensors
        self.maps = self.unmaps = 0

    def map(self, slot: int, index: int, block: int) -> None:
        """See Backing."""
        self.maps += self.tensors

    def unmap(self, slot: int, index: int) -> None:
        """See Backing."""
        self.unmaps += self.tensors


@contextmanager
def allocator(
    layout: Layout, blocks: int, backing: Backing, *, deferred: bool = True, overlap: bool = True
) -> Iterator[Allocator]:
    """An allocator that is closed at the end of the block."""
    made = Allocator(layout, blocks, backing, deferred=deferred, overlap=overlap)
    try:
        yield made
    finally:
        made.close()
