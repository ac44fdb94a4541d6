"""The simulator: an event loop, instances, and coalesced decode stretches.

Between two changes of a batch, decode iterations form an arithmetic series: n sequences gain n tokens of context
an iteration, and a latency model is linear in the context. An instance therefore plans once, computes how
many iterations the plan survives (next finish, next exhaustion of KV blocks, end of the latency model's line), and
sleeps until the last of them ends. An event from outside cuts the stretch at the first iteration that ends at or
after it, exactly where a step-by-step engine would look at its queues again. The step-by-step engine lives in
tests/common/serving/reference.py, and both give the same time stamps.

With pipeline stages, micro-batches ("slots") chase one another through the stages; these iterations are stepped one
by one, still at a cost that does not depend on the number of sequences in them.
"""

import gc
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from common.serving.batch import Plan, Scheduler, Slot
from common.serving.clients import Clients
from common.serving.latency import LatencyModel
from common.serving.loop import ARRIVAL, UPSTREAM, EventLoop
from common.serving.memory import KVMemory
from common.serving.sequence import DecodeGroup, Sequence
from common.serving.trace import TokenLog, Trace, token_times
from common.serving.workload import Workload


class Stretch(NamedTuple):
    """Decode iterations under way: the i-th (from 0) takes first + i * increment seconds."""

    start: float
    first: float
    increment: float

    def end(self, steps: int) -> float:
        """When `steps` iterations are over."""
        return self.start + (steps * self.first + self.increment * (steps * (steps - 1) / 2))

    def steps_until(self, time: float) -> int:
        """The fewest iterations, at least one, that end at or after `time`."""
        elapsed = time - self.start
        half = self.increment / 2
        linear = self.first - half
        root = math.sqrt(linear * linear + 4 * half * elapsed) if half else 0.0
        steps = max(1, int(2 * elapsed / (linear + root) if half else elapsed / self.first))
        while self.end(steps) < time:
            steps += 1
        while steps > 1 and self.end(steps - 1) >= time:
            steps -= 1
        return steps


