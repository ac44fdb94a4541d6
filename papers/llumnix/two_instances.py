"""Live migration for real: a request moves between two processes while it decodes, its KV blocks crossing gloo.

Rank 0 is the source: one thread decodes a batch, another copies blocks of the migrating request meanwhile. Rank 1 is
the target: it allocates blocks from its pool when asked, receives them, and goes on decoding. Three other ways to move
stand beside it: a blocking copy, recomputation, and a live copy on the thread that decodes. Clients would see the
tokens of both ranks as one stream, so both stamp them with the machine's monotonic clock.

A cache counts when each block was written last; what was written since it was sent must be sent (again). An append-only
cache writes its last block only. One that moves its tokens at every step writes all of them, and never gets done.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from common.models.decoder import Decoder, DecoderConfig, KVCache
from papers.llumnix.migration import Stages

BLOCK = 16  # tokens
MODEL = DecoderConfig(hidden=256, layers=8, heads=4, intermediate=512, positions=4096)
WEIGHTS = 0  # seed of weights and prompts, the same in every process
COMPANIONS = (128, 192)  # prompt tokens of the other requests in the source's batch
METHODS = ("live", "blocking", "recompute", "live on the decoding thread")
ASK, LAST, RECOMPUTE, ABORT = range(4)  # messages of the source


@dataclass(frozen=True)
class Trial:
    """One migration to try.

    length: tokens stored when it is asked for. output: tokens after which the request is finished (before or after it
    moved). room: blocks of the target. append_only: False rewrites the whole cache at every step.
    """

    method: str
    length: int
    output: int = 400
    room: int = 1024
    append_only: bool = True
    stages: Stages = Stages()


@dataclass
class Moved:
    """What a trial gave. Seconds; gaps are -1 unless the request really moved.

    tokens: of the request, by source and target together. gap: between the last token at the source and the first at
    the target. downtime: from leaving the batch to the start of the first iteration over there. steps: seconds
    of the source's iterations while nothing was being copied; busy_steps: those that overlap the migration.
    """

    outcome: str
    tokens: list[int]
    stages: int
    gap: float = -1.0
    downtime: float = -1.0
    steps: list[float] = field(default_factory=list)
    busy_steps: list[float] = field(default_factory=list)
    free_blocks: int = -1  # of the target, after everything


def build() -> Decoder:
    """The same weights in every process."""
    return Decoder(MODEL, torch.Generator().manual_seed(WEIGHTS))


def prompt_of(length: int) -> torch.Tensor:
    """A random prompt of that length, the same in every process, int64 of shape (length,)."""
    generator = torch.Generator().manual_seed(WEIGHTS + length)
    return torch.randint(MODEL.vocab, (length,), generator=generator)


def prefilled(model: Decoder, length: int, capacity: int) -> tuple[int, KVCache]:
    """First token and cache of the prompt of that length."""
    cache = KVCache(MODEL, capacity)
    return int(model([prompt_of(length)], [cache]).argmax(-1)), cache


def copied(cache: KVCache) -> KVCache:
    """The same cache in other memory."""
    twin = KVCache(MODEL, cache.data.shape[3])
    twin.data[:, :, :, : cache.length] = cache.data[:, :, :, : cache.length]
    twin.length = cache.length
    return twin


class Request:
    """A decoding request: its cache, its last token, and when each of its blocks was written last."""

    def __init__(self, cache: KVCache, last: int, append_only: bool = True) -> None:
        self.cache, self.last, self.append_only = cache, last, append_only
        self.tokens: list[int] = []
        self.stamps: list[float] = []
        self.steps = 0
        self.written = [0] * blocks(cache.data.shape[3])  # step of the last write, a block

    def took(self, token: int) -> None:
        """A step is over: the cache has one more token, or has moved all of its tokens."""
        self.steps += 1
        self.tokens.append(token)
        self.stamps.append(time.monotonic())
        self.last = token
        if self.append_only:
            self.written[(self.cache.length - 1) // BLOCK] = self.steps
            return
        kept = self.cache.data[:, :, :, 1 : self.cache.length].clone()  # the oldest goes, everybody moves up
        self.cache.length -= 1
        self.cache.data[:, :, :, : self.cache.length] = kept
        self.written = [self.steps] * len(self.written)

    def dirty(self, sent: dict[int, int]) -> list[int]:
        """Blocks in use that were never sent or were written since."""
        return [b for b in range(blocks(self.cache.length)) if sent.get(b) != self.written[b]]


def blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


def gather(cache: KVCache, chosen: list[int]) -> torch.Tensor:
    """Chosen blocks in one contiguous buffer (block fusion), shape (layers, 2, heads, tokens, head_dim)."""
    index = torch.cat([torch.arange(b * BLOCK, (b + 1) * BLOCK) for b in chosen])
    return cache.data.index_select(3, index)


def decode(model: Decoder, batch: list[Request]) -> None:
    """One iteration of a batch."""
    logits = model([torch.tensor([one.last]) for one in batch], [one.cache for one in batch])
    for one, token in zip(batch, logits.argmax(-1).tolist(), strict=True):
        one.took(token)


def say(kind: int, *rest: int) -> bool:
    """Send the target a message and return its answer (whether it has room)."""
    dist.send(torch.tensor([kind, *rest, *[0] * (4 - len(rest))]), 1)
    answer = torch.zeros(1, dtype=torch.int64)
    dist.recv(answer, 1)
    return bool(answer)


class Source:
    """The source's side of one trial: a decoding loop, and the migration beside it.

    prompt: of the request, with its first token, int64 of shape (tokens,); what recomputation needs.
    """

    def __init__(
        self, model: Decoder, request: Request, prompt: torch.Tensor, companions: list[Request], trial: Trial
    ) -> None:
        self.model, self.request, self.prompt, self.trial = model, request, prompt, trial
        self.batch = [request, *companions]
        self.between: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # due at the next boundary
        self.done = threading.Event()  # the migration is over, one way or the other
        self.stopped_at = 0.0  # when the request left the batch
        self.copies = 0
        self.outcome = ""
        self.sent: dict[int, int] = {}  # block -> the version of it that was sent

    def run(self, before: int, after: int) -> Moved:
        """Decode `before` steps, then migrate and decode until that is over, then `after` steps more."""
        quiet = [self._step() for _ in range(before)]
        busy = []
        inline = self.trial.method == "live on the decoding thread"
        if not inline:
            threading.Thread(target=self._migrate, daemon=True).start()
        while not self.done.is_set():
            start = time.monotonic()
            if inline and not self._stage(self._look()):
                self.done.set()
            self._step()
            busy.append(time.monotonic() - start)
        quiet += [self._step() for _ in range(after)]
        return Moved(self.outcome, self.request.tokens, self.copies, steps=quiet, busy_steps=busy)

    def _step(self) -> float:
        """One iteration, and what is due between it and the next."""
        start = time.monotonic()
        decode(self.model, self.batch)
        if self._finished and self.request in self.batch:
            self.batch.remove(self.request)
        seconds = time.monotonic() - start
        while not self.between.empty():
            self.between.get()()
        return seconds

    @property
    def _finished(self) -> bool:
        return len(self.request.tokens) >= self.trial.output

    def _migrate(self) -> None:
        """The migration's thread, beside the decoding loop."""
        while self._stage(self._at_boundary()):
            pass
        self.done.set()

    def _at_boundary(self) -> list[int] | None:
        """What `_look` says when the decoding thread is between two iterations."""
        seen: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self.between.put(lambda: seen.put(self._look()))
        return seen.get()

    def _look(self) -> list[int] | None:
        """The blocks to send next; where they are the last ones the request leaves its batch. None: it is finished."""
        if self._finished:
            return None
        dirty = self.request.dirty(self.sent)
        stops_at_once = self.trial.method in ("blocking", "recompute")
        if stops_at_once or len(dirty) <= self.trial.stages.last_stage_blocks:
            self.batch.remove(self.request)
            self.stopped_at = time.monotonic()
        return dirty

    def _stage(self, dirty: list[int] | None) -> bool:
        """Copy dirty blocks; whether another stage follows."""
        if dirty is None:
            return self._abort("finished")
        self.copies += 1
        if self.stopped_at:
            return self._hand_over(dirty)
        if self.copies == self.trial.stages.max_stages:
            return self._abort("too many stages")
        dirty = dirty[:-1]  # the last one is being written
        if not say(ASK, sum(b not in self.sent for b in dirty), len(dirty)):
            return self._abort("no room")
        self._send(dirty)
        return True

    def _send(self, dirty: list[int]) -> None:
        self.sent |= {b: self.request.written[b] for b in dirty}
        dist.send(torch.tensor(dirty), 1)
        dist.send(gather(self.request.cache, dirty), 1)

    def _hand_over(self, dirty: list[int]) -> bool:
        """The request has stopped: send the rest and commit, or take it back where the target has no room."""
        request = self.request
        if self.trial.method == "recompute":
            stored = torch.cat([self.prompt, torch.tensor(request.tokens, dtype=torch.int64)])
            if say(RECOMPUTE, blocks(len(stored)), len(stored)):
                dist.send(stored, 1)
                self.outcome = "committed"
        elif say(
            LAST, sum(b not in self.sent for b in dirty), len(dirty), request.cache.length, request.last
        ):
            self._send(dirty)
            self.outcome = "committed"
        if not self.outcome:
            self.between.put(lambda: self.batch.append(request))
            self._abort("no room")
        return False

    def _abort(self, why: str) -> bool:
        say(ABORT)
        self.outcome = why
        return False


