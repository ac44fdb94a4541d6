"""Live migration for real: a request moves between two serving engines in two processes while it decodes.

Rank 0 is the source: its live instance decodes a batch, and a thread copies blocks of the migrating request meanwhile.
Rank 1 is the target: its instance allocates blocks when asked, receives them, and goes on decoding. Three other ways to
move stand beside it: a blocking copy, recomputation, and a live copy on the thread that decodes. Clients would see the
tokens of both ranks as one stream, so both read the machine's monotonic clock.

A block is sent again when it has been written since. An append-only cache writes its last block only. One that moves
its tokens at every step writes all of them, and never gets done.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from common.models.decoder import Decoder, DecoderConfig, KVCache
from common.serving.live import Iteration
from common.serving.memory import blocks_of
from common.serving.sequence import Sequence
from common.serving.wall_clock import WallClock
from papers.llumnix.config import METHODS
from papers.llumnix.live_instance import (
    BLOCK,
    MigratingInstance,
    RewrittenCache,
    gather,
    scatter,
    versions,
)
from papers.llumnix.migration import Stages

MODEL = DecoderConfig(hidden=256, layers=8, heads=4, intermediate=512, positions=4096)
WEIGHTS = 0  # seed of weights and prompts, the same in every process
COMPANIONS = (128, 192)  # prompt tokens of the other requests in the source's batch
SPARE = 512  # tokens that a request may grow by
ASK, LAST, RECOMPUTE, ABORT = range(4)  # messages of the source


@dataclass(frozen=True)
class Trial:
    """One migration to try."""

    method: str
    length: int  # tokens stored when it is asked for
    output: int = 400  # tokens after which the request is finished, here or there
    room: int = 1024  # blocks of the target
    append_only: bool = True  # False: the whole cache is rewritten at every step
    stages: Stages = Stages()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; one of {', '.join(METHODS)}")
        if not 1 <= self.length <= MODEL.positions - SPARE:
            raise ValueError(f"length is {self.length}; it is 1 to {MODEL.positions - SPARE} tokens")


@dataclass
class Moved:
    """What a trial gave. tokens: of the request, by source and target together.

    gap: seconds between the last token at the source and the first at the target; -1 unless it really moved. steps:
    seconds of the source's iterations with the request in the batch and no migration beside them.
    """

    outcome: str
    tokens: list[int]
    stages: int
    gap: float = -1.0
    steps: list[float] = field(default_factory=list)
    stopped_blocks: int = 0  # copied or computed while the request stood still
    said_meanwhile: int = 0  # tokens of the request between the begin of its migration and its stop
    free_blocks: int = -1  # of the target, after everything


def build() -> Decoder:
    return Decoder(MODEL, torch.Generator().manual_seed(WEIGHTS))


def prompt_of(length: int) -> torch.Tensor:
    """A random prompt of that length, the same in every process, int64 of shape (length,)."""
    generator = torch.Generator().manual_seed(WEIGHTS + length)
    return torch.randint(MODEL.vocab, (length,), generator=generator)


def prefilled(model: Decoder, length: int) -> tuple[int, KVCache]:
    """First token and cache of the prompt of that length."""
    cache = KVCache(MODEL, length)
    return int(model([prompt_of(length)], [cache]).argmax(-1)), cache


def copied(cache: KVCache, append_only: bool = True) -> KVCache:
    """The same cache in other memory, with room to grow."""
    twin = (KVCache if append_only else RewrittenCache)(MODEL, cache.length + SPARE)
    twin.data[:, :, :, : cache.length] = cache.data[:, :, :, : cache.length]
    twin.length = cache.length
    return twin


def say(kind: int, *rest: int) -> bool:
    """Send the target a message and return its answer (whether it has room)."""
    dist.send(torch.tensor([kind, *rest, *[0] * (4 - len(rest))]), 1)
    answer = torch.zeros(1, dtype=torch.int64)
    dist.recv(answer, 1)
    return bool(answer)


def on_the_loop(loop: WallClock, call: Callable[[], Any]) -> Any:
    """From another thread: what `call()` answers on the thread of the run."""
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop.post(lambda _: answer.put(call()))
    return answer.get()


class Outside:
    """A thread beside a run: the run lasts at least as long, and what it raises is raised in the end."""

    def __init__(self, loop: WallClock, work: Callable[[], None]) -> None:
        self.loop, self.work = loop, work
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        loop.outside += 1
        self.thread.start()

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error
        self.loop.post(self._over)

    def _over(self, _: None) -> None:
        self.loop.outside -= 1
        if self.error is not None:
            raise self.error


class Source:
    """The source's side of one trial: an instance that decodes, and the migration beside it.

    Decodes `before` steps, then migrates and decodes until that is over, then `after` steps more.
    """

    def __init__(
        self, model: Decoder, trial: Trial, made: dict[int, tuple[int, KVCache]], before: int, after: int
    ) -> None:
        self.trial, self.before, self.after = trial, before, after
        self.loop = WallClock(time.monotonic)
        self.instance = MigratingInstance(self.loop, model, 4096, self._step)
        running = [self._running(*made[trial.length], trial.length, trial.output, trial.append_only)]
        running += [self._running(*made[length], length, SPARE) for length in COMPANIONS]
        self.migrating = running[0][0]
        # Its cache as of the last look: data, versions of blocks, tokens.
        self.seen = running[0][1].data, [0], 0
        self.loop.post(lambda _: self.instance.at_boundary(partial(self._begin, running)))
        self.stopped_at = -1.0  # when the request left its batch, on the run's clock
        self.began = self.ended = float("inf")  # the migration, on the run's clock
        self.steps_left = after
        self.copies = self.stopped_blocks = 0
        self.outcome = ""
        self.sent: dict[int, int] = {}  # block -> the version of it that was sent

    def _running(
        self, first: int, cache: KVCache, length: int, output: int, append_only: bool = True
    ) -> tuple[Sequence, KVCache]:
        request = self.instance.request([*prompt_of(length).tolist(), first], length, output)
        return request, copied(cache, append_only)

    def _begin(self, running: list[tuple[Sequence, KVCache]]) -> None:
        for sequence, cache in running:
            held = blocks_of(cache.length, BLOCK)
            self.instance.take(held)
            self.instance.adopt(sequence, cache, held)

    def run(self) -> Moved:
        """Serve until the trial is over."""
        self.loop.run([], self.instance.enqueue)
        said = self.instance.tokens[self.migrating.index][self.trial.length + 1 :]
        moved = Moved(self.outcome, said, self.copies, stopped_blocks=self.stopped_blocks)
        moved.said_meanwhile = len(said) - self.before
        whole = self.instance.log[0].decodes  # later the request has left, and iterations are shorter
        for one in self.instance.log:
            alone = one.start >= self.ended or one.start + one.seconds <= self.began
            if one.decodes == whole and alone:
                moved.steps.append(one.seconds)
        return moved

    def last_token_at(self) -> float:
        """When the request's last token here came out, on the machine's clock."""
        ends = map(end_of, self.instance.log)
        return began_at(self.loop) + max(end for end in ends if end <= self.stopped_at)

    def _step(self) -> None:
        """Between two iterations."""
        steps = len(self.instance.log)
        inline = self.trial.method == "live on the decoding thread"
        if steps == self.before:
            self.began = self.loop.clock()
            if not inline:
                Outside(self.loop, self._migrate)
        if steps >= self.before and inline and self.ended == float("inf") and not self._stage(self._look()):
            self.ended = self.loop.clock()
        if self.ended < float("inf"):
            self.steps_left -= 1
            if self.steps_left < 0:
                for member in list(self.instance.slots[0].group.members):
                    self.instance.slots[0].stop_decoding(member)

    def _migrate(self) -> None:
        """The migration's thread, beside the decoding loop."""
        while self._stage(on_the_loop(self.loop, self._at_boundary).get()):
            pass
        self.ended = on_the_loop(self.loop, self.loop.clock)

    def _at_boundary(self) -> "queue.SimpleQueue[list[int] | None]":
        """What `_look` will say when the instance is between two iterations."""
        seen: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self.instance.at_boundary(lambda: seen.put(self._look()))
        return seen

    def _look(self) -> list[int] | None:
        """The blocks to send next; where they are the last ones the request leaves its batch. None: it is finished."""
        if self.migrating.finish >= 0:
            return None
        cache = self.instance.caches[self.migrating]
        assert isinstance(cache, KVCache)
        self.seen = cache.data, versions(cache), cache.length
        dirty = [b for b, version in enumerate(self.seen[1]) if self.sent.get(b) != version]
        stops_at_once = self.trial.method in ("blocking", "recompute")
        if stops_at_once or len(dirty) <= self.trial.stages.last_stage_blocks:
            self.instance.slots[0].stop_decoding(self.migrating)
            self.stopped_at = self.loop.clock()
        return dirty

    def _stage(self, dirty: list[int] | None) -> bool:
        """Copy dirty blocks; whether another stage follows."""
        if dirty is None:
            return self._abort("finished")
        self.copies += 1
        if self.stopped_at >= 0:
            return self._hand_over(dirty)
        if self.copies == self.trial.stages.max_stages:
            return self._abort("too many stages")
        dirty = dirty[:-1]  # the last one is being written
        if not say(ASK, sum(b not in self.sent for b in dirty), len(dirty)):
            return self._abort("no room")
        self._send(dirty)
        return True

    def _send(self, dirty: list[int]) -> None:
        if not dirty:
            return
        data, version, _ = self.seen
        self.sent |= {b: version[b] for b in dirty}
        dist.send(torch.tensor(dirty), 1)
        dist.send(gather(data, dirty), 1)

    def _hand_over(self, dirty: list[int]) -> bool:
        """The request has stopped: send the rest and commit, or take it back where the target has no room."""
        text = self.instance.tokens[self.migrating.index]
        self.stopped_blocks = len(dirty)
        if self.trial.method == "recompute":
            self.stopped_blocks = blocks_of(len(text), BLOCK)
            if say(RECOMPUTE, self.stopped_blocks, len(text)):
                dist.send(torch.tensor(text), 1)
                self.outcome = "committed"
        elif say(LAST, sum(b not in self.sent for b in dirty), len(dirty), self.seen[2], text[-1]):
            self._send(dirty)
            self.outcome = "committed"
        after = self.instance.gone if self.outcome else self.instance.slots[0].start_decoding
        self.loop.post(lambda _: self.instance.at_boundary(partial(after, self.migrating)))
        return False if self.outcome else self._abort("no room")

    def _abort(self, why: str) -> bool:
        say(ABORT)
        self.outcome = why
        return False


