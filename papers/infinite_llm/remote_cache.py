"""A real decoder whose KV cache lies mostly in other processes; its greedy tokens must not change.

The owner prefills, moves the oldest tokens of the sequence to the holders (the newest stay: they are what it writes),
and decodes. At every layer the query goes out and partial results come back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from common.models.decoder import Decoder, DecoderConfig, KVCache
from papers.infinite_llm.dist_attention import attend_part, average, cut, merge, packed, unpacked

MODEL = DecoderConfig(vocab=512, hidden=256, layers=4, heads=8, intermediate=512, positions=2048, kv_heads=2)
STOP = -1


@dataclass(frozen=True)
class Served:
    """Tokens of a request with its whole cache here and with most of it elsewhere, and how many tokens were remote."""

    local: list[int]
    remote: list[int]
    moved: int


class SharedCache:
    """See decoder.Cache and decoder.AttendingCache. The newest tokens are in `here`, older ones at the holders."""

    def __init__(self, here: KVCache, moved: int, holders: Sequence[int], merging: bool) -> None:
        self.here = here
        self.moved = moved
        self.holders = holders
        self.merging = merging

    @property
    def length(self) -> int:
        """All tokens, wherever they are: what positions count."""
        return self.moved + self.here.length

    @property
    def capacity(self) -> int:
        return self.moved + self.here.capacity

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See AttendingCache; one new token at a time."""
        if queries.shape[1] != 1:
            raise ValueError("a shared cache takes one token at a time; prefill before sharing it")
        query = queries[:, 0].contiguous()
        word = torch.tensor([layer])
        for holder in self.holders:
            dist.send(word, holder)
            dist.send(query, holder)
        parts = [attend_part(query, *self.here.append(layer, keys, values))]
        for holder in self.holders:
            sent = torch.empty(query.shape[0], query.shape[1] + 2)
            dist.recv(sent, holder)
            parts.append(unpacked(sent))
        found = merge(parts) if self.merging else average(parts)
        return found.to(queries.dtype)[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("not all keys and values are here")

    def advance(self, new: int) -> None:
        self.here.advance(new)

    def release(self) -> None:
        """Tell the holders that the request is over."""
        for holder in self.holders:
            dist.send(torch.tensor([STOP]), holder)
        self.here.release()


def share(
    cache: KVCache, config: DecoderConfig, moved: int, holders: Sequence[int], merging: bool
) -> SharedCache:
    """Move the oldest `moved` tokens to the holders, unevenly."""
    lengths = cut(moved, len(holders))
    first = 0
    for holder, length in zip(holders, lengths, strict=True):
        dist.send(torch.tensor([length]), holder)
        dist.send(cache.data[:, :, :, first : first + length].contiguous(), holder)
        first += length
    here = KVCache(config, cache.capacity - moved)
    here.length = cache.length - moved
    here.data[:, :, :, : here.length] = cache.data[:, :, :, moved : cache.length]
    return SharedCache(here, moved, holders, merging)


def hold(config: DecoderConfig) -> None:
    """What a holder does: keep a part, and attend to it for whoever asks, until the request is over."""
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, 0)
    part = torch.empty(config.layers, 2, config.groups, int(length), config.head_dim)
    dist.recv(part, 0)
    word = torch.zeros(1, dtype=torch.int64)
    query = torch.empty(config.heads, config.head_dim)
    while True:
        dist.recv(word, 0)
        if int(word) == STOP:
            return
        dist.recv(query, 0)
        keys, values = part[int(word)]
        dist.send(packed(attend_part(query, keys, values)), 0)


def serve_shared(
    rank: int, world: int, prompt: int, output: int, remote: float, seed: int, merging: bool = True
) -> Served | None:
    """Decode `output` tokens twice on rank 0, with the cache here and with a share `remote` of the prompt elsewhere.

    For common.distributed.launch. merging: False averages partial results, which is wrong.
    """
    if rank:
        hold(MODEL)
        return None
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(MODEL, generator)
    tokens = torch.randint(MODEL.vocab, (prompt,), generator=generator)
    answers = []
    moved = round(remote * prompt)
    for shared in (False, True):
        cache = KVCache(MODEL, prompt + output)
        last = int(model([tokens], [cache]).argmax(-1))
        using = share(cache, MODEL, moved, range(1, world), merging) if shared else cache
        answer = [last]
        while len(answer) < output:
            answer.append(int(model([torch.tensor(answer[-1:])], [using]).argmax(-1)))
        using.release()
        answers.append(answer)
    return Served(answers[0], answers[1], moved)
