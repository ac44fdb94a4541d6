"""Live migration for real: a request leaves one serving engine for another, in another process, while it decodes.

The source decodes a batch, and a thread beside it copies blocks of the migrating request. The target allocates blocks
when it is asked, receives them, and goes on decoding. Three other ways to move stand beside it: a blocking copy,
recomputation, and a live copy on the thread that decodes.

A block is sent again when it has been written since. An append-only cache writes its last block only. One that moves
its tokens at every step writes all of them, and never gets done.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from common.models.decoder import Decoder, KVCache
from common.serving.live import Iteration
from common.serving.memory import blocks_of
from common.serving.sequence import Sequence
from common.serving.wall_clock import WallClock
from papers.llumnix.live_instance import BLOCK, MigratingInstance, gather, scatter, versions
from papers.llumnix.migration import Stages

SOURCE, TARGET = 0, 1  # ranks
SOURCE_BLOCKS = 4096  # of memory at the source: enough


class Message(NamedTuple):
    """What the source says before it copies.

    wanted: blocks to hold for the request, next to those held already. sent: numbers of the blocks that follow. text:
    all that the request has said, once it stands still; stored: tokens of it in the cache, 0 where none is sent.
    """

    wanted: int
    sent: list[int]
    text: list[int] | None = None
    stored: int = 0


@dataclass
class Moved:
    """How a migration went. tokens: of the request, by source and target together.

    gap: seconds between the last token at the source and the first at the target; -1 unless it really moved. steps:
    seconds of the source's iterations with the request in the batch and no migration beside them.
    """

    outcome: str
    tokens: list[int]
    stages: int
    stopped_blocks: int  # copied or computed while the request stood still
    said_meanwhile: int  # tokens of the request between the begin of its migration and its stop
    steps: list[float] = field(default_factory=list)
    gap: float = -1.0
    free_blocks: int = -1  # of the target, after everything


class Arrived(NamedTuple):
    """The target's side: tokens of the request there, when the first came out (monotonic clock), blocks free."""

    tokens: list[int]
    first_at: float
    free_blocks: int


class Source:
    """An instance that decodes a batch, and the migration of its first request beside it.

    method, stages: how it migrates. requests: tokens said so far, cache, and tokens still to say, of each. It decodes
    `steps` steps, then migrates and decodes until that is over, then as many steps more.
    """

    def __init__(
        self,
        model: Decoder,
        method: str,
        stages: Stages,
        requests: list[tuple[list[int], KVCache, int]],
        steps: int,
    ) -> None:
        self.method, self.stages, self.before = method, stages, steps
        self.loop = WallClock(time.monotonic)
        self.instance = MigratingInstance(self.loop, model, SOURCE_BLOCKS, self._step)
        batch = [
            (self.instance.request(tokens, cache.length, output), cache) for tokens, cache, output in requests
        ]
        self.migrating, self.cache = batch[0]
        self.said_before = len(requests[0][0])
        self.loop.post(lambda _: self.instance.at_boundary(partial(self._begin, batch)))
        self.seen = self.cache.data, versions(self.cache)  # of that cache, at the last look
        self.stopped_at = -1.0  # when the request left its batch, on the run's clock
        self.began = self.ended = float("inf")  # the migration, on the run's clock
        self.steps_left = steps
        self.copies = self.stopped_blocks = 0
        self.outcome = ""
        self.sent: dict[int, int] = {}  # block -> the version of it that was sent

    def _begin(self, batch: list[tuple[Sequence, KVCache]]) -> None:
        for sequence, cache in batch:
            held = blocks_of(cache.length, BLOCK)
            self.instance.take(held)
            self.instance.adopt(sequence, cache, held)

    def run(self) -> Moved:
        """Serve until the migration and the steps after it are over."""
        self.loop.run([], self.instance.enqueue)
        said = self.instance.tokens[self.migrating.index][self.said_before :]
        log = self.instance.log
        steps = [
            one.seconds
            for one in log
            if one.decodes == log[0].decodes  # later the request has left, and iterations are shorter
            and (one.start >= self.ended or one.start + one.seconds <= self.began)
        ]
        meanwhile = len(said) - self.before
        return Moved(self.outcome, said, self.copies, self.stopped_blocks, meanwhile, steps)

    def last_token_at(self) -> float:
        """When the request's last token here came out, on the machine's monotonic clock."""
        ends = map(end_of, self.instance.log)
        return began_at(self.loop) + max(end for end in ends if end <= self.stopped_at)

    def _step(self) -> None:
        """Between two iterations."""
        steps = len(self.instance.log)
        if steps == self.before:
            self.began = self.loop.clock()
        if self.method == "live on the decoding thread":
            if steps >= self.before and self.ended == float("inf") and not self._stage(self._look()):
                self.ended = self.loop.clock()
        elif steps == self.before:
            beside(self.loop, self._migrate)
        if self.ended < float("inf"):
            self.steps_left -= 1
            if self.steps_left < 0:
                for member in list(self.instance.slots[0].group.members):
                    self.instance.slots[0].stop_decoding(member)

    def _migrate(self) -> None:
        """The migration's thread, beside the decoding loop; it looks at the cache between two iterations."""
        looked: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        look = partial(self.instance.at_boundary, lambda: looked.put(self._look()))
        on_the_loop(self.loop, look)
        while self._stage(looked.get()):
            on_the_loop(self.loop, look)
        self.ended = on_the_loop(self.loop, self.loop.clock)

    def _look(self) -> list[int] | None:
        """The blocks to send next; where they are the last ones the request leaves its batch. None: it is finished."""
        if self.migrating.finish >= 0:
            return None
        self.seen = self.cache.data, versions(self.cache)
        dirty = [b for b, version in enumerate(self.seen[1]) if self.sent.get(b) != version]
        stops_at_once = self.method in ("blocking", "recompute")
        if stops_at_once or len(dirty) <= self.stages.last_stage_blocks:
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
        if self.copies == self.stages.max_stages:
            return self._abort("too many stages")
        dirty = dirty[:-1]  # the last one is being written
        return self._send(Message(self._unheld(dirty), dirty)) or self._abort("no room")

    def _hand_over(self, dirty: list[int]) -> bool:
        """The request has stopped: send the rest and commit, or take it back where the target has no room."""
        text = self.instance.tokens[self.migrating.index]
        if self.method == "recompute":
            self.stopped_blocks = blocks_of(len(text), BLOCK)
            moved = self._send(Message(self.stopped_blocks, [], text))
        else:
            self.stopped_blocks = len(dirty)
            moved = self._send(Message(self._unheld(dirty), dirty, text, self.cache.length))
        after = self.instance.gone if moved else self.instance.slots[0].start_decoding
        self.loop.post(lambda _: self.instance.at_boundary(partial(after, self.migrating)))
        if not moved:
            return self._abort("no room")
        self.outcome = "committed"
        return False

    def _unheld(self, blocks: list[int]) -> int:
        return sum(b not in self.sent for b in blocks)

    def _send(self, message: Message) -> bool:
        """Ask the target for room, and send the blocks if it has some; whether it had."""
        if not ask(message):
            return False
        if message.sent:
            data, version = self.seen
            self.sent |= {b: version[b] for b in message.sent}
            dist.send(gather(data, message.sent), TARGET)
        return True

    def _abort(self, why: str) -> bool:
        ask(None)
        self.outcome = why
        return False