class Instance:
    """A model replica: a queue, KV memory and a batch policy, on one GPU or several in tensor and pipeline parallel.

    on_prefilled: who takes a sequence whose prompt is done, instead of decoding it here (disaggregation); its KV
    blocks stay held until `release`. on_begin: called after every plan, once its iteration has taken the blocks
    it needs: the moment to offer the rest to somebody else. rank: place of its iterations among simultaneous events.
    host_blocks: KV blocks that fit into the swap space. swap_seconds_per_block: copying one block either way.
    """

    def __init__(
        self,
        loop: EventLoop,
        latency: LatencyModel,
        memory: KVMemory,
        scheduler: Scheduler,
        *,
        on_prefilled: Callable[[Sequence], None] | None = None,
        on_begin: Callable[[], None] | None = None,
        rank: int = UPSTREAM,
        host_blocks: int = 0,
        swap_seconds_per_block: float = 0.0,
        records_tokens: bool = False,
    ) -> None:
        self.loop = loop
        self.latency = latency
        self.memory = memory
        self.scheduler = scheduler
        self.on_prefilled = on_prefilled
        self.on_begin = on_begin
        self.rank = rank
        self.host_blocks = host_blocks
        self.swap_seconds_per_block = swap_seconds_per_block
        self.records_tokens = records_tokens
        self.waiting: deque[Sequence] = deque()
        self.swapped: deque[Sequence] = deque()
        self.slots = [Slot(self, self.new_group()) for _ in range(latency.stages)]
        self._only = self.slots[0] if latency.stages == 1 else None  # the slot, where there is no pipeline
        self.iterations = 0
        self.busy_seconds = 0.0  # of the first stage
        self._ready: deque[Slot] = deque()  # slots waiting for the first stage, in turn
        self._stage_free = [0.0] * latency.stages
        self.stage_busy = [0.0] * latency.stages  # seconds; counted where there is a pipeline
        self.active_seconds = 0.0  # with a micro-batch in flight; counted where there is a pipeline
        self._in_flight = 0
        self._active_since = 0.0
        self._pumping = False
        self._stretch: Stretch | None = None
        self._steps = 0  # of the stretch
        self._version = 0  # of the stretch; an end that carries an older one has been overtaken
        self._between: deque[Callable[[], None]] = deque()  # to be called at the next iteration boundary

    def new_group(self) -> DecodeGroup:
        """An empty set of decoding sequences; the step-by-step reference engine counts in its own."""
        return DecodeGroup(self.memory.block_tokens, self.memory.grows)

    def submit(self, sequence: Sequence) -> None:
        """Queue a new sequence. Raises ValueError if it could never fit into this instance's memory."""
        self.memory.check(sequence)
        self.enqueue(sequence)

    def enqueue(self, sequence: Sequence) -> None:
        """Queue a sequence that is known to fit."""
        behind = bool(self.waiting)
        self.waiting.append(sequence)
        if not (behind and self.scheduler.head_only):
            self.wake()

    def unfinished(self) -> int:
        """Sequences queued, prefilling, decoding or swapped out."""
        return len(self.waiting) + len(self.swapped) + sum(slot.size for slot in self.slots)

    def release(self, blocks: int) -> None:
        """Free the blocks of a sequence that was handed on, once somebody else holds its KV."""
        self.memory.free += blocks
        if self.waiting or self.swapped:
            self.wake()

    def steps_over(self) -> int:
        """Decode iterations that have ended, but are not counted in the group and the memory yet.

        A coalesced stretch is counted as a whole when it is over. Whoever looks at an instance from outside adds what
        these iterations stored: so many tokens for every member of the group.
        """
        return self._stretch.steps_until(self.loop.now) - 1 if self._stretch is not None else 0

    def blocks_free(self) -> int:
        """KV blocks that nobody holds now, next to those of the iteration under way."""
        if self._stretch is None:
            return self.memory.free
        return self.memory.free - self.slots[0].group.growth(self.steps_over() + 1)

    def can_take(self, blocks: int) -> bool:
        """Whether `blocks` are free now, next to those of the iteration under way."""
        free = self.memory.free - blocks
        if self._stretch is None:
            return free >= 0
        group = self.slots[0].group
        return group.fits(free, self._steps) or group.fits(free, self._stretch.steps_until(self.loop.now))

    def take(self, blocks: int) -> None:
        """Hold `blocks` for a sequence on its way here."""
        self.memory.free -= blocks
        if self._stretch is not None and not self.slots[0].group.fits(self.memory.free, self._steps):
            self._cut()

    def wake(self) -> None:
        """Something changed from outside: look at the queues at the next iteration boundary."""
        if self._stretch is not None:
            self._cut()
        elif self._only is not None:
            if self._only.idle:
                self._only.idle = False
                self._begin(self._only)
        else:
            self._ready_idle_slots()
            self._pump()

    def at_boundary(self, callback: Callable[[], None]) -> None:
        """Call `callback()` between two iterations: at once if nothing runs, else when the one under way ends.

        There sequences may leave and join the batch and the queues may be put in another order; a plan follows. With
        pipeline stages other slots may have iterations in flight: only those at their own boundary are free to change.
        """
        self._between.append(callback)
        self.wake()

    def _ready_idle_slots(self) -> None:
        for slot in self.slots:
            if slot.idle:
                slot.idle = False
                self._ready.append(slot)

    def _cut(self) -> None:
        assert self._stretch is not None
        if self._steps > 1:
            steps = self._stretch.steps_until(self.loop.now)
            if steps < self._steps:
                self._sleep(steps)

    def _pump(self, _: None = None) -> None:
        """Start the iterations of ready slots while the first stage is free."""
        now = self.loop.now
        while self._ready:
            if self._stage_free[0] > now:
                if not self._pumping:
                    self._pumping = True
                    self.loop.at(self._stage_free[0], self.rank, self._resume_pump)
                return
            self._begin(self._ready.popleft())

    def _resume_pump(self, _: None) -> None:
        self._pumping = False
        self._pump()

    def _begin(self, slot: Slot) -> None:
        while self._between:
            self._between.popleft()()
        plan = self.scheduler.plan(slot)
        group = slot.group
        if self._coalesces(slot, plan):
            self._begin_stretch(group, plan.steps)
        elif plan.chunks or (plan.decode and group.members):
            self._begin_iteration(slot, plan)
        else:
            slot.idle = True
        if self.on_begin is not None:
            self.on_begin()

    def _coalesces(self, slot: Slot, plan: Plan) -> bool:
        steady = plan.decode and plan.steady and not plan.chunks and not slot.copy_seconds
        return steady and self._only is not None and bool(slot.group.members)

    def _begin_stretch(self, group: DecodeGroup, at_most: int | None) -> None:
        decodes = len(group.members)
        context = group.context + decodes
        line = self.latency.decode_line(decodes, context)
        steps = group.steps_to_finish()
        if at_most is not None:
            steps = min(steps, at_most)
        if line.until != math.inf:
            steps = min(steps, max(1, math.ceil((line.until - context) / decodes)))
        steps = group.steps_that_fit(self.memory.free, steps)
        first = line.intercept + line.slope * context
        self._stretch = Stretch(self.loop.now, first, line.slope * decodes)
        self._sleep(steps)

    def _sleep(self, steps: int) -> None:
        assert self._stretch is not None
        self._steps = steps
        self._version += 1
        self.loop.at(self._stretch.end(steps), self.rank, self._end_stretch, self._version)

    def _end_stretch(self, version: int) -> None:
        if version != self._version:
            return
        stretch, steps = self._stretch, self._steps
        assert stretch is not None
        slot = self.slots[0]
        group = slot.group
        self._stretch = None
        self.memory.free -= group.growth(steps)
        self.iterations += steps
        self.busy_seconds += self.loop.now - stretch.start
        if self.records_tokens:
            slot.log.add(group.step, *stretch)
        for sequence in group.advance(steps):
            self._finish(slot, sequence)
        self._again(slot)

    def _begin_iteration(self, slot: Slot, plan: Plan) -> None:
        group = slot.group
        decodes = len(group) if plan.decode else 0
        context = group.context + decodes if decodes else 0
        chunks = [(tokens, sequence.context) for sequence, tokens in plan.chunks]
        first, later = self.latency.iteration(chunks, decodes, context)
        if decodes:
            self.memory.free -= group.growth()
        start = self.loop.now
        time = self._stage_free[0] = start + first + slot.copy_seconds
        slot.copy_seconds = 0.0
        self.busy_seconds += time - start
        if self._only is None:
            if not self._in_flight:
                self._active_since = start
            self._in_flight += 1
            self.stage_busy[0] += time - start
            for stage in range(1, len(self._stage_free)):
                time = self._stage_free[stage] = max(time, self._stage_free[stage]) + later
                self.stage_busy[stage] += later
        self.loop.at(time, self.rank, self._end_iteration, (slot, plan, start))

    def _end_iteration(self, begun: tuple[Slot, Plan, float]) -> None:
        slot, plan, start = begun
        now = self.loop.now
        self.iterations += 1
        if plan.decode and slot.group.members:
            if self.records_tokens:
                slot.log.add(slot.group.step, start, now - start, 0.0)
            for sequence in slot.group.advance(1):
                self._finish(slot, sequence)
        for sequence, tokens in plan.chunks:
            sequence.context += tokens
            if sequence.context == sequence.goal:
                slot.prefilling.remove(sequence)
                self._prefilled(slot, sequence)
        self._again(slot)

    def _prefilled(self, slot: Slot, sequence: Sequence) -> None:
        sequence.generated += 1
        if sequence.generated == 1:
            sequence.first_token = self.loop.now
        if self.records_tokens:
            sequence.spans.append((self.loop.now, 0, 0))
        if sequence.generated == sequence.stop:
            self._finish(slot, sequence)
        elif self.on_prefilled is not None:
            self.on_prefilled(sequence)
        else:
            slot.start_decoding(sequence)

    def _finish(self, slot: Slot, sequence: Sequence) -> None:
        if self.records_tokens and isinstance(sequence.spans[-1][0], TokenLog):
            slot.close_span(sequence)
        sequence.finish = self.loop.now
        self.memory.free += sequence.blocks
        sequence.blocks = 0
        self.loop.finished(sequence)

    def _again(self, slot: Slot) -> None:
        """After an iteration: its slot queues for the first stage again, and so do those that lacked memory."""
        if self._only is not None:
            self._begin(slot)
            return
        self._in_flight -= 1
        if not self._in_flight:
            self.active_seconds += self.loop.now - self._active_since
        self._ready.append(slot)
        self._ready_idle_slots()
        self._pump()


