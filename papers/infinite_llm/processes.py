"""One sequence's keys and values in several real processes: three ways to attend to all of them, with bytes counted.

Rank 0 owns the request. The others lend memory and hold a part of the sequence each (rank 0 has one too):

    dist     the query goes to every holder, a partial result comes back (DistAttention)
    ring     parts travel around a ring of all processes, one hop a round; the owner attends to what passes by (its
             query is the only one, so that the others have nothing to compute)
    fetch    every remote part is copied to the owner at every step

Bytes are the sizes of the tensors that rank 0 and its peers really pass to gloo.

Borrowers also ask one creditor at once, from a ledger that is out of date (`lend_concurrently`): the creditor is the
last to decide, one message after another, so it never promises more than it has, and nobody waits for who waits.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from papers.infinite_llm.dist_attention import attend_part, average, cut, merge, packed, unpacked
from papers.infinite_llm.ledger import Refused, RManager, audit

METHODS = ("dist", "ring", "fetch")
WARM_UP, REPEATS = 1, 5
ASK, REPAY, DONE = range(3)


@dataclass(frozen=True)
class Shape:
    """Attention of one layer for one decode step."""

    heads: int
    kv_heads: int
    head_dim: int
    tokens: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Step:
    """What one decode step took, as rank 0 saw it: median seconds, and bytes sent by all processes a step."""

    seconds: float
    sent: int
    error: float  # largest difference to attention in one place


class Counted:
    """gloo's point-to-point calls with a count of the bytes that this process sends."""

    def __init__(self) -> None:
        self.bytes = 0

    def send(self, tensor: Tensor, to: int) -> None:
        self.bytes += tensor.numel() * tensor.element_size()
        dist.send(tensor.contiguous(), to)

    def isend(self, tensor: Tensor, to: int) -> dist.Work | None:
        self.bytes += tensor.numel() * tensor.element_size()
        return dist.isend(tensor.contiguous(), to)

    @staticmethod
    def receive(like: Tensor, source: int) -> Tensor:
        dist.recv(like, source)
        return like


def sequence_of(shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, keys and values, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, shape.dtype)
    query = torch.randn(shape.heads, shape.head_dim, generator=generator).to(dtype)
    keys, values = torch.randn(2, shape.kv_heads, shape.tokens, shape.head_dim, generator=generator).to(dtype)
    return query, keys, values


