"""The batch policy of an instance: vLLM's prompts-first batches with priorities, and preemption by recomputation.

Queues are in the order of priority, then arrival. Whoever is preempted loses its KV cache and prefills again; how much
time that costs is noted as the authors' scripts compute it.
"""

from collections import deque
from dataclasses import dataclass, field

from common.serving.batch import DECODE, Host, Plan, Slot
from common.serving.engine import Instance
from common.serving.sequence import Sequence

MAX_PROMPT_TOKENS = 12_800  # of one iteration; max_batch_total_tokens_vals of the artifact's configurations
MAX_SEQUENCES = 256  # vLLM's default of max_num_seqs


@dataclass
class PreemptionLoss:
    """Seconds that requests lost to preemption: waiting, and prefilling again, less the decode step this replaces.

    Source: get_preemption_loss of artifact/63_serving_performance/plot/process_log.py.
    """

    seconds: float = 0.0
    since: dict[Sequence, float] = field(default_factory=dict)  # preempted, not yet admitted again


def urgency(sequence: Sequence) -> tuple[int, float, int]:
    """Sort key of a queue: higher priority first, then first come, first served."""
    return -sequence.priority, sequence.arrival, sequence.index


def queue_up(waiting: deque[Sequence], sequence: Sequence) -> bool:
    """Put a sequence where its urgency belongs; whether it is now the head."""
    place = len(waiting)
    while place and urgency(sequence) < urgency(waiting[place - 1]):
        place -= 1
    waiting.insert(place, sequence)
    return place == 0


def submit(instance: Instance, sequence: Sequence) -> None:
    """Queue a sequence at an instance by its urgency. Raises ValueError if it could never fit there."""
    instance.memory.check(sequence)
    if queue_up(instance.waiting, sequence):
        instance.wake()


@dataclass(frozen=True)
class PromptsFirst:
    """Whenever waiting prompts fit, run them alone; else decode everything. The least urgent is preempted first."""

    loss: PreemptionLoss
    max_tokens: int = MAX_PROMPT_TOKENS
    max_sequences: int = MAX_SEQUENCES
    head_only: bool = True

    def plan(self, slot: Slot) -> Plan:
        chunks = self._prompts(slot) if slot.instance.waiting else []
        if chunks:
            return Plan(chunks, False)
        return Plan([], True, steady=False) if self._make_room(slot) else DECODE

    def _prompts(self, slot: Slot) -> list[tuple[Sequence, int]]:
        instance = slot.instance
        waiting, memory = instance.waiting, instance.memory
        chunks: list[tuple[Sequence, int]] = []
        tokens = 0
        room = slot.room(self.max_sequences)
        while waiting and len(chunks) < room:
            goal = waiting[0].goal
            if (chunks and tokens + goal > self.max_tokens) or not memory.admits(memory.needs(waiting[0])):
                break
            sequence = slot.admit()
            self._note_return(instance, sequence)
            chunks.append((sequence, goal))
            tokens += goal
        return chunks

    def _make_room(self, slot: Slot) -> bool:
        """Preempt until every running sequence can store one more token; whether any was preempted."""
        group, instance = slot.group, slot.instance
        preempted = False
        while not group.fits(instance.memory.free):
            victim = max(group.members, key=urgency)
            slot.preempt(victim, swap=False)
            instance.waiting.popleft()  # where the engine put it: vLLM's order knows no priorities
            queue_up(instance.waiting, victim)
            self.loss.since[victim] = instance.loop.now
            preempted = True
        return preempted

    def _note_return(self, instance: Host, sequence: Sequence) -> None:
        since = self.loss.since.pop(sequence, None)
        if since is not None:
            prefill, _ = instance.latency.iteration([(sequence.goal, 0)], 0, 0)
            decode, _ = instance.latency.iteration([], 1, sequence.goal)
            self.loss.seconds += instance.loop.now - since + prefill - decode
