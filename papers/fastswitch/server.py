"""One GPU that serves conversations under changing priorities, with real block tables and counted copies.

`SwitchingInstance` is the engine's instance with the mechanism: where each block is, what a swap copies, and when its
blocks are free again. Who runs is the policy's affair (priority_switching.py), the same for every system: the ladder
of systems (vLLM, + block groups, + reuse, + asynchronous copies) differs in `Setup` alone.
"""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from common.serving.batch import Plan, Scheduler, Slot
from common.serving.engine import Instance
from common.serving.latency import LatencyModel
from common.serving.loop import COPY, EventLoop
from common.serving.memory import PagedMemory, blocks_of
from common.serving.sequence import DecodeGroup, Sequence
from papers.fastswitch.async_swaps import AdaptiveChoice, InFlight, Stream, Transfer
from papers.fastswitch.block_groups import BLOCK_TOKENS, Piece, Run, pieces
from papers.fastswitch.conversations import Conversations
from papers.fastswitch.deployments import Setup
from papers.fastswitch.kv_reuse import HostCopies
from papers.fastswitch.ledger import Ledger, Swap


class PriorityPolicy(Scheduler, Protocol):
    """A batch policy that gives every conversation a priority; priority_switching.py is the paper's."""

    def priority(self, key: Hashable) -> float:
        """Of a conversation, now; higher goes first."""


class TabledGroup(DecodeGroup):
    """Decoding sequences whose new blocks are taken from the tables in the order a stepped engine would take them."""

    def __init__(self, block_tokens: int, take: Callable[[Sequence], None]) -> None:
        super().__init__(block_tokens, grows=True)
        self.block_tokens = block_tokens
        self.take = take

    def advance(self, steps: int) -> list[Sequence]:
        block = self.block_tokens
        needed = [
            (later, member)
            for member in self.members
            for later in range(-(member.base + self.step) % block, steps, block)
        ]
        for _, member in sorted(needed, key=lambda one: one[0]):  # of one step, in the members' order
            self.take(member)
        return super().advance(steps)