class Target:
    """An instance that allocates blocks when it is asked; the request that arrives says `after` tokens more."""

    def __init__(self, model: Decoder, room: int, after: int) -> None:
        self.config, self.after = model.config, after
        self.loop = WallClock(time.monotonic)
        self.instance = MigratingInstance(self.loop, model, room, lambda: None)

    def serve(self) -> Arrived:
        """Answer the source until the migration is over, and decode what has arrived."""
        beside(self.loop, self._answer)
        self.loop.run([], self.instance.enqueue)
        free = self.instance.memory.free
        if not self.instance.tokens:
            return Arrived([], 0.0, free)
        first_at = began_at(self.loop) + end_of(self.instance.log[0])
        return Arrived(self.instance.tokens[0][-self.after :], first_at, free)

    def _answer(self) -> None:
        """The receiving thread, beside the decoding loop."""
        held = 0
        text: list[int] | None = None
        cache = KVCache(self.config, self.config.positions)
        while text is None:
            message = received()
            if message is None:  # the migration is off
                on_the_loop(self.loop, partial(self.instance.release, held))
                answer(True)
                return
            agreed = on_the_loop(self.loop, partial(self.instance.allocate, message.wanted))
            answer(agreed)
            if agreed:
                held += message.wanted
                text = message.text
                if message.sent:
                    shape = list(cache.data.shape)
                    shape[3] = len(message.sent) * BLOCK
                    blocks = torch.empty(shape)
                    dist.recv(blocks, SOURCE)
                    scatter(cache, message.sent, blocks)
                cache.length = message.stored
        on_the_loop(self.loop, partial(self._arrive, text, cache, held))

    def _arrive(self, text: list[int], cache: KVCache, held: int) -> None:
        """It decodes here from the next boundary on; without a cache it queues, with all that it said as its prompt."""
        if cache.length:
            request = self.instance.request(text, cache.length, self.after)
            self.instance.at_boundary(partial(self.instance.adopt, request, cache, held))
        else:
            self.instance.release(held)
            request = self.instance.request(text, len(text), self.after)
            request.context = 0
            self.instance.enqueue(request)


def beside(loop: WallClock, work: Callable[[], None]) -> None:
    """Do `work` on a thread beside a run, which lasts at least as long; what it raises is raised in the end."""

    def do() -> None:
        error = None
        try:
            work()
        except BaseException as raised:
            error = raised
        loop.post(over, error)

    def over(error: BaseException | None) -> None:
        loop.outside -= 1
        if error is not None:
            raise error

    loop.outside += 1
    threading.Thread(target=do, daemon=True).start()


def on_the_loop(loop: WallClock, call: Callable[[], Any]) -> Any:
    """From another thread: what `call()` answers on the thread of the run."""
    answered: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop.post(lambda _: answered.put(call()))
    return answered.get()


def ask(message: Message | None) -> bool:
    """Send the target a message and return its answer (whether it has room)."""
    dist.send_object_list([message], TARGET)
    agreed = torch.zeros(1, dtype=torch.bool)
    dist.recv(agreed, TARGET)
    return bool(agreed)


def received() -> Message | None:
    """The source's next message."""
    message: list[Message | None] = [None]
    dist.recv_object_list(message, SOURCE)
    return message[0]


def answer(agreed: bool) -> None:
    """Tell the source whether there is room."""
    dist.send(torch.tensor([agreed]), SOURCE)


def began_at(loop: WallClock) -> float:
    """When a run began, on the machine's monotonic clock, which all processes share."""
    return time.monotonic() - loop.clock()


def end_of(one: Iteration) -> float:
    """When an iteration ended, on the run's clock."""
    return one.start + one.seconds + one.copy_seconds
