"""Stall-free batching (Algorithm 3), and the ablation that chunks prompts without mixing them with decodes."""

from dataclasses import dataclass, field

from common.serving.batch import Plan, Slot
from common.serving.schedulers import make_room
from common.serving.sequence import Sequence


@dataclass(frozen=True)
class StallFree:
    """Sarathi-Serve: every running decode, then partly prefilled prompts, then new ones, up to a token budget.

    A decode is never left out for the budget's sake, and all started prompts continue, in the order of their
    arrival, as far as it reaches. A new prompt is admitted only with blocks for the whole of it, above the
    watermark. max_sequences: of a slot. `sizes` makes chunks dynamic: a prompt's chunk is at most sizes[k] (less
    what is in the batch) after k * stage_tokens of its tokens, see `dynamic_sizes`. decodes_first=False swaps the
    order, which is no longer the paper's method: prompts take the budget, and the decodes, which run together or
    not at all, wait until it has room for them.

    Source: Algorithm 3 and sarathi_scheduler.py of microsoft/sarathi-serve. There the sequence that arrived last is
    preempted, here (make_room) the one that joined last; the two differ after a preemption only.
    """

    budget: int = 512
    max_sequences: int = 128
    decodes_first: bool = True
    sizes: tuple[int, ...] = ()
    stage_tokens: int = 1
    head_only: bool = True

    def __post_init__(self) -> None:
        for name in ("budget", "max_sequences", "stage_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} lets no prompt in; 1 or more")
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"sizes: {self.sizes} holds a chunk without tokens; 1 or more each")

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        preempted = make_room(slot, swap=False)
        batched = len(slot.group) if self.decodes_first else 0
        chunks = []
        for sequence in slot.prefilling:
            if (tokens := self._chunk(sequence, batched)) > 0:
                chunks.append((sequence, tokens))
                batched += tokens
        waiting, memory = slot.instance.waiting, slot.instance.memory
        while waiting and not preempted and slot.room(self.max_sequences) > 0:
            tokens = self._chunk(waiting[0], batched)
            if tokens <= 0 or not memory.admits(memory.needs(waiting[0]) + slot.group.growth()):
                break
            chunks.append((slot.admit(), tokens))
            batched += tokens
        decode = self.decodes_first or not chunks or batched + len(slot.group) <= self.budget
        return Plan(chunks, decode, steady=not preempted)

    def _chunk(self, sequence: Sequence, batched: int) -> int:
        """Tokens of `sequence` that join a batch of so many."""
        size = self.budget
        if self.sizes:
            size = self.sizes[min(sequence.context // self.stage_tokens, len(self.sizes) - 1)]
        return min(sequence.goal - sequence.context, size - batched)


def dynamic_sizes(low: int, high: int, stages: int) -> tuple[int, ...]:
    """Chunk sizes falling in equal steps from `high` to `low`, each rounded to a multiple of 32 (or of `low`).

    Early chunks attend to little and may be long; later ones are cut to keep iterations equally long. Source:
    `_compute_chunk_size_schedule` of microsoft/sarathi-serve; off in the paper. Raises ValueError for sizes of no
    token, of `high` below `low`, and for no stage.
    """
    if not 1 <= low <= high or stages < 1:
        raise ValueError(
            f"chunks from {high} down to {low} tokens in {stages} stages: 1 <= low <= high, 1 <= stages"
        )
    unit = min(32, low)
    step = (high - low) / max(1, stages - 1)
    return tuple(unit * round(int(low + step * stage) / unit) for stage in reversed(range(stages)))


@dataclass(eq=False)
class AlternatingChunks:
    """Chunked prefills only: a turn of chunks, then a turn of all decodes, never both in one iteration.

    In a prompt turn the started prompts continue, or else new ones are admitted, up to `budget` tokens; a turn
    without work passes to the other. Source: Section 5.4 and simple_chunking_scheduler.py of
    microsoft/sarathi-serve. Keeps whose turn it is for each slot, so that every simulation needs its own.
    """

    budget: int = 512
    max_sequences: int = 128
    head_only: bool = True
    _decodes_turn: dict[Slot, bool] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if min(self.budget, self.max_sequences) < 1:
            raise ValueError(f"budget {self.budget}, max_sequences {self.max_sequences}: 1 or more each")

    def plan(self, slot: Slot) -> Plan:
        """See Scheduler."""
        if not (self._decodes_turn.get(slot, False) and slot.group.members):
            chunks = self._chunks(slot)
            if chunks:
                self._decodes_turn[slot] = True
                return Plan(chunks, False)
        self._decodes_turn[slot] = False
        preempted = make_room(slot, swap=False)
        prompts_next = bool(slot.prefilling) or self._can_admit(slot)
        return Plan([], True, steady=not preempted and not prompts_next)

    def _chunks(self, slot: Slot) -> list[tuple[Sequence, int]]:
        chunks: list[tuple[Sequence, int]] = []
        left = self.budget
        for sequence in slot.prefilling:
            if left > 0:
                chunks.append((sequence, min(left, sequence.goal - sequence.context)))
                left -= chunks[-1][1]
        if chunks:
            return chunks
        while left > 0 and self._can_admit(slot):
            sequence = slot.admit()
            chunks.append((sequence, min(left, sequence.goal)))
            left -= chunks[-1][1]
        return chunks

    def _can_admit(self, slot: Slot) -> bool:
        waiting, memory = slot.instance.waiting, slot.instance.memory
        return (
            bool(waiting)
            and slot.room(self.max_sequences) > 0
            and memory.admits(memory.needs(waiting[0]) + slot.group.growth())
        )
