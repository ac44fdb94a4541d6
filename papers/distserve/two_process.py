"""Prefill and decode in two real processes: the run-time of the paper on a small decoder and two CPU cores.

Rank 0 prefills, first come, first served, up to `prefill_tokens` together; a prefilled cache waits in its memory.
Rank 1 decodes one continuous batch and *pulls* caches when it has room; keys and values cross gloo as tensors. The
colocated system is one process with vLLM's rule, prompts first. Both run the same model with one thread a process,
and greedy tokens do not depend on the system. Every iteration is logged with its shape and its seconds, so that a
simulator can be fitted to it (simulator_check.py).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import torch
import torch.distributed as dist

from common.models.decoder import Decoder, DecoderConfig, KVCache

MODEL = (
    DecoderConfig()
)  # 2.8 million parameters: a prompt of 128 tokens takes about ten milliseconds on one core
WEIGHTS = 0  # seed of the model's weights and of the prompts' tokens
SPIN = 2e-4  # seconds between two looks at the clock when there is nothing to do


@dataclass(frozen=True)
class Limits:
    """Batch limits and KV memory of each process, in tokens and sequences."""

    prefill_tokens: int = 256  # the paper's L_m
    max_sequences: int = 16  # of a decode batch
    kv_tokens: int = 4096  # of each process


@dataclass(frozen=True)
class Load:
    """Requests with arrival in seconds, prompt and output tokens; lists of equal length."""

    arrival: list[float]
    prompt: list[int]
    output: list[int]


@dataclass
class Served:
    """Clock times of each request, seconds since the start of the run, its tokens, and a log of iterations."""

    first_token: list[float]
    finish: list[float]
    tokens: list[list[int]] = field(default_factory=list)
    # What was timed on the way:
    prefills: list[tuple[tuple[int, ...], float]] = field(default_factory=list)  # prompt lengths, seconds
    decodes: list[tuple[tuple[int, int], float]] = field(
        default_factory=list
    )  # sequences and their context, seconds
    copies: list[tuple[int, float]] = field(
        default_factory=list
    )  # tokens, seconds from asking for the cache to holding it


def build_model() -> Decoder:
    """The same weights in every process."""
    return Decoder(MODEL, torch.Generator().manual_seed(WEIGHTS))


def prompt_tokens(index: int, length: int) -> torch.Tensor:
    """The tokens of a request's prompt, the same in every process, shape (length,)."""
    generator = torch.Generator().manual_seed(WEIGHTS + 1 + index)
    return torch.randint(MODEL.vocab, (length,), generator=generator)


def prefill(model: Decoder, prompts: list[torch.Tensor], room: list[int]) -> tuple[list[int], list[KVCache]]:
    """First token and cache of each prompt; `room` is how long each sequence may grow."""
    caches = [KVCache(MODEL, capacity) for capacity in room]
    return model(prompts, caches).argmax(-1).tolist(), caches


def decode(model: Decoder, last: list[int], caches: list[KVCache]) -> list[int]:
    """The next token of each sequence."""
    return model(list(torch.tensor(last).split(1)), caches).argmax(-1).tolist()


@dataclass
class _Running:
    index: int
    cache: KVCache
    tokens: list[int]


class _Decoding:
    """A continuous batch: one step gives every sequence a token and takes the finished ones out."""

    def __init__(self, model: Decoder, load: Load, served: Served, now: Callable[[], float]) -> None:
        self.model, self.load, self.served, self.now = model, load, served, now
        self.batch: list[_Running] = []
        self.finished = 0

    def join(self, index: int, cache: KVCache, first: int) -> None:
        self.batch.append(_Running(index, cache, [first]))

    def step(self) -> list[_Running]:
        """Decode once; the sequences that are done."""
        shape = (len(self.batch), sum(one.cache.length + 1 for one in self.batch))
        start = self.now()
        tokens = decode(self.model, [one.tokens[-1] for one in self.batch], [one.cache for one in self.batch])
        at = self.now()
        done = []
        for one, token in zip(self.batch, tokens, strict=True):
            one.tokens.append(token)
            if len(one.tokens) == self.load.output[one.index]:
                self.served.finish[one.index] = at
                self.served.tokens[one.index] = one.tokens
                done.append(one)
        self.batch = [one for one in self.batch if len(one.tokens) < self.load.output[one.index]]
        self.finished += len(done)
        self.served.decodes.append((shape, self.now() - start))
        return done


