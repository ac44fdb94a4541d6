"""NanoFlow's batch policy: every iteration fills the same dense batch, and the end of a sequence is seen late (4.2).

Unfinished decodes come first, then pieces of prompts until the dense batch is full to the token. A request is admitted
when the memory it is predicted to reach fits beside that of the running ones. Batch i + 1 is put together while batch i
runs, so that an end-of-sequence token of batch i is noticed after batch i + 1: one token is computed for nothing.
"""

from dataclasses import dataclass

from common.serving.batch import Plan, Slot
from common.serving.schedulers import make_room
from common.serving.sequence import Sequence


@dataclass(frozen=True)
class DenseBatch:
    """Batch policy for common/serving.

    tokens: of the dense batch. average_output: decode length predicted for everybody, tokens. late: iterations after
    which an end of sequence is noticed (0: a synchronous scheduler that waits for the batch before).
    """

    tokens: int = 2048
    average_output: float = 256.0
    late: int = 1
    head_only: bool = True

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.late < 0 or not self.average_output > 0:
            raise ValueError(
                f"a dense batch has tokens ({self.tokens}), outputs have some ({self.average_output}), and no end is "
                f"noticed before it comes ({self.late} iterations late)"
            )

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        instance = slot.instance
        preempted = make_room(slot, swap=False)
        left = self.tokens - len(slot.group)
        chunks: list[tuple[Sequence, int]] = []
        for sequence in slot.prefilling:
            if left > 0:
                piece = min(left, sequence.goal - sequence.context)
                chunks.append((sequence, piece))
                left -= piece
        while left > 0 and not preempted and instance.waiting and slot.room(self.tokens) > 0:
            head = instance.waiting[0]
            if not self._fits(slot, head):
                break
            if head.stop == head.output:  # else it was preempted, and is late already
                head.stop += self.late
            slot.admit()
            piece = min(left, head.goal)
            chunks.append((head, piece))
            left -= piece
        return Plan(chunks, True, steady=not preempted)

    def _fits(self, slot: Slot, head: Sequence) -> bool:
        """Whether the peak predicted with `head` fits, and its prompt fits now.

        A sequence is predicted to end with its prompt and the average output; longer ones are noticed by what they
        hold already. An empty slot takes anything that fits now.
        """
        memory = slot.instance.memory
        if not memory.admits(memory.needs(head) + slot.group.growth()):
            return False
        active, room = slot.size, memory.capacity * memory.block_tokens
        prompts = sum(one.prompt for one in slot.prefilling) + head.goal
        outputs = self.average_output * (active + 1)
        # Members hold their prompts and more: where even that fits, nothing need be summed.
        if not active or slot.group.context + prompts + outputs <= room:
            return True
        return sum(one.prompt for one in slot.group.members) + prompts + outputs <= room