class Target:
    """The target's side: a pool of blocks, and the caches that arrive in it."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.free = 0

    def serve(self, room: int, after: int) -> tuple[Request | None, float]:
        """Answer the source until the migration is over: the request that came, with `after` tokens, and its start."""
        self.free = room
        held = 0
        cache = KVCache(MODEL, MODEL.positions)
        word = torch.zeros(5, dtype=torch.int64)
        while True:
            dist.recv(word, 0)
            kind, wanted, count, length, last = word.tolist()
            agreed = kind == ABORT or wanted <= self.free
            dist.send(torch.tensor([int(agreed)]), 0)
            if kind == ABORT:
                self.free += held
                return None, 0.0
            if not agreed:
                continue
            self.free -= wanted
            held += wanted
            if kind == RECOMPUTE:
                stored = torch.empty(count, dtype=torch.int64)
                dist.recv(stored, 0)
                began = time.monotonic()
                token = int(self.model([stored], [cache]).argmax(-1))
                request = Request(cache, token)
                request.took(token)
            else:
                index = torch.empty(count, dtype=torch.int64)
                dist.recv(index, 0)
                received = torch.empty(MODEL.layers, 2, MODEL.heads, count * BLOCK, MODEL.head_dim)
                dist.recv(received, 0)
                tokens = (index[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
                cache.data.index_copy_(3, tokens, received)
                if kind != LAST:
                    continue
                cache.length = length
                request = Request(cache, last)
                began = time.monotonic()
            while len(request.tokens) < after:
                decode(self.model, [request])
            self.free += held  # it is finished
            return request, began


def migrations(rank: int, world: int, trials: list[Trial], before: int, after: int) -> list[Moved]:
    """Run the trials one after another; results on rank 0. For common.distributed.launch.

    before, after: tokens of the request before the migration begins, and at the target once it has moved.
    """
    model = build()
    target = Target(model)
    made: dict[int, tuple[int, KVCache]] = {}
    results = []
    for trial in trials:
        dist.barrier()
        if rank == 1:
            request, began = target.serve(trial.room, after)
            tokens = request.tokens if request else []
            dist.send_object_list([(tokens, request.stamps[0] if request else 0.0, began, target.free)], 0)
            continue
        for length in (trial.length, *COMPANIONS):
            if length not in made:
                made[length] = prefilled(model, length, length + 512)
        first, cache = made[trial.length]
        request = Request(copied(cache), first, trial.append_only)
        companions = [Request(copied(made[n][1]), made[n][0]) for n in COMPANIONS]
        prompt = torch.cat([prompt_of(trial.length), torch.tensor([first])])
        source = Source(model, request, prompt, companions, trial)
        moved = source.run(before, before)
        answer: list[tuple[list[int], float, float, int]] = [([], 0.0, 0.0, 0)]
        dist.recv_object_list(answer, 1)
        tokens, stamp, began, moved.free_blocks = answer[0]
        if moved.outcome == "committed":
            moved.gap = stamp - request.stamps[-1]
            moved.downtime = began - source.stopped_at
            moved.tokens = request.tokens + tokens
        results.append(moved)
    return results


def unmoved(length: int, tokens: int) -> list[int]:
    """The greedy tokens of a request that never migrates: what every migrated one must say, too."""
    model = build()
    first, cache = prefilled(model, length, length + tokens + 1)
    request = Request(cache, first)
    while len(request.tokens) < tokens:
        decode(model, [request])
    return request.tokens