def _nothing_yet(load: Load, limits: Limits) -> Served:
    """What has been served before the first iteration. ValueError for a request that could never be served."""
    longest = max(prompt + output for prompt, output in zip(load.prompt, load.output, strict=True))
    if longest > limits.kv_tokens:
        raise ValueError(f"a request of {longest} tokens will never fit in a memory of {limits.kv_tokens}")
    n = len(load.arrival)
    return Served([-1.0] * n, [-1.0] * n, [[] for _ in range(n)])


def _clock(start: float) -> Callable[[], float]:
    return lambda: time.monotonic() - start


def serve_colocated(model: Decoder, load: Load, limits: Limits, start: float) -> Served:
    """Both phases in this process: waiting prompts run first and alone, else everybody decodes (vLLM's rule)."""
    served, now = _nothing_yet(load, limits), _clock(start)
    decoding = _Decoding(model, load, served, now)
    arriving = deque(range(len(load.arrival)))
    waiting: deque[int] = deque()
    held = answered = 0
    while answered < len(load.arrival):
        while arriving and load.arrival[arriving[0]] <= now():
            waiting.append(arriving.popleft())
        batch = _batch(
            waiting, load, limits, limits.kv_tokens - held, limits.max_sequences - len(decoding.batch)
        )
        if batch:
            start_of_batch = now()
            firsts, caches = prefill(model, *_inputs(batch, load))
            at = now()
            served.prefills.append((tuple(load.prompt[i] for i in batch), at - start_of_batch))
            for index, first, cache in zip(batch, firsts, caches, strict=True):
                served.first_token[index] = at
                if load.output[index] == 1:
                    served.finish[index], served.tokens[index] = at, [first]
                    answered += 1
                else:
                    held += _total(load, index)
                    decoding.join(index, cache, first)
        elif decoding.batch:
            done = decoding.step()
            held -= sum(_total(load, one.index) for one in done)
            answered += len(done)
        else:
            time.sleep(SPIN)
    return served


def _total(load: Load, index: int) -> int:
    return load.prompt[index] + load.output[index]


def _inputs(batch: list[int], load: Load) -> tuple[list[torch.Tensor], list[int]]:
    return [prompt_tokens(i, load.prompt[i]) for i in batch], [_total(load, i) for i in batch]


def _batch(waiting: deque[int], load: Load, limits: Limits, room: int, sequences: int) -> list[int]:
    """Prompts to run together, first come, first served: up to L_m tokens, or one longer prompt alone."""
    batch: list[int] = []
    tokens = 0
    while waiting and len(batch) < sequences:
        index = waiting[0]
        if (batch and tokens + load.prompt[index] > limits.prefill_tokens) or _total(load, index) > room:
            break
        room -= _total(load, index)
        tokens += load.prompt[index]
        batch.append(waiting.popleft())
    return batch


class Channels:
    """Three one-way lanes between the two ranks, so that threads of either side never mix their messages."""

    def __init__(self) -> None:
        self.announce, self.ask, self.caches = (dist.new_group([0, 1]) for _ in range(3))


STOP = -1  # in place of a request's index


class _Memory:
    """Free KV memory of a process, in tokens; threads take and give it back."""

    def __init__(self, tokens: int) -> None:
        self.free = tokens
        self._given = threading.Condition()

    def take(self, tokens: int) -> None:
        """Waits until there are so many."""
        with self._given:
            self._given.wait_for(lambda: self.free >= tokens)
            self.free -= tokens

    def give(self, tokens: int) -> None:
        with self._given:
            self.free += tokens
            self._given.notify()


