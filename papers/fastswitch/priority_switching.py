"""Who runs: vLLM's iteration scheduling under priorities that change while requests run."""

from collections.abc import Hashable

from common.serving.batch import Plan, Slot
from common.serving.memory import blocks_of
from common.serving.sequence import Sequence
from papers.fastswitch.block_groups import BLOCK_TOKENS
from papers.fastswitch.priorities import Update
from papers.fastswitch.server import SwitchingInstance


class PrioritySwitching:
    """vLLM's iteration scheduling under priorities that an outside rule changes every `1 / frequency` iterations.

    At an update the requests of the highest priority that fit together become the running set; the others are swapped
    out. Between updates whoever waits is taken by priority while it fits; where blocks run out, the lowest priority is
    preempted. Waiting prompts run alone, before decoding goes on (vLLM 0.3.3). frequency 0: priorities never change.
    """

    head_only = False

    def __init__(
        self, update: Update, frequency: float, max_sequences: int = 256, max_tokens: int = 2560
    ) -> None:
        if frequency and not 0 < frequency <= 1:
            raise ValueError(f"frequency ({frequency}) is 0, or above it and at most 1 update an iteration")
        self.update = update
        self.every = round(1 / frequency) if frequency else 0
        self.max_sequences = max_sequences
        self.max_tokens = max_tokens
        self.updates = 0
        self._now: dict[Hashable, float] = dict(enumerate(update(0).tolist()))

    def priority(self, key: Hashable) -> float:
        """Of a conversation, now; higher goes first."""
        return self._now[key]

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        server = slot.instance
        assert isinstance(server, SwitchingInstance)
        server.settle(slot, server.loop.now)
        if self.every and server.iterations >= (self.updates + 1) * self.every:
            self.updates = server.iterations // self.every
            self._now = dict(enumerate(self.update(self.updates).tolist()))
            self._rebalance(slot, server)
        self._wait_for_all(slot, server)
        waits = self._admit(slot, server)
        self._wait_for_all(slot, server)
        preempted = False if slot.prefilling else self._make_room(slot, server)
        chunks = self._prompts(slot)
        if not chunks and not slot.group.members:
            server.idle(slot)
        steps = (self.updates + 1) * self.every - server.iterations if self.every else None
        if waits or (server.setup.wait_for_all and server.copying):
            steps = 1
        return Plan(chunks, not chunks, steady=not preempted, steps=steps)

    def _order(self, server: SwitchingInstance, sequence: Sequence) -> tuple[float, int]:
        return -self._now[server.key(sequence)], sequence.index

    def _candidates(self, server: SwitchingInstance) -> list[Sequence]:
        """Who waits or is swapped out, and is not just being copied; the most important first."""
        outside = [s for s in (*server.swapped, *server.waiting) if server.ready(s)]
        return sorted(outside, key=lambda sequence: self._order(server, sequence))

    def _needs(self, server: SwitchingInstance, sequence: Sequence) -> int:
        """Blocks of somebody outside the batch, and one to grow by."""
        tokens = sequence.context if sequence in server.swapped else sequence.goal
        return blocks_of(tokens, BLOCK_TOKENS) + 1

    def _rebalance(self, slot: Slot, server: SwitchingInstance) -> None:
        """Swap out who is not among the most important requests that fit together."""
        running = {member: server.tables.used(server.key(member)) + 1 for member in slot.group.members}
        pinned = [*server.arriving, *slot.prefilling]
        left = server.memory.capacity - server.reserve - sum(sequence.blocks + 1 for sequence in pinned)
        room = self.max_sequences - len(pinned)
        needs = running | {sequence: self._needs(server, sequence) for sequence in self._candidates(server)}
        chosen: set[Sequence] = set()
        for sequence in sorted(needs, key=lambda sequence: self._order(server, sequence)):
            if needs[sequence] <= left and room > 0:
                chosen.add(sequence)
                left -= needs[sequence]
                room -= 1
        for sequence in running:
            if sequence not in chosen:
                server.swap_out(slot, sequence)

    def _admit(self, slot: Slot, server: SwitchingInstance) -> bool:
        """Bring in who fits, the most important first; True if somebody waits for blocks that are being copied out.

        Nobody takes the blocks that copies are about to free for somebody more important; who would not fit even then
        is passed over.
        """
        for sequence in self._candidates(server):
            held = slot.group.growth() + len(server.arriving) + len(slot.prefilling)
            needs = self._needs(server, sequence) + held
            if slot.size + len(server.arriving) >= self.max_sequences:
                break
            if server.memory.admits(needs):
                server.bring_in(slot, sequence)
            elif server.memory.admits(needs - server.leaving.blocks):
                return True
        return False

    def _wait_for_all(self, slot: Slot, server: SwitchingInstance) -> None:
        """Under coarse conflicts, whoever would take blocks next waits for every copy in flight."""
        if not (server.setup.wait_for_all and server.copying):
            return
        freed = server.leaving.blocks
        outside = self._candidates(server)
        if (
            slot.group.growth()
            or slot.prefilling
            or any(server.memory.admits(self._needs(server, sequence) - freed) for sequence in outside)
        ):
            server.wait_for_all(slot)

    def _make_room(self, slot: Slot, server: SwitchingInstance) -> bool:
        """Until the running ones can store one more token each: wait for copies, else preempt the least important."""
        preempted = False
        while not slot.group.fits(server.memory.free):
            missing = slot.group.growth() - server.memory.free
            if server.wait_for_blocks(slot, missing):
                continue
            victim = max(slot.group.members, key=lambda sequence: self._order(server, sequence))
            server.swap_out(slot, victim)
            preempted = True
        return preempted

    def _prompts(self, slot: Slot) -> list[tuple[Sequence, int]]:
        chunks: list[tuple[Sequence, int]] = []
        tokens = 0
        for sequence in slot.prefilling:
            new = sequence.goal - sequence.context
            if chunks and tokens + new > self.max_tokens:
                break
            chunks.append((sequence, new))
            tokens += new
        return chunks