class System(Protocol):
    """Whatever takes requests: one instance, replicas behind a dispatcher, a disaggregated pair of phases."""

    def submit(self, sequence: Sequence) -> None: ...


def simulate(
    workload: Workload,
    build: Callable[[EventLoop], System],
    clients: Clients | None = None,
    loop: EventLoop | None = None,
) -> Trace:
    """Run a workload to its end on the system that `build` makes on an event loop.

    clients: who sends the requests; None sends each at its arrival. The trace holds when they were really sent.
    loop: the clock, where it is not a simulated one (live.py).
    Raises ValueError for a request that never fits, RuntimeError if the system stalls with requests unfinished.
    """
    loop = EventLoop() if loop is None else loop
    sequences = [
        Sequence(index, *request)
        for index, request in enumerate(
            zip(workload.arrival.tolist(), workload.prompt.tolist(), workload.output.tolist(), strict=True)
        )
    ]
    loop.unfinished = len(sequences)
    system = build(loop)
    with _no_cycle_collection():
        loop.run(
            sequences if clients is None else _sent(sequences, workload, clients, loop, system), system.submit
        )
    stuck = [sequence.index for sequence in sequences if sequence.finish < 0]
    if stuck:
        raise RuntimeError(
            f"the system stalled with {len(stuck)} of {len(sequences)} requests unfinished (first: {stuck[0]}): "
            "its scheduler admits nothing although nothing runs; check its KV capacity and batch limits"
        )
    return Trace(
        workload.arrival if clients is None else np.array([s.arrival for s in sequences]),
        workload.prompt,
        workload.output,
        np.array([s.first_token for s in sequences]),
        np.array([s.finish for s in sequences]),
        np.array([s.preemptions for s in sequences], dtype=np.int64),
        tuple(token_times(s) for s in sequences) if sequences and sequences[0].spans else (),
        np.array([s.started for s in sequences]),
    )


def _sent(
    sequences: list[Sequence], workload: Workload, clients: Clients, loop: EventLoop, system: System
) -> list[Sequence]:
    """The requests that `clients` send of their own accord; each of the others is sent when the one before it ends."""

    def send(sequence: Sequence) -> None:
        sequence.arrival = loop.now
        system.submit(sequence)

    def on_finish(sequence: Sequence) -> None:
        following = clients.after(sequence.index)
        if following is not None:
            seconds, index = following
            loop.at(loop.now + seconds, ARRIVAL, send, sequences[index])

    loop.on_finish = on_finish
    first = []
    for seconds, index in clients.first(workload):
        sequences[index].arrival = seconds
        first.append(sequences[index])
    return first


@contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """A simulation makes many small objects and no cycles; looking for cycles would cost a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