class Target:
    """The target's side: it allocates blocks, and the request that arrives says `after` tokens more."""

    def __init__(self, model: Decoder, room: int, after: int) -> None:
        self.after = after
        self.loop = WallClock(time.monotonic)
        self.instance = MigratingInstance(self.loop, model, room, lambda: None)
        self.arrived: Sequence | None = None

    def serve(self) -> tuple[list[int], float, int]:
        """Answer the source; the request's tokens here, when the first came out, and free blocks in the end."""
        Outside(self.loop, self._answer)
        self.loop.run([], self.instance.enqueue)
        free = self.instance.memory.free
        if self.arrived is None:
            return [], 0.0, free
        said = self.instance.tokens[0][-self.after :]
        return said, began_at(self.loop) + end_of(self.instance.log[0]), free

    def _answer(self) -> None:
        held = 0
        cache = KVCache(MODEL, MODEL.positions)
        word = torch.zeros(5, dtype=torch.int64)
        while True:
            dist.recv(word, 0)
            kind, wanted, count, length, last = word.tolist()
            if kind == ABORT:
                on_the_loop(self.loop, partial(self.instance.release, held))
                dist.send(torch.tensor([1]), 0)
                return
            agreed = on_the_loop(self.loop, partial(self.instance.allocate, wanted))
            dist.send(torch.tensor([int(agreed)]), 0)
            if not agreed:
                continue
            held += wanted
            if kind == RECOMPUTE:
                stored = torch.empty(count, dtype=torch.int64)
                dist.recv(stored, 0)
                on_the_loop(self.loop, partial(self._prefill, stored.tolist(), held))
                return
            if count:
                index = torch.empty(count, dtype=torch.int64)
                dist.recv(index, 0)
                received = torch.empty(MODEL.layers, 2, MODEL.heads, count * BLOCK, MODEL.head_dim)
                dist.recv(received, 0)
                scatter(cache, index, received)
            if kind == LAST:
                cache.length = length
                on_the_loop(self.loop, partial(self._go_on, cache, last, held))
                return

    def _prefill(self, text: list[int], held: int) -> None:
        """The request queues as a new one, with all that it has said as its prompt."""
        self.instance.release(held)
        self.arrived = self.instance.request(text, len(text), self.after)
        self.arrived.context = 0
        self.instance.enqueue(self.arrived)

    def _go_on(self, cache: KVCache, last: int, held: int) -> None:
        """The request decodes here from the next boundary on; only its last token is known here."""
        self.arrived = self.instance.request([0] * cache.length + [last], cache.length, self.after)
        self.instance.at_boundary(partial(self.instance.adopt, self.arrived, cache, held))


