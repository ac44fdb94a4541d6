"""The step-by-step engine: one iteration at a time, one sequence at a time, one block at a time.

It shares the queues and the batch policies with the coalesced engine and none of its arithmetic: contexts are
summed member by member, blocks are counted from scratch at every iteration and compared with what the memory
believes, the latency model is asked for every single iteration.
"""

from common.serving.batch import Plan, Slot
from common.serving.engine import Instance
from common.serving.memory import blocks_of
from common.serving.sequence import DecodeGroup, Sequence


class SteppedGroup(DecodeGroup):
    """Members that each carry their own counts."""

    def __init__(self, block_tokens: int, grows: bool) -> None:
        super().__init__(block_tokens, grows)
        self.block_tokens = block_tokens
        self.grows = grows

    @property
    def context(self) -> int:
        return sum(member.context for member in self.members)

    @context.setter
    def context(self, value: int) -> None:
        pass

    def join(self, sequence: Sequence) -> None:
        self.members[sequence] = None
        sequence.base = sequence.context - self.step  # what the mechanisms of some papers read

    def leave(self, sequence: Sequence) -> None:
        del self.members[sequence]

    def fits(self, free: int, steps: int = 1) -> bool:
        return self.growth(steps) <= free

    def growth(self, steps: int = 1) -> int:
        assert steps == 1
        if not self.grows:
            return 0
        return sum(
            blocks_of(member.context + 1, self.block_tokens) - blocks_of(member.context, self.block_tokens)
            for member in self.members
        )

    def advance(self, steps: int) -> list[Sequence]:
        assert steps == 1
        self.step += 1
        finished = []
        for member in list(self.members):
            member.context += 1
            member.generated += 1
            if self.grows:
                member.blocks = blocks_of(member.context, self.block_tokens)
            if member.generated == member.stop:
                self.leave(member)
                finished.append(member)
        return finished


class SteppedInstance(Instance):
    """An instance that never coalesces, and that audits its memory."""

    def new_group(self) -> DecodeGroup:
        return SteppedGroup(self.memory.block_tokens, self.memory.grows)

    def _coalesces(self, slot: Slot, plan: Plan) -> bool:
        return False

    def _begin_iteration(self, slot: Slot, plan: Plan) -> None:
        assert self.memory.free >= (slot.group.growth() if plan.decode else 0), (
            "an iteration without its blocks"
        )
        assert self.memory.free >= 0
        super()._begin_iteration(slot, plan)

    def audit(self) -> None:
        """Every block is free or held by somebody we know, once the system is empty."""
        assert self.memory.free == self.memory.capacity
        assert not self.waiting and not self.swapped and not any(slot.size for slot in self.slots)
