"""Batch policies: what the next iteration of an instance computes.

From the oldest to the newest: `RequestLevel` (FasterTransformer), `IterationLevel` (Orca), `PrefillFirst`
(vLLM), `ChunkedPrefill` (Sarathi). Each is one `plan`; a paper adds its own in its package.
"""

from dataclasses import dataclass

from common.serving.batch import DECODE, Plan, Slot
from common.serving.memory import blocks_of
from common.serving.sequence import Sequence


def make_room(slot: Slot, swap: bool) -> bool:
    """Preempt until every running sequence can store one more token; True if any was preempted.

    The victim is the one admitted last (vLLM and DistServe: last of the batch). Sequences still in
    prefill were admitted after those that decode.
    """
    group, memory = slot.group, slot.instance.memory
    preempted = False
    while not group.fits(memory.free):
        slot.preempt(slot.prefilling[-1] if slot.prefilling else group.last(), swap)
        preempted = True
    return preempted


def resume_swapped(slot: Slot, max_sequences: int) -> None:
    """Swap sequences back in, first out first in, while they fit with one more token each."""
    instance = slot.instance
    memory = instance.memory
    while instance.swapped and slot.room(max_sequences) > 0:
        blocks = blocks_of(instance.swapped[0].context + 1, memory.block_tokens)
        if not memory.admits(blocks + slot.group.growth()):
            return
        slot.resume()


@dataclass(frozen=True)
class RequestLevel:
    """First come, first served, a whole batch at a time: nobody joins or returns before the longest is done.

    Source: the request-level scheduling that Orca (OSDI 2022, Section 2) describes.
    """

    max_sequences: int = 256
    head_only: bool = True

    def plan(self, slot: Slot) -> Plan:
        if slot.size:
            return DECODE
        instance = slot.instance
        batch: list[Sequence] = []
        longest = total = 0
        for sequence in instance.waiting:  # the batch is cut by what its longest output will reserve
            longest_then = max(longest, sequence.output)
            total_then = total + sequence.prompt
            tokens = total_then + longest_then * (len(batch) + 1)
            blocks = blocks_of(tokens, instance.memory.block_tokens) + len(batch)  # rounding up, at the worst
            if len(batch) >= slot.room(self.max_sequences) or blocks > instance.memory.free:
                break
            batch.append(sequence)
            longest, total = longest_then, total_then
        for sequence in batch:
            sequence.stop = longest
            slot.admit()
        return Plan([(sequence, sequence.goal) for sequence in batch], False)


@dataclass(frozen=True)
class IterationLevel:
    """Orca: admit at every iteration, first come, first served; prompts and decodes share the iteration.

    Source: Orca (OSDI 2022), Algorithm 1, with selective batching. Use it with ReservedMemory, as Orca does.
    """

    max_sequences: int = 256
    head_only: bool = True

    def plan(self, slot: Slot) -> Plan:
        instance = slot.instance
        chunks = []
        preempted = make_room(slot, swap=False)
        room = 0 if preempted else slot.room(self.max_sequences)
        while room > 0 and instance.waiting:
            blocks = instance.memory.needs(instance.waiting[0])
            if not instance.memory.admits(blocks + slot.group.growth()):
                break
            sequence = slot.admit()
            chunks.append((sequence, sequence.goal))
            room -= 1
        return Plan(chunks, True, steady=not preempted)


@dataclass(frozen=True)
class PrefillFirst:
    """vLLM: whenever a waiting prompt fits, run prompts alone; else decode all that runs.

    max_tokens: prompt tokens of one iteration; a longer prompt runs alone. swap: preempt by swapping to the
    host instead of recomputing. Source: vLLM (SOSP 2023), Section 4.5, and its scheduler's defaults.
    """

    max_tokens: int = 2560
    max_sequences: int = 256
    swap: bool = False
    head_only: bool = True

    def plan(self, slot: Slot) -> Plan:
        instance = slot.instance
        if instance.waiting and not instance.swapped:
            chunks = self._prompts(slot)
            if chunks:
                return Plan(chunks, False)
        preempted = make_room(slot, self.swap)
        swapped = len(instance.swapped)
        if swapped and not preempted:
            resume_swapped(slot, self.max_sequences)
        if preempted or len(instance.swapped) < swapped:  # once all are back, prompts may run again
            return Plan([], True, steady=False)
        return DECODE

    def _prompts(self, slot: Slot) -> list[tuple[Sequence, int]]:
        waiting, memory = slot.instance.waiting, slot.instance.memory
        chunks: list[tuple[Sequence, int]] = []
        tokens = 0
        room = slot.room(self.max_sequences)
        while waiting and len(chunks) < room:
            goal = waiting[0].goal
            if chunks and tokens + goal > self.max_tokens:
                break
            if not memory.admits(memory.needs(waiting[0])):
                break
            chunks.append((slot.admit(), goal))
            tokens += goal
        return chunks


@dataclass(frozen=True)
class ChunkedPrefill:
    """Every iteration decodes all that runs and fills the rest of a token budget with pieces of prompts.

    budget: tokens of one iteration. Source: Sarathi-Serve (OSDI 2024), Algorithm 3.
    """

    budget: int = 512
    max_sequences: int = 256
    swap: bool = False
    head_only: bool = True

    def __post_init__(self) -> None:
        if self.budget <= self.max_sequences:
            raise ValueError(
                f"a token budget of {self.budget} must exceed max_sequences ({self.max_sequences}), or prompts starve"
            )

    def plan(self, slot: Slot) -> Plan:
        instance = slot.instance
        preempted = make_room(slot, self.swap)
        if instance.swapped and not preempted:
            resume_swapped(slot, self.max_sequences)
        left = self.budget - len(slot.group)
        chunks = []
        for sequence in slot.prefilling:
            if left > 0:
                tokens = min(left, sequence.goal - sequence.context)
                chunks.append((sequence, tokens))
                left -= tokens
        while left > 0 and instance.waiting and not instance.swapped and slot.room(self.max_sequences) > 0:
            blocks = instance.memory.needs(instance.waiting[0])
            if preempted or not instance.memory.admits(blocks + slot.group.growth()):
                break
            sequence = slot.admit()
            tokens = min(left, sequence.goal)
            chunks.append((sequence, tokens))
            left -= tokens
        return Plan(chunks, True, steady=not preempted)
