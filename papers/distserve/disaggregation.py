"""Prefill and decode on different instances, joined by a pull-based KV transfer (DistServe, Sections 3 and 4.3).

A request is prefilled where the queue is shortest, emits its first token there, and is assigned to the decode instance
with the fewest requests. That instance *pulls* the KV cache when it has room; until the copy ends the cache
stays in the prefill instance, whose memory is thereby the queue between the phases and blocks new prefills when it
is full (back-pressure).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from common.serving.batch import DECODE, NOTHING, Plan, Slot
from common.serving.cluster import LeastLoad
from common.serving.engine import Instance
from common.serving.link import Link
from common.serving.loop import COPY, EventLoop
from common.serving.memory import blocks_of
from common.serving.schedulers import make_room, resume_swapped
from common.serving.sequence import Sequence


@dataclass
class PrefillBatches:
    """First come, first served prompts, up to `max_tokens` together; a longer prompt runs alone.

    max_tokens is the paper's L_m, the shortest prompt that saturates the GPU (Section 4.3). Memory bounds a batch too,
    and counts the caches that no decode instance has pulled yet. blocked: how often a prompt had to wait for that.
    """

    max_tokens: int
    head_only: bool = True
    blocked: int = 0

    def plan(self, slot: Slot) -> Plan:
        waiting, memory = slot.instance.waiting, slot.instance.memory
        chunks: list[tuple[Sequence, int]] = []
        tokens = 0
        while waiting:
            sequence = waiting[0]
            if chunks and tokens + sequence.goal > self.max_tokens:
                break
            if not memory.admits(memory.needs(sequence)):
                self.blocked += not chunks
                break
            chunks.append((slot.admit(), sequence.goal))
            tokens += sequence.goal
        return Plan(chunks, False) if chunks else NOTHING


@dataclass(frozen=True)
class DecodeBatches:
    """Continuous batching of pulled requests: swap out the last when blocks run short, swapped ones return first."""

    max_sequences: int
    head_only: bool = True

    def plan(self, slot: Slot) -> Plan:
        instance = slot.instance
        preempted = make_room(slot, swap=True)
        if instance.swapped and not preempted:
            resume_swapped(slot, self.max_sequences)
        waiting, memory = instance.waiting, instance.memory
        # Where nothing is left to run, swapped requests may lack blocks that waiting ones hold: these go first then.
        first_come = not slot.group.members or not (preempted or instance.swapped)
        while first_come and waiting and slot.room(self.max_sequences) > 0:
            next_block = waiting[0].context % memory.block_tokens == 0
            if not slot.group.fits(memory.free - next_block):
                break
            slot.start_decoding(waiting.popleft())
        return Plan([], True, steady=False) if preempted else DECODE


@dataclass
class SharedGpus:
    """The method with its phases on the same GPUs: a batch of prompts and an iteration of decodes take turns.

    The phases interfere again, and share one parallelism; a request is decoded where it was prefilled, so that nothing
    is moved. This is what the negative controls run.
    """

    prefill: PrefillBatches
    max_sequences: int
    head_only: bool = True
    prompts_next: bool = True

    def plan(self, slot: Slot) -> Plan:
        if self.prompts_next or not slot.group.members:
            prompts = self.prefill.plan(slot)
            if prompts.chunks:
                self.prompts_next = False
                return prompts
        self.prompts_next = True
        preempted = make_room(slot, swap=True)
        if slot.instance.swapped and not preempted:
            resume_swapped(slot, self.max_sequences)
        return Plan([], True, steady=not preempted and not slot.instance.waiting)


@dataclass(slots=True)
class Transfer:
    """The migration of one request's KV cache. Seconds on the simulation's clock; -1 until it happened."""

    sequence: Sequence
    source: Instance | None
    source_blocks: int
    prefilled: float
    pulled: float = -1.0
    arrived: float = -1.0


class _DecodeSide:
    """A decode instance, the requests assigned to it that it has not pulled, and the wire it pulls over."""

    def __init__(self, instance: Instance, link: Link) -> None:
        self.instance = instance
        self.link = link
        self.assigned: deque[Transfer] = deque()
        self.coming = 0  # requests being copied
        self.coming_blocks = 0

    def load(self) -> int:
        return self.instance.unfinished() + len(self.assigned) + self.coming


class Disaggregated:
    """Prefill instances, decode instances, and the pulls between them.

    prefill: builds one prefill instance, given whom it hands prefilled requests to. decode: builds one decode instance,
    given what to call at each of its iterations. links: one a decode instance (they may be the same one).
    kv_bytes: of one token. waiting_share: a decode instance pulls only while the requests it holds that
    are not yet decoding own less than this share of its blocks (waiting_block_prop_threshold of the published engine).
    hidden_seconds: how much of the copy of a prompt of that many tokens its own prefill hides (layer-wise streaming).
    With no prefill instances, requests arrive prefilled: the decode phase on its own.
    """

    def __init__(
        self,
        loop: EventLoop,
        prefill: Callable[[Callable[[Sequence], None]], Instance],
        prefills: int,
        decode: Callable[[Callable[[], None]], Instance],
        links: list[Link],
        kv_bytes: float,
        waiting_share: float,
        hidden_seconds: Callable[[int], float] = lambda tokens: 0.0,
    ) -> None:
        self.loop = loop
        self.kv_bytes = kv_bytes
        self.waiting_share = waiting_share
        self.hidden_seconds = hidden_seconds
        self.transfers: list[Transfer] = []
        self.prefills: list[Instance] = []
        for _ in range(prefills):
            self.prefills.append(prefill(self._hand_over(len(self.prefills))))
        self.decodes: list[_DecodeSide] = []
        for link in links:
            instance = decode(self._at_iteration(len(self.decodes)))
            self.decodes.append(_DecodeSide(instance, link))
        self._shortest_queue = LeastLoad()

    def submit(self, sequence: Sequence) -> None:
        """A new request, to the prefill instance with the shortest queue."""
        if self.prefills:
            self._shortest_queue.choose(self.prefills, sequence).submit(sequence)
            return
        sequence.context = sequence.goal
        sequence.generated = 1
        sequence.first_token = self.loop.now
        if sequence.output == 1:
            sequence.finish = self.loop.now
        else:
            self._assign(sequence, None)

    def _hand_over(self, index: int) -> Callable[[Sequence], None]:
        return lambda sequence: self._assign(sequence, self.prefills[index])

    def _at_iteration(self, index: int) -> Callable[[], None]:
        def pull() -> None:
            side = self.decodes[index]
            if side.assigned:
                self._pull(side)

        return pull

    def _assign(self, sequence: Sequence, source: Instance | None) -> None:
        side = self.decodes[0] if len(self.decodes) == 1 else min(self.decodes, key=_DecodeSide.load)
        transfer = Transfer(sequence, source, sequence.blocks, self.loop.now)
        self.transfers.append(transfer)
        side.assigned.append(transfer)
        self._pull(side)

    def _pull(self, side: _DecodeSide) -> None:
        """Start the copies that the decode instance has room for, in the order of assignment."""
        instance, memory = side.instance, side.instance.memory
        while side.assigned:
            transfer = side.assigned[0]
            blocks = blocks_of(transfer.sequence.context, memory.block_tokens)
            held = side.coming_blocks
            if instance.waiting:
                held += sum(sequence.blocks for sequence in instance.waiting)
            if (held and held >= self.waiting_share * memory.capacity) or not instance.can_take(blocks + 1):
                memory.check(transfer.sequence)  # waits for room, or will never fit
                return  # one block more than the copy needs, or nothing could decode once all are waiting
            side.assigned.popleft()
            side.coming += 1
            side.coming_blocks += blocks
            instance.take(blocks)
            transfer.pulled = self.loop.now
            tokens = transfer.sequence.context
            hidden = self.hidden_seconds(tokens) * side.link.bytes_per_s
            end = side.link.send(self.loop.now, max(0.0, self.kv_bytes * tokens - hidden))
            self.loop.at(end, COPY, self._arrived, (side, transfer, blocks))

    def _arrived(self, copied: tuple[_DecodeSide, Transfer, int]) -> None:
        side, transfer, blocks = copied
        transfer.arrived = self.loop.now
        side.coming -= 1
        side.coming_blocks -= blocks
        transfer.sequence.blocks = blocks
        side.instance.enqueue(transfer.sequence)
        if transfer.source is not None:
            transfer.source.release(transfer.source_blocks)
        self._pull(side)
