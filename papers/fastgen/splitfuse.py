"""Dynamic SplitFuse: every forward pass gets the same number of tokens, whatever requests they belong to.

Source: DeepSpeed-MII (Apache-2.0), mii/batching/ragged_batching.py, `schedule_requests`; paper, Section 3.B. A request
stands in a buffer between passes; with a `Slot` the buffer is, in this order: the prompt that was split (the "remainder
at the front"), generating requests (those stalled for want of a KV block first), then the queue.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.serving.batch import Plan, Slot
from common.serving.memory import blocks_of
from common.serving.sequence import Sequence

BUDGET = 768  # max_ragged_batch_size, DeepSpeed's default (deepspeed/inference/v2/ragged/manager_configs.py)
MAX_SEQUENCES = 512  # max_ragged_sequence_count, in the same file
WHOLE = 1 << 40  # a budget that never splits a prompt


@dataclass(frozen=True)
class DynamicSplitFuse:
    """Generation first, then prompts, split and fused so that they fill the rest of a token budget exactly.

    budget: tokens of a forward pass, generated ones counted. Use it with memory that grows (PagedMemory) and no
    watermark: KV blocks are taken pass by pass, and a prompt is touched only while the free blocks hold all that
    remains of it. Where nothing can run, the last request of the buffer that holds KV gives it up and is computed
    again from its prompt and what it had generated.

    One difference from MII: a generating request that stalled stands behind the others once it runs again, not before.
    """

    budget: int = BUDGET
    max_sequences: int = MAX_SEQUENCES
    head_only: bool = True

    def __post_init__(self) -> None:
        if self.budget < 1 or self.max_sequences < 1:
            raise ValueError(
                f"a pass needs room for a token and a sequence, not {self.budget} and {self.max_sequences}"
            )

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        while True:
            stall_what_finds_no_block(slot)
            chunks = list(self._generation(slot))
            chunks += self._prompts(slot, chunks)
            if chunks or slot.group.members or not slot.prefilling:
                return Plan(chunks, True, steady=not slot.prefilling)
            evict_last(slot)

    def _generation(self, slot: Slot) -> Iterator[tuple[Sequence, int]]:
        """The token of each stalled request whose block is free again; the slot decodes the others."""
        for sequence in [one for one in slot.prefilling if is_generating(one)]:
            if len(slot.group) + 1 <= min(self.budget, self.max_sequences) and take_blocks(slot, sequence, 1):
                yield sequence, 1

    def _prompts(self, slot: Slot, before: list[tuple[Sequence, int]]) -> Iterator[tuple[Sequence, int]]:
        """Prompts in order, from the remainder of the one split last, until the pass is full or one has no room."""
        sequences = len(slot.group) + len(before)
        left = self.budget - sequences
        memory = slot.instance.memory
        for sequence in candidates(slot):
            if left <= 0 or sequences >= self.max_sequences:
                return
            remaining = sequence.goal - sequence.context
            held = sequence.blocks if sequence.context else 0
            needed = blocks_of(sequence.goal, memory.block_tokens) - held
            if not memory.admits(needed + slot.group.growth()):
                return
            if not sequence.context:
                admit_without_blocks(slot, sequence)
            tokens = min(left, remaining)
            take_blocks(slot, sequence, tokens)
            yield sequence, tokens
            left -= tokens
            sequences += 1


class RandomFill:
    """The placebo: all of SplitFuse, but every pass that takes prompts gets a budget drawn anew around the same mean.

    Uniform from 1 to 2 budget - 1 tokens: prompts are still split and fused, only not to one size.
    """

    head_only = True

    def __init__(
        self, rng: np.random.Generator, budget: int = BUDGET, max_sequences: int = MAX_SEQUENCES
    ) -> None:
        self.rng, self.budget, self.max_sequences = rng, budget, max_sequences

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        drawn = int(self.rng.integers(1, 2 * self.budget))
        # a pass holds every generation that it can: a smaller budget takes no prompt beside them, and no token away
        budget = max(drawn, len(slot.group) + sum(map(is_generating, slot.prefilling)), 1)
        plan = DynamicSplitFuse(budget, self.max_sequences).plan(slot)
        return plan._replace(steady=plan.steady and not slot.instance.waiting)


@dataclass(frozen=True)
class SplitWithoutFuse:
    """The ablation: a pass is a piece of one prompt, of at most `budget` tokens, or all decodes; prompts go first."""

    budget: int = BUDGET
    max_sequences: int = MAX_SEQUENCES
    head_only: bool = True

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        whole = DynamicSplitFuse(self.budget, self.max_sequences)
        while True:
            stall_what_finds_no_block(slot)
            chunks = list(whole._generation(slot))
            alone = next(
                DynamicSplitFuse(self.budget + len(slot.group) + len(chunks))._prompts(slot, chunks), None
            )
            if alone is not None:
                for sequence, _ in chunks:  # they wait with the decodes
                    give_back(slot, sequence)
                return Plan([alone], False)
            if chunks or slot.group.members or not slot.prefilling:
                return Plan(chunks, True, steady=not slot.prefilling)
            evict_last(slot)


def is_generating(sequence: Sequence) -> bool:
    """Whether a sequence of `Slot.prefilling` is a stalled generation: it has one more token to store."""
    return sequence.generated > 0 and sequence.context > 0 and sequence.goal == sequence.context + 1


def candidates(slot: Slot) -> Iterator[Sequence]:
    """The prompts of the buffer in order; the queue may lose its head meanwhile."""
    yield from [sequence for sequence in slot.prefilling if not is_generating(sequence)]
    while slot.instance.waiting:
        yield slot.instance.waiting[0]


def stall_what_finds_no_block(slot: Slot) -> None:
    """Take decodes that need a new KV block out of the batch, from the last, until the free blocks suffice.

    A stalled sequence keeps its KV. It stands in `slot.prefilling` with one token to go, which a pass computes as it
    would a prompt's.
    """
    group, memory = slot.group, slot.instance.memory
    undisturbed: list[Sequence] = []
    while not group.fits(memory.free):
        sequence = group.last()
        needy = group.growth()
        slot.stop_decoding(sequence)
        if group.growth() == needy:
            undisturbed.append(sequence)
        else:
            sequence.goal = sequence.context + 1
            slot.prefilling.append(sequence)
    for sequence in reversed(undisturbed):
        slot.start_decoding(sequence)


def take_blocks(slot: Slot, sequence: Sequence, tokens: int) -> bool:
    """Hold the blocks of `tokens` more tokens, and say whether they were free next to the decodes'."""
    memory = slot.instance.memory
    more = blocks_of(sequence.context + tokens, memory.block_tokens) - sequence.blocks
    if more + slot.group.growth() > memory.free:
        return False
    memory.free -= more
    sequence.blocks += more
    return True


def give_back(slot: Slot, sequence: Sequence) -> None:
    """Free the blocks that a sequence holds beyond its context."""
    held = blocks_of(sequence.context, slot.instance.memory.block_tokens)
    slot.instance.memory.free += sequence.blocks - held
    sequence.blocks = held


def admit_without_blocks(slot: Slot, sequence: Sequence) -> None:
    """Take a waiting sequence; its blocks come pass by pass."""
    slot.admit(sequence)
    slot.instance.memory.free += sequence.blocks
    sequence.blocks = 0


def evict_last(slot: Slot) -> None:
    """Free the KV of the last request of the buffer that holds any; it is computed again, behind all that wait."""
    generating = [sequence for sequence in slot.prefilling if is_generating(sequence)]
    slot.preempt((generating or slot.prefilling)[-1], swap=False)
    waiting = slot.instance.waiting
    waiting.append(waiting.popleft())