class Beside:
    """A thread that works beside this one; what it raises is raised here."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._thread.join()
        self.check()


def serve_prefill(model: Decoder, load: Load, limits: Limits, start: float, channels: Channels) -> Served:
    """The prefill process. Caches stay here until the other process asks for them; a full memory stops prefilling."""
    served, now = _nothing_yet(load, limits), _clock(start)
    kept: dict[int, KVCache] = {}
    memory = _Memory(limits.kv_tokens)

    def answer() -> None:
        wish = torch.zeros(1, dtype=torch.int64)
        while True:
            dist.recv(wish, 1, channels.ask)
            index = int(wish)
            if index == STOP:
                return
            dist.send(kept[index].stored(), 1, channels.caches)
            del kept[index]
            memory.give(load.prompt[index])

    answering = Beside(answer)
    announced = []  # sends under way, with what they send
    arriving = deque(range(len(load.arrival)))
    waiting: deque[int] = deque()
    while arriving or waiting:
        while arriving and load.arrival[arriving[0]] <= now():
            waiting.append(arriving.popleft())
        batch = _batch_of_prompts(waiting, load, limits, memory.free)
        if not batch:
            answering.check()
            time.sleep(SPIN)
            continue
        start_of_batch = now()
        lengths = [load.prompt[i] for i in batch]
        firsts, caches = prefill(model, [prompt_tokens(i, load.prompt[i]) for i in batch], lengths)
        at = now()
        for index, first, cache in zip(batch, firsts, caches, strict=True):
            served.first_token[index] = at
            if load.output[index] == 1:
                served.finish[index], served.tokens[index] = at, [first]
                continue
            kept[index] = cache
            memory.take(load.prompt[index])
            word = torch.tensor([index, first])
            announced.append((word, dist.isend(word, 1, channels.announce)))
        served.prefills.append((tuple(lengths), now() - start_of_batch))
    for _, sent in announced:
        if sent:
            sent.wait()
    dist.send(torch.tensor([STOP, STOP]), 1, channels.announce)
    answering.end()
    return served


def _batch_of_prompts(waiting: deque[int], load: Load, limits: Limits, room: int) -> list[int]:
    prompts_only = Load(load.arrival, load.prompt, [0] * len(load.prompt))
    return _batch(waiting, prompts_only, limits, room, len(load.prompt))


def serve_decode(model: Decoder, load: Load, limits: Limits, start: float, channels: Channels) -> Served:
    """The decode process: pulls announced caches as soon as they fit, one by one, and decodes everything it holds."""
    served, now = _nothing_yet(load, limits), _clock(start)
    decoding = _Decoding(model, load, served, now)
    announced: SimpleQueue[tuple[int, int]] = SimpleQueue()
    pulled: deque[tuple[int, int, KVCache]] = deque()
    memory = _Memory(limits.kv_tokens)  # reserved for whole sequences

    def listen() -> None:
        word = torch.zeros(2, dtype=torch.int64)
        while int(word[0]) != STOP:
            dist.recv(word, 0, channels.announce)
            announced.put((int(word[0]), int(word[1])))

    def pull() -> None:
        while True:
            index, first = announced.get()
            word = torch.tensor([index])
            if index == STOP:
                dist.send(word, 0, channels.ask)
                return
            total = _total(load, index)
            memory.take(total)
            asked = now()
            dist.send(word, 0, channels.ask)
            stored = torch.empty(MODEL.layers, 2, MODEL.heads, load.prompt[index], MODEL.head_dim)
            dist.recv(stored, 0, channels.caches)
            pulled.append((index, first, KVCache.received(MODEL, stored, total)))
            served.copies.append((load.prompt[index], now() - asked))

    threads = Beside(listen), Beside(pull)
    expected = sum(output > 1 for output in load.output)
    while decoding.finished < expected:
        while pulled and len(decoding.batch) < limits.max_sequences:
            index, first, cache = pulled.popleft()
            decoding.join(index, cache, first)
        if decoding.batch:
            for one in decoding.step():
                memory.give(_total(load, one.index))
        else:
            for thread in threads:
                thread.check()
            time.sleep(SPIN)
    for thread in threads:
        thread.end()
    return served


REPEATS = 9


def time_prefill(model: Decoder, lengths: tuple[int, ...]) -> float:
    """Median processor seconds of prefilling prompts of these lengths together."""

    def once() -> None:
        prefill(model, [prompt_tokens(0, length) for length in lengths], list(lengths))

    return _median(once)


def time_decode(model: Decoder, n: int, context: int) -> float:
    """Median processor seconds of a decode iteration of `n` sequences of `context` tokens."""
    load = Load([0.0] * n, [context] * n, [REPEATS + 10] * n)
    decoding = _Decoding(model, load, _nothing_yet(load, Limits(kv_tokens=n * MODEL.positions)), _clock(0.0))
    for index in range(n):
        cache = KVCache(MODEL, context + REPEATS + 2)
        cache.length = context
        decoding.join(index, cache, 0)
    return _median(decoding.step)


def _median(work: Callable[[], object]) -> float:
    """Processor seconds of this thread: what the work takes when nobody else wants the core."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return float(np.median(seconds))
