"""One sequence's keys and values in several real processes: three ways to attend to all of them, with bytes counted.

Rank 0 owns the request. The others lend memory and hold a part of the sequence each (rank 0 has one too):

    dist     the query goes to every holder, a partial result comes back (DistAttention)
    ring     parts travel around a ring of all processes, one hop a round; the owner attends to what passes by (its
             query is the only one, so that the others have nothing to compute)
    fetch    every remote part is copied to the owner at every step

Bytes are the sizes of the tensors that rank 0 and its peers really pass to gloo.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from papers.infinite_llm.dist_attention import attend_part, average, cut, merge, packed, unpacked

METHODS = ("dist", "ring", "fetch")
WARM_UP, REPEATS = 1, 5


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
        for method in methods:
            wire = Counted()
            seconds = []
            for turn in range(WARM_UP + REPEATS):
                wire.bytes = 0
                dist.barrier()
                start = time.perf_counter()
                result = STEPS[method](rank, world, query, mine, lengths, wire, merging)
                if turn >= WARM_UP:
                    seconds.append(time.perf_counter() - start)
            sent = torch.tensor([wire.bytes])
            dist.all_reduce(sent)
            if rank == 0:
                assert result is not None
                error = float((result.double() - truth).abs().max())
                found[method] = Step(sorted(seconds)[len(seconds) // 2], int(sent), error)
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


def bytes_of(method: str, shape: Shape, world: int) -> int:
    """Bytes that all processes send in a step, in closed form; what is counted must equal it."""
    size = torch.empty(0, dtype=getattr(torch, shape.dtype)).element_size()
    wide = max(size, 4)
    kv_token = 2 * shape.kv_heads * shape.head_dim * size
    lengths = cut(shape.tokens, world)
    if method == "dist":
        return (world - 1) * shape.heads * (shape.head_dim * size + (shape.head_dim + 2) * wide)
    if method == "ring":  # every part makes world - 1 hops
        return (world - 1) * shape.tokens * kv_token
    if method == "fetch":
        return sum(lengths[1:]) * kv_token
    raise KeyError(f"no method {method!r}; there is {', '.join(METHODS)}")
