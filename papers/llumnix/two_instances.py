"""Migrations to try between two processes, and what a request that stays says: a small decoder on a core each.

Rank 0 is the source of real_migration.py, rank 1 its target. Clients would see the tokens of both as one stream, so
both read the machine's monotonic clock.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from common.models.decoder import Decoder, DecoderConfig, KVCache
from papers.llumnix.config import METHODS
from papers.llumnix.live_instance import RewrittenCache
from papers.llumnix.migration import Stages
from papers.llumnix.real_migration import SOURCE, TARGET, Arrived, Moved, Source, Target

MODEL = DecoderConfig(hidden=256, layers=8, heads=4, intermediate=512, positions=4096)
WEIGHTS = 0  # seed of weights and prompts, the same in every process
COMPANIONS = (128, 192)  # prompt tokens of the other requests in the source's batch
SPARE = 512  # tokens that a request may grow by


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


def migrations(rank: int, world: int, trials: list[Trial], steps: int) -> list[Moved]:
    """Run the trials one after another; results on rank 0. For common.distributed.launch.

    steps: tokens of the request before the migration begins, and at the target once it has moved.
    """
    model = build()
    model([torch.zeros(2, dtype=torch.int64)], [KVCache(MODEL, 2)])  # the first batch would pay for set-up
    made: dict[int, tuple[list[int], KVCache]] = {}
    results = []
    for trial in trials:
        dist.barrier()
        if rank == TARGET:
            dist.send_object_list([Target(model, trial.room, steps).serve()], SOURCE)
            continue
        for length in (trial.length, *COMPANIONS):
            if length not in made:
                made[length] = prefilled(model, length)
        text, cache = made[trial.length]
        batch = [(list(text), copied(cache, trial.append_only), trial.output)]
        batch += [(list(made[length][0]), copied(made[length][1]), SPARE) for length in COMPANIONS]
        source = Source(model, trial.method, trial.stages, batch, steps)
        moved = source.run()
        there = [Arrived([], 0.0, 0)]
        dist.recv_object_list(there, TARGET)
        moved.free_blocks = there[0].free_blocks
        if moved.outcome == "committed":
            moved.gap = there[0].first_at - source.last_token_at()
            moved.tokens = moved.tokens + there[0].tokens
        results.append(moved)
    return results


def unmoved(length: int, tokens: int) -> list[int]:
    """The greedy tokens of a request that never migrates: what every migrated one must say, too."""
    model = build()
    text, cache = prefilled(model, length)
    cache = copied(cache)
    while len(text) <= length + tokens:
        text.append(int(model([torch.tensor(text[-1:])], [cache]).argmax(-1)))
    return text[length + 1 :]


def build() -> Decoder:
    """The same decoder in every process."""
    return Decoder(MODEL, torch.Generator().manual_seed(WEIGHTS))


def prefilled(model: Decoder, length: int) -> tuple[list[int], KVCache]:
    """A random prompt of that length, the same in every process, with the first token said; and its cache."""
    prompt = torch.randint(MODEL.vocab, (length,), generator=torch.Generator().manual_seed(WEIGHTS + length))
    cache = KVCache(MODEL, length)
    first = int(model([prompt], [cache]).argmax(-1))
    return [*prompt.tolist(), first], cache


def copied(cache: KVCache, append_only: bool = True) -> KVCache:
    """The same cache in other memory, with room to grow."""
    twin = (KVCache if append_only else RewrittenCache)(MODEL, cache.length + SPARE)
    twin.data[:, :, :, : cache.length] = cache.data[:, :, :, : cache.length]
    twin.length = cache.length
    return twin