def attention_steps(
    rank: int, world: int, shapes: Sequence[Shape], methods: Sequence[str], seed: int, merging: bool = True
) -> list[dict[str, Step]]:
    """What every process does, for common.distributed.launch; rank 0 answers a Step a shape and method.

    merging: False averages the parts instead, which is wrong.
    """
    answers = []
    for shape in shapes:
        query, keys, values = sequence_of(shape, seed)
        lengths = cut(shape.tokens, world)
        first = sum(lengths[:rank])
        mine = torch.stack([keys, values])[:, :, first : first + lengths[rank]].contiguous()
        truth = merge([attend_part(query.double(), keys.double(), values.double())])
        found = {}
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        sent_by, results = {}, {}
        for turn in range(WARM_UP + REPEATS):
            for method in (*methods, *reversed(methods)):  # A B B A: no method has the quieter half
                wire = Counted()
                dist.barrier()
                start = time.perf_counter()
                result = STEPS[method](rank, world, query, mine, lengths, wire, merging)
                if turn >= WARM_UP:
                    seconds[method].append(time.perf_counter() - start)
                sent_by[method], results[method] = wire.bytes, result
        for method in methods:
            sent, result = torch.tensor([sent_by[method]]), results[method]
            dist.all_reduce(sent)
            if rank == 0:
                assert result is not None
                error = float((result.double() - truth).abs().max())
                found[method] = Step(sorted(seconds[method])[len(seconds[method]) // 2], int(sent), error)
        answers.append(found)
    return answers


def in_turn(rank: int, world: int, tasks: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Several functions for common.distributed.launch, one after another in the same processes; their answers."""
    answers = []
    for function, arguments in tasks:
        dist.barrier()
        answers.append(function(rank, world, *arguments))
    return answers


def dist_step(
    rank: int, world: int, query: Tensor, mine: Tensor, lengths: list[int], wire: Counted, merging: bool
) -> Tensor | None:
    """DistAttention: the holders know nothing but their part; they get the query."""
    if rank:
        asked = Counted.receive(torch.empty_like(query), 0)
        wire.send(packed(attend_part(asked, mine[0], mine[1])), 0)
        return None
    sends = [wire.isend(query, other) for other in range(1, world)]
    parts = [attend_part(query, mine[0], mine[1])]
    wide = parts[0].weighted.dtype
    for other in range(1, world):
        parts.append(
            unpacked(Counted.receive(torch.empty(len(query), query.shape[1] + 2, dtype=wide), other))
        )
    for work in sends:
        if work is not None:
            work.wait()
    return merge(parts) if merging else average(parts)


def ring_step(
    rank: int, world: int, query: Tensor, mine: Tensor, lengths: list[int], wire: Counted, merging: bool
) -> Tensor | None:
    """Ring attention: after world - 1 hops every process has had every part."""
    part, parts = mine, [] if rank else [attend_part(query, mine[0], mine[1])]
    for hop in range(1, world):
        sending = wire.isend(part, (rank + 1) % world)
        holder = (rank - hop) % world
        part = Counted.receive(_empty_part(mine, lengths[holder]), (rank - 1) % world)
        if sending is not None:
            sending.wait()
        if not rank:
            parts.append(attend_part(query, part[0], part[1]))
    if rank:
        return None
    return merge(parts) if merging else average(parts)


def fetch_step(
    rank: int, world: int, query: Tensor, mine: Tensor, lengths: list[int], wire: Counted, merging: bool
) -> Tensor | None:
    """Remote keys and values come to the owner, which attends in one go."""
    if rank:
        wire.send(mine, 0)
        return None
    remote = [Counted.receive(_empty_part(mine, lengths[other]), other) for other in range(1, world)]
    whole = torch.cat([mine, *remote], dim=2)
    return merge([attend_part(query, whole[0], whole[1])])


STEPS = {"dist": dist_step, "ring": ring_step, "fetch": fetch_step}


def _empty_part(like: Tensor, tokens: int) -> Tensor:
    return torch.empty(2, like.shape[1], tokens, like.shape[3], dtype=like.dtype)


def lend_concurrently(
    rank: int, world: int, blocks: int, requests: int, seed: int, refuses: bool = True
) -> tuple[int, int, int] | tuple[int, int]:
    """Rank 0 has `blocks` to lend; every other rank asks `requests` times for up to half of what it heard once.

    Rank 0 answers (most lent at once, granted, refused), the others (granted, refused). For common.distributed.launch.
    refuses: False makes a creditor that believes the ledger and grants whatever is asked.
    """
    if rank:
        return _borrower(rank, blocks, requests, random.Random(seed * 1000 + rank))
    manager = RManager(0, blocks if refuses else blocks * requests * world)
    peers = {name: RManager(name, 0) for name in range(1, world)}
    word = torch.zeros(2, dtype=torch.int64)
    most = granted = refused = 0
    working = world - 1
    while working:
        name = dist.recv(word)
        assert name is not None
        kind, wanted = word.tolist()
        if kind == DONE:
            working -= 1
            continue
        if kind == REPAY:
            manager.settled(name, wanted, as_debtor=False)
            peers[name].settled(0, wanted, as_debtor=True)
            continue
        try:
            manager.lend(name, wanted)
            peers[name].took(0, wanted)
            agreed, granted = 1, granted + 1
        except Refused:
            agreed, refused = 0, refused + 1
        most = max(most, sum(manager.lent.values()))
        audit([manager, *peers.values()])
        dist.send(torch.tensor([agreed]), name)
    assert not manager.lent, "a loan is left over"
    return most, granted, refused


def _borrower(rank: int, heard: int, requests: int, rng: random.Random) -> tuple[int, int]:
    """heard: what the ledger said was free, at the start and never again."""
    held: list[int] = []
    granted = 0
    answer = torch.zeros(1, dtype=torch.int64)
    for _ in range(requests):
        wanted = rng.randint(1, max(1, heard // 2))
        dist.send(torch.tensor([ASK, wanted]), 0)
        dist.recv(answer, 0)
        if int(answer):
            held.append(wanted)
            granted += 1
        if held and rng.random() < 0.5:
            dist.send(torch.tensor([REPAY, held.pop()]), 0)
    for wanted in held:
        dist.send(torch.tensor([REPAY, wanted]), 0)
    dist.send(torch.tensor([DONE, 0]), 0)
    return granted, requests - granted