class SwitchingInstance(Instance):
    """An instance that swaps whole requests out and in, keyed by conversation.

    Blocks under copy count neither as free nor as held. Everything that a copy's end brings about waits for the next
    iteration boundary, where the server polls its events.
    """

    def __init__(
        self,
        loop: EventLoop,
        latency: LatencyModel,
        setup: Setup,
        conversations: Conversations,
        policy: PriorityPolicy,
    ) -> None:
        self.setup = setup
        self.policy = policy
        self.tables = setup.tables(setup.kv_blocks)
        memory = PagedMemory(setup.kv_blocks * BLOCK_TOKENS, BLOCK_TOKENS)
        self.reserve = memory.reserve
        super().__init__(loop, latency, memory, policy, records_tokens=True)
        self.session: list[int] = conversations.session.tolist()
        self.history: list[int] = conversations.history.tolist()
        self.ends: list[bool] = conversations.last.tolist()
        self.host = HostCopies(setup.tables(setup.host_blocks), policy.priority, setup.kept_tokens)
        self.to_host = Stream(setup.to_host, setup.layout)
        self.to_device = Stream(setup.to_device, setup.layout)
        self.leaving = InFlight()
        self.choice = AdaptiveChoice()
        self.ledger = Ledger()
        self.arriving: dict[Sequence, Transfer] = {}  # being copied in
        self._read: list[tuple[Transfer, int]] = []  # copies in, and whose
        self._written: list[tuple[Transfer, int, int, bool]] = []  # copies out: whose, tokens, whether needed
        self._busy_until = 0.0  # an idle server's last wait
        self._live = 0
        self._since = 0.0

    # What the engine asks for

    def new_group(self) -> DecodeGroup:
        return TabledGroup(BLOCK_TOKENS, self.grow)

    def grow(self, sequence: Sequence) -> None:
        """One more block for a decoding sequence; the engine has counted it already."""
        self.tables.allocate(self.key(sequence), 1)

    def submit(self, sequence: Sequence) -> None:
        """Queue a turn, which must know its conversation so far. Raises ValueError if that could never fit."""
        sequence.goal = self.history[sequence.index] + sequence.prompt
        tokens = sequence.goal + sequence.stop
        most = self.memory.capacity
        if blocks_of(tokens, BLOCK_TOKENS) + self.reserve + 1 > most:
            raise ValueError(f"a conversation of {tokens} tokens never fits into {most} KV blocks")
        self.tally(live=1)
        self.host.need(self.key(sequence))
        self.enqueue(sequence)

    def _begin_iteration(self, slot: Slot, plan: Plan) -> None:
        begun, stall = self.busy_seconds, slot.copy_seconds
        super()._begin_iteration(slot, plan)
        self.ledger.stepped.append((self.busy_seconds - begun, stall))

    def _end_stretch(self, version: int) -> None:
        if version == self._version and self._stretch is not None:
            self.ledger.stretches.append((self._stretch.first, self._stretch.increment, self._steps))
        super()._end_stretch(version)

    def _finish(self, slot: Slot, sequence: Sequence) -> None:
        held, sequence.blocks = sequence.blocks, 0  # not free yet: the answer's KV leaves for the next turn
        super()._finish(slot, sequence)
        self.tally(live=-1)
        self._end_reads(self.loop.now)
        key = self.key(sequence)
        if self.ends[sequence.index]:
            self._free(held, key)
            self.host.drop(key)
        else:
            self._copy_out(slot, key, sequence.context, turn_ended=True)

    # The mechanism

    def key(self, sequence: Sequence) -> int:
        """Whose blocks a sequence has: its conversation's."""
        return self.session[sequence.index]

    def ready(self, sequence: Sequence) -> bool:
        """Whether its KV is not just being copied to the host."""
        key = self.key(sequence)
        return all(key != other for _, other, _, _ in self._written)

    def settle(self, slot: Slot, now: float) -> None:
        """Poll the copies: blocks of those that ended by `now` are free, requests copied in join the batch."""
        slot.copy_seconds = max(slot.copy_seconds, self._busy_until - self.loop.now)
        self._take_back(self.leaving.ended(now))
        self._end_reads(now)
        for record in [record for record in self._written if record[0].end <= now]:
            self._written.remove(record)
            _, key, tokens, needed = record
            self.host.end(key)
            self.host.written(key, tokens, needed or self._waits(key))
        for sequence in [sequence for sequence, copy in self.arriving.items() if copy.end <= now]:
            del self.arriving[sequence]
            self._join(slot, sequence)

    def _take_back(self, runs: list[Run]) -> None:
        self.tables.give_back(runs)
        self.memory.free += sum(run.length for run in runs)

    def _end_reads(self, now: float) -> None:
        for done in [done for done in self._read if done[0].end <= now]:
            self._read.remove(done)
            self.host.end(done[1])
            self.host.read(done[1])

    def swap_out(self, slot: Slot, sequence: Sequence) -> None:
        """Preempt a decoding sequence: its KV leaves for the host, or is dropped where that is full."""
        slot.stop_decoding(sequence)
        sequence.preemptions += 1
        sequence.blocks = 0
        if self._copy_out(slot, self.key(sequence), sequence.context, turn_ended=False):
            self.swapped.append(sequence)
            self.tally(swapped=1)
        else:
            sequence.goal = sequence.context + 1  # computed anew; the newest token has no KV yet
            sequence.context = 0
            self.waiting.appendleft(sequence)

    def bring_in(self, slot: Slot, sequence: Sequence) -> None:
        """Give a swapped or waiting sequence its blocks, and copy in what the host has of it."""
        key = self.key(sequence)
        decodes = sequence in self.swapped
        if decodes:
            self.swapped.remove(sequence)
            self.tally(swapped=-1)
            tokens, blocks = sequence.context, blocks_of(sequence.context, BLOCK_TOKENS)
        else:
            self.waiting.remove(sequence)
            tokens, blocks = (
                min(self.host.valid(key), sequence.goal - 1),
                blocks_of(sequence.goal, BLOCK_TOKENS),
            )
            sequence.context = tokens
        if sequence.started < 0:
            sequence.started = self.loop.now
        sequence.blocks = blocks
        self.memory.free -= blocks
        self.tables.allocate(key, blocks)
        if not tokens:
            self._join(slot, sequence)
            return
        stored = blocks_of(tokens, BLOCK_TOKENS)
        moved = pieces(self.host.runs(key), self.tables.runs(key), blocks=stored)
        self.ledger.swaps.append(Swap(False, stored, len(moved), blocks))
        self.copied(key, moved, out=False)
        self.host.begin(key)
        beside = self.setup.asynchronous and self.runs_beside(slot, moved)
        # its blocks may come from copies that the next iteration waits for: it begins no earlier
        (copy,) = self.order(False, self.loop.now + slot.copy_seconds, [moved])
        self._read.append((copy if self.setup.asynchronous else Transfer(self.loop.now), key))
        if beside:
            self.arriving[sequence] = copy
            self._share_memory(slot, moved)
            self._poll_at(copy)
        else:
            self._stall(slot, copy)
            self._join(slot, sequence)
        if not self.setup.asynchronous:
            self.settle(slot, self.loop.now)

    def wait_for_blocks(self, slot: Slot, blocks: int) -> bool:
        """Let the next iteration wait until `blocks` more blocks are free; False if no copy in flight frees so many."""
        copy = self.leaving.until(blocks)
        if copy is None:
            return False
        self._stall(slot, copy)
        self._take_back(self.leaving.ended(copy.end))
        return True

    def wait_for_all(self, slot: Slot) -> None:
        """Let the next iteration wait for every copy in flight, and settle them."""
        copies = [one[0] for one in self._written] + [one[0] for one in self._read] + self.leaving.transfers
        for copy in copies:
            self._stall(slot, copy)
        self.settle(slot, max(copy.end for copy in copies))

    def idle(self, slot: Slot) -> None:
        """Nobody is here to wait for the copies of the next iteration: remember until when it must."""
        self._busy_until = max(self._busy_until, self.loop.now + slot.copy_seconds)
        slot.copy_seconds = 0.0

    @property
    def copying(self) -> bool:
        return bool(self._written or self._read or len(self.leaving))

    def order(self, out: bool, start: float, batches: list[list[Piece]]) -> list[Transfer]:
        """Begin to copy batches of pieces one after another, out to the host or in, not before `start`."""
        stream = self.to_host if out else self.to_device
        return [Transfer(end) for end in stream.send(start, batches)]

    def runs_beside(self, slot: Slot, moved: list[Piece]) -> bool:
        """Whether the batch goes on while these pieces are copied in."""
        seconds = self.setup.layout.seconds(self.setup.to_device, moved)
        running = len(slot.group.members)
        iteration = self.latency.iteration([], running, slot.group.context + running)[0] if running else 1.0
        beside = self.choice.beside(running, seconds, iteration)
        self.choice.note(running, seconds)
        return beside

    def copied(self, key: int, moved: list[Piece], out: bool) -> None:
        """A copy of these pieces has been ordered; for tests that move real contents."""

    def tally(self, live: int = 0, swapped: int = 0) -> None:
        """Integrate the counts up to now. live: to be added; swapped: has been added to the queue already."""
        elapsed, self._since = self.loop.now - self._since, self.loop.now
        self.ledger.live_seconds += self._live * elapsed
        self.ledger.swapped_seconds += (len(self.swapped) - swapped) * elapsed
        self._live += live

    def _copy_out(self, slot: Slot, key: int, tokens: int, turn_ended: bool) -> bool:
        """Bring a conversation's first `tokens` tokens to the host and free its blocks; False if the host is full."""
        first = self.host.make_room(key, tokens)
        if first and self.setup.trusts_copies:
            first = blocks_of(tokens, BLOCK_TOKENS)
        held = self.tables.used(key)
        if first is None:
            self._free(held, key)
            self.host.drop(key)
            return False
        moved = pieces(self.tables.runs(key), self.host.runs(key), first)
        self.ledger.swaps.append(Swap(True, sum(piece.length for piece in moved), len(moved), held))
        self.copied(key, moved, out=True)
        if not moved or not self.setup.asynchronous:
            if moved:
                self._stall(slot, self.order(True, self.loop.now + slot.copy_seconds, [moved])[0])
            self._free(held, key)
            self.host.written(key, tokens, needed=not turn_ended)
            return True
        runs = self.tables.detach(key)
        rest = deque(moved)  # in the order of the runs, and none reaches over a run's end
        batches: list[list[Piece]] = []
        for run in runs:
            batches.append([])
            while rest and run.start <= rest[0].source < run.start + run.length:
                batches[-1].append(rest.popleft())
        ordered = iter(self.order(True, self.loop.now, [batch for batch in batches if batch]))
        last = Transfer(self.loop.now)
        for run, batch in zip(runs, batches, strict=True):
            if batch:
                last = next(ordered)
                self.leaving.add(last, run)
                self._poll_at(last)
            else:  # valid on the host already: nobody reads these blocks
                self._take_back([run])
        self.host.begin(key)
        self._written.append((last, key, tokens, not turn_ended))
        self._share_memory(slot, moved)
        return True

    def _waits(self, key: int) -> bool:
        return any(self.key(sequence) == key for sequence in self.waiting)

    def _join(self, slot: Slot, sequence: Sequence) -> None:
        """Its KV is on the GPU, as far as it exists: decode, or prefill the rest."""
        stored = self.history[sequence.index] + sequence.prompt + sequence.generated - 1
        if sequence.generated and sequence.context == stored:
            slot.start_decoding(sequence)
        else:
            slot.prefilling.append(sequence)

    def _free(self, blocks: int, key: int) -> None:
        self.tables.give_back(self.tables.detach(key))
        self.memory.free += blocks

    def _stall(self, slot: Slot, copy: Transfer) -> None:
        """Let the next iteration wait for a copy."""
        slot.copy_seconds = max(slot.copy_seconds, copy.end - self.loop.now)

    def _share_memory(self, slot: Slot, moved: list[Piece]) -> None:
        """An asynchronous copy takes its bytes' share of the memory's bandwidth from the next iteration."""
        size = self.setup.layout.size(sum(piece.length for piece in moved))
        slot.copy_seconds += size / self.setup.memory_bandwidth

    def _poll_at(self, copy: Transfer) -> None:
        self.loop.at(copy.end, COPY, lambda _: self.at_boundary(lambda: None))
