"""The batch of an instance, and the interface of the policies that fill it."""

from collections import deque
from typing import NamedTuple, Protocol

from common.serving.latency import LatencyModel
from common.serving.loop import EventLoop
from common.serving.memory import KVMemory, blocks_of
from common.serving.sequence import DecodeGroup, Sequence
from common.serving.trace import TokenLog


class Plan(NamedTuple):
    """What an iteration computes: (sequence, new prompt tokens) chunks, and whether the running ones decode.

    steady: while no sequence arrives or finishes and KV blocks last, the next plan would be the same. A policy that
    may decide otherwise at the next iteration (after a preemption, say) sets it False, and is asked again.
    steps: a steady plan stands for at most so many iterations; then the policy is asked again (None: no such limit).
    """

    chunks: list[tuple[Sequence, int]]
    decode: bool
    steady: bool = True
    steps: int | None = None


NOTHING = Plan([], False)
DECODE = Plan([], True)


class Scheduler(Protocol):
    """A batch policy: looks at a slot and its instance, admits or preempts, and says what to run next."""

    @property
    def head_only(self) -> bool:
        """Whether an arrival behind a waiting sequence changes no plan (first come, first served)."""

    def plan(self, slot: "Slot") -> Plan:
        """What `slot` computes next. Admits, resumes and preempts through the slot."""


class Host(Protocol):
    """What a slot and its policy see of the instance that they belong to (engine.Instance)."""

    loop: EventLoop
    latency: LatencyModel
    memory: KVMemory
    waiting: deque[Sequence]
    swapped: deque[Sequence]
    slots: list["Slot"]
    host_blocks: int
    swap_seconds_per_block: float
    records_tokens: bool

    def unfinished(self) -> int:
        """Sequences queued, prefilling, decoding or swapped out."""


class Slot:
    """One micro-batch of an instance: the sequences that run together. Without a pipeline there is one."""

    def __init__(self, instance: Host, group: DecodeGroup) -> None:
        self.instance = instance
        self.group = group
        self.prefilling: list[Sequence] = []  # admitted, prompt not yet whole
        self.copy_seconds = 0.0  # swapping that the next iteration waits for
        self.idle = True
        self.log = TokenLog()

    @property
    def size(self) -> int:
        return len(self.group.members) + len(self.prefilling)

    def room(self, max_sequences: int) -> int:
        """How many more sequences this slot should take, so that the slots of a pipeline fill evenly."""
        instance = self.instance
        if len(instance.slots) > 1:
            total = instance.unfinished()
            max_sequences = min(max_sequences, -(-total // len(instance.slots)))
        return max_sequences - len(self.group.members) - len(self.prefilling)

    def admit(self, sequence: Sequence | None = None) -> Sequence:
        """Take a waiting sequence (the head of the queue, unless one is named), with the blocks it needs."""
        instance = self.instance
        sequence = _taken(instance.waiting, sequence)
        if sequence.started < 0:
            sequence.started = instance.loop.now
        sequence.blocks = instance.memory.needs(sequence)
        instance.memory.free -= sequence.blocks
        self.prefilling.append(sequence)
        return sequence

    def resume(self, sequence: Sequence | None = None) -> Sequence:
        """Swap a sequence in (the head of the swapped ones, unless one is named).

        It decodes in the next iteration, which waits for the copy.
        """
        instance = self.instance
        sequence = _taken(instance.swapped, sequence)
        sequence.blocks = blocks_of(sequence.context, instance.memory.block_tokens)
        instance.memory.free -= sequence.blocks
        instance.host_blocks += sequence.blocks
        self.copy_seconds += sequence.blocks * instance.swap_seconds_per_block
        self.start_decoding(sequence)
        return sequence

    def start_decoding(self, sequence: Sequence) -> None:
        """Let a prefilled sequence, whose blocks are held, decode with this slot."""
        self.group.join(sequence)
        if self.instance.records_tokens:
            sequence.spans.append((self.log, self.group.step, -1))

    def stop_decoding(self, sequence: Sequence) -> None:
        self.group.leave(sequence)
        self.close_span(sequence)

    def close_span(self, sequence: Sequence) -> None:
        if sequence.spans:
            log, first, _ = sequence.spans[-1]
            sequence.spans[-1] = (log, first, self.group.step)

    def preempt(self, sequence: Sequence, swap: bool) -> None:
        """Free the blocks of a running or prefilling sequence, keeping its KV on the host or recomputing it."""
        instance = self.instance
        sequence.preemptions += 1
        if sequence in self.group.members:
            self.stop_decoding(sequence)
        else:
            self.prefilling.remove(sequence)
            swap = False
        instance.memory.free += sequence.blocks
        if swap and sequence.blocks <= instance.host_blocks:
            instance.host_blocks -= sequence.blocks
            self.copy_seconds += sequence.blocks * instance.swap_seconds_per_block
            instance.swapped.append(sequence)
        else:
            sequence.goal = sequence.prompt + sequence.generated
            sequence.context = 0
            instance.waiting.appendleft(sequence)
        sequence.blocks = 0


def _taken(queue: deque[Sequence], sequence: Sequence | None) -> Sequence:
    if sequence is None:
        return queue.popleft()
    queue.remove(sequence)
    return sequence