def began_at(loop: WallClock) -> float:
    """When a run began, on the machine's monotonic clock, which all processes share."""
    return time.monotonic() - loop.clock()


def end_of(one: Iteration) -> float:
    """When an iteration ended, on the run's clock."""
    return one.start + one.seconds + one.copy_seconds


def migrations(rank: int, world: int, trials: list[Trial], before: int, after: int) -> list[Moved]:
    """Run the trials one after another; results on rank 0. For common.distributed.launch.

    before, after: tokens of the request before the migration begins, and at the target once it has moved.
    """
    model = build()
    model([torch.zeros(2, dtype=torch.int64)], [KVCache(MODEL, 2)])  # the first batch would pay for set-up
    made: dict[int, tuple[int, KVCache]] = {}
    results = []
    for trial in trials:
        dist.barrier()
        if rank == 1:
            dist.send_object_list([Target(model, trial.room, after).serve()], 0)
            continue
        for length in (trial.length, *COMPANIONS):
            if length not in made:
                made[length] = prefilled(model, length)
        source = Source(model, trial, made, before, before)
        moved = source.run()
        answer: list[tuple[list[int], float, int]] = [([], 0.0, 0)]
        dist.recv_object_list(answer, 1)
        tokens, stamp, moved.free_blocks = answer[0]
        if moved.outcome == "committed":
            moved.gap = stamp - source.last_token_at()
            moved.tokens = moved.tokens + tokens
        results.append(moved)
    return results


def unmoved(length: int, tokens: int) -> list[int]:
    """The greedy tokens of a request that never migrates: what every migrated one must say, too."""
    model = build()
    first, cache = prefilled(model, length)
    cache, last = copied(cache), first
    said: list[int] = []
    while len(said) < tokens:
        last = int(model([torch.tensor([last])], [cache]).argmax(-1))
        said.append(last)
    return said
