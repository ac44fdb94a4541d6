"""A small serving engine that really runs: the simulator's policies and KV accounting drive a decoder on this machine.

`LiveInstance` is the simulator's `Instance` with one thing replaced. Where the simulator asks a latency model how
long an iteration takes, it runs the plan's prompt chunks and decodes as one ragged batch, and looks at the clock. The
queues, the slot, the schedulers, the memory, the clients and the trace are the very same objects, so that what is
measured here and what is simulated differ in the seconds of iterations alone (live_fit.py compares the two).
Recomputing a preempted sequence drops its cache; swapping copies it into another buffer and back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.models.decoder import Cache, Decoder, KVCache
from common.serving.batch import Plan, Scheduler, Slot
from common.serving.clients import Clients
from common.serving.engine import Instance, simulate
from common.serving.latency import Line
from common.serving.memory import KVMemory
from common.serving.sequence import Sequence as Request
from common.serving.trace import Trace
from common.serving.wall_clock import WallClock
from common.serving.workload import Workload


class Iteration(NamedTuple):
    """What an iteration computed, and how long it took.

    start, seconds: on the wall clock of the run; seconds run from the boundary before it, without copy_seconds.
    chunks: (new tokens, tokens already cached) of each sequence in prefill. decodes: sequences that decoded; context:
    their KV tokens, this step's included. copied: tokens swapped in or out before it, which took copy_seconds.
    """

    start: float
    seconds: float
    chunks: tuple[tuple[int, int], ...]
    decodes: int
    context: int
    copied: int = 0
    copy_seconds: float = 0.0


@dataclass(frozen=True)
class LiveRun:
    """What a run leaves behind: the trace with token times, the greedy tokens of each request, and every iteration."""

    trace: Trace
    tokens: list[list[int]]
    iterations: list[Iteration]


class _Unknown:
    """The latency model of an instance that is timed and not asked."""

    stages = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        raise NotImplementedError("a live iteration is run, not predicted")

    def decode_line(self, decodes: int, context: int) -> Line:
        raise NotImplementedError("a live iteration is run, not predicted")


class LiveSlot(Slot):
    """A slot whose preemptions and resumptions move real caches."""

    instance: "LiveInstance"

    def preempt(self, sequence: Request, swap: bool) -> None:
        """See Slot."""
        super().preempt(sequence, swap)
        swapped = self.instance.swapped
        self.instance.put_away(sequence, keep=bool(swapped) and swapped[-1] is sequence)

    def resume(self, sequence: Request | None = None) -> Request:
        """See Slot."""
        resumed = super().resume(sequence)
        self.instance.bring_back(resumed)
        return resumed


class LiveBatches(Instance):
    """An instance whose iterations run on this machine. Its subclass knows what each request said, and its cache."""

    wall: WallClock
    model: Decoder
    log: list[Iteration]
    _copied, _copy_seconds = 0, 0.0  # tokens swapped before the next iteration, and the seconds that took

    def text(self, sequence: Request) -> list[int]:
        """All tokens of a request so far; what comes out is appended."""
        raise NotImplementedError

    def cache(self, sequence: Request) -> Cache:
        """Where its keys and values are, with room for those of the next iteration."""
        raise NotImplementedError

    def _coalesces(self, slot: Slot, plan: Plan) -> bool:
        return False

    def _begin_iteration(self, slot: Slot, plan: Plan) -> None:
        start, group = self.loop.now, slot.group
        decoding = list(group.members) if plan.decode else []
        chunks = tuple((new, sequence.context) for sequence, new in plan.chunks)
        context = group.context + len(decoding) if decoding else 0
        if decoding:
            self.memory.free -= group.growth()
        self._compute(plan, decoding)
        end = self.wall.clock()
        seconds = end - start - self._copy_seconds
        self.log.append(
            Iteration(start, seconds, chunks, len(decoding), context, self._copied, self._copy_seconds)
        )
        self._copied, self._copy_seconds = 0, 0.0
        self.busy_seconds += end - start
        self.loop.at(end, self.rank, self._end_iteration, (slot, plan, start))

    def _compute(self, plan: Plan, decoding: list[Request]) -> None:
        """Run the batch and append the tokens that come out of it."""
        feeds, caches, ends = [], [], []
        for sequence, new in plan.chunks:
            first, last = sequence.context, sequence.context + new
            caches.append(self.cache(sequence))
            feeds.append(self.text(sequence)[first:last])
            ends.append(last == sequence.goal)
        for sequence in decoding:
            caches.append(self.cache(sequence))
            feeds.append(self.text(sequence)[-1:])
            ends.append(True)
        best = self.model([torch.tensor(feed) for feed in feeds], caches).argmax(-1).tolist()
        batch = [sequence for sequence, _ in plan.chunks] + decoding
        for sequence, token, comes_out in zip(batch, best, ends, strict=True):
            if comes_out:
                self.text(sequence).append(token)


class LiveInstance(LiveBatches):
    """One model replica on this machine; see Instance for the queues and the memory.

    tokens: the prompt of each request, by its index; what is generated is appended. new_cache: makes a cache with
    room for so many tokens (None: a contiguous one); it is released when its sequence ends or is preempted.
    """

    def __init__(
        self,
        loop: WallClock,
        model: Decoder,
        tokens: list[list[int]],
        memory: KVMemory,
        scheduler: Scheduler,
        *,
        host_blocks: int = 0,
        new_cache: Callable[[int], Cache] | None = None,
        on_finish: Callable[[Request], None] | None = None,
    ) -> None:
        super().__init__(loop, _Unknown(), memory, scheduler, host_blocks=host_blocks, records_tokens=True)
        self.wall = loop
        self.model = model
        self.tokens = tokens
        self.log: list[Iteration] = []
        self.caches: dict[Request, Cache] = {}
        self._new_cache = new_cache or (lambda capacity: KVCache(model.config, capacity))
        self._on_finish = on_finish
        self._host: dict[Request, list[tuple[Tensor, Tensor]]] = {}  # keys and values of each layer
        self._only = LiveSlot(self, self.slots[0].group)
        self.slots = [self._only]

    def text(self, sequence: Request) -> list[int]:
        """See LiveBatches."""
        return self.tokens[sequence.index]

    def cache(self, sequence: Request) -> Cache:
        """See LiveBatches; a new one at the first chunk."""
        return self.caches[sequence] if sequence in self.caches else self._cache(sequence)

    def put_away(self, sequence: Request, keep: bool) -> None:
        """Give up the cache of a sequence, after copying it to the host's buffers if it is to be kept."""
        cache = self.caches.pop(sequence, None)
        if cache is None:  # admitted, but no chunk of it has run
            return
        if keep:
            begun = self.wall.clock()
            self._host[sequence] = [(k.clone(), v.clone()) for k, v in self._stored(cache)]
            self._copied += cache.length
            self._copy_seconds += self.wall.clock() - begun
        cache.release()

    def bring_back(self, sequence: Request) -> None:
        """Copy a sequence's keys and values from the host's buffers into a new cache."""
        begun = self.wall.clock()
        cache = self._cache(sequence)
        for layer, (keys, values) in enumerate(self._host.pop(sequence)):
            cache.append(layer, keys, values)
        cache.advance(keys.shape[1])
        self._copied += cache.length
        self._copy_seconds += self.wall.clock() - begun

    def _stored(self, cache: Cache) -> list[tuple[Tensor, Tensor]]:
        """All keys and values of a cache: what comes back when nothing is added."""
        config = self.model.config
        nothing = torch.empty(config.groups, 0, config.head_dim)
        return [cache.append(layer, nothing, nothing) for layer in range(config.layers)]

    def _cache(self, sequence: Request) -> Cache:
        capacity = sequence.prompt + sequence.stop
        if capacity > self.model.config.positions:
            raise ValueError(
                f"request {sequence.index} may grow to {capacity} tokens; the model has "
                f"{self.model.config.positions} positions"
            )
        cache = self.caches[sequence] = self._new_cache(capacity)
        return cache

    def _finish(self, slot: Slot, sequence: Request) -> None:
        super()._finish(slot, sequence)
        self.put_away(sequence, keep=False)
        if self._on_finish is not None:
            self._on_finish(sequence)


def serve(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[int],
    scheduler: Scheduler,
    memory: KVMemory,
    *,
    arrivals: Sequence[float] | None = None,
    clients: Clients | None = None,
    host_blocks: int = 0,
    new_cache: Callable[[int], Cache] | None = None,
    progress: Callable[[int], None] | None = None,
    clock: WallClock | None = None,
) -> LiveRun:
    """Serve requests with greedy decoding, in real time, until the last has ended.

    prompts: token ids of each request; outputs: how many tokens each asks for. arrivals: seconds, ascending (None:
    all at once); clients: who sends them instead (ClosedLoop, Sessions). host_blocks: KV blocks that may be swapped
    out at a time. progress: called with the number of requests that have ended. clock: a fresh one; None is the wall's
    own. Raises as `simulate` does, and
    ValueError for a request that is longer than the model's positions.
    """
    tokens = [list(prompt) for prompt in prompts]
    ended = 0

    def on_finish(_: Request) -> None:
        nonlocal ended
        ended += 1
        if progress is not None:
            progress(ended)

    loop = clock or WallClock()
    instance = LiveInstance(
        loop,
        model,
        tokens,
        memory,
        scheduler,
        host_blocks=host_blocks,
        new_cache=new_cache,
        on_finish=on_finish,
    )
    model(
        [torch.zeros(2, dtype=torch.int64)], [KVCache(model.config, 2)]
    )  # the first batch would pay for set-up
    workload = workload_of(prompts, outputs, arrivals)
    trace = simulate(workload, lambda _: instance, clients, loop)
    answers = [
        row[len(prompt) : len(prompt) + output]
        for row, prompt, output in zip(tokens, prompts, outputs, strict=True)
    ]
    return LiveRun(trace, answers, instance.log)


def workload_of(
    prompts: Sequence[Sequence[int]], outputs: Sequence[int], arrivals: Sequence[float] | None = None
) -> Workload:
    """The same requests as the simulator takes them: their lengths and arrivals, seconds (None: all at once)."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    times = np.zeros(len(lengths)) if arrivals is None else np.asarray(arrivals, dtype=float)
    return Workload(times, lengths, np.asarray(outputs, dtype=np.int64))
