"""Real chunked prefill on the CPU: that it computes the same, what it costs, and what decodes cost beside it.

Each chunk attends to the keys and values that earlier chunks stored and, causally, to itself (Section 4.1). The model
is the small decoder of common/models with random weights, in float32 on one thread.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from common.models.decoder import Decoder, DecoderConfig, KVCache

SMALL = DecoderConfig(vocab=512, hidden=256, layers=4, heads=4, intermediate=704, positions=4096)
TINY = DecoderConfig(vocab=256, hidden=64, layers=2, heads=4, intermediate=128, positions=1024)
WARM_UP, REPEATS = 1, 3


def prefill(model: Decoder, tokens: Tensor, chunk: int, keeps_past: bool = True) -> tuple[Tensor, Tensor]:
    """Prefill a prompt, shape (n,), in chunks. Logits after its last token, (vocab,), and the stored keys and values.

    keeps_past=False is a wrong engine: each chunk sees itself alone.
    """
    cache = KVCache(model.config, len(tokens))
    stored = []
    for piece in tokens.split(chunk):
        if not keeps_past:
            cache = KVCache(model.config, len(tokens))
        before = cache.length
        logits = model([piece], [cache])[0]
        stored.append(cache.data[:, :, :, before : cache.length])
    return logits, torch.cat(stored, dim=3)


def chunking_error(model: Decoder, tokens: Tensor, chunk: int, keeps_past: bool = True) -> float:
    """The largest difference to one-shot prefill, over the logits and all stored keys and values.

    Raises ValueError where any of them is no finite number.
    """
    whole = prefill(model, tokens, len(tokens))
    parts = prefill(model, tokens, chunk, keeps_past)
    differences = [float((a - b).abs().max()) for a, b in zip(whole, parts, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError(f"prefill in chunks of {chunk} tokens gives numbers that are not finite")
    return max(differences)


def chunking_overheads(model: Decoder, tokens: Tensor, chunks: list[int]) -> dict[int, float]:
    """Seconds of prefill by chunk size over those of one shot; the fastest of several turns each."""
    sizes = [len(tokens), *chunks]
    whole, *parts = _fastest([lambda size=size: prefill(model, tokens, size) for size in sizes])  # type: ignore[misc]
    return {chunk: seconds / whole for chunk, seconds in zip(chunks, parts, strict=True)}


class HybridSeconds(NamedTuple):
    """Seconds of an iteration with the same decodes alone, beside a whole prompt, and beside a chunk of one."""

    decodes: float
    with_prompt: float
    with_chunk: float


def hybrid_seconds(
    model: Decoder, generator: torch.Generator, decodes: int, context: int, prompt: int, chunk: int
) -> HybridSeconds:
    """Time `decodes` sequences of `context` tokens that gain one, alone and with prompt tokens beside them."""
    vocabulary = model.config.vocab
    caches = [KVCache(model.config, context + 1) for _ in range(decodes)]
    for cache in caches:
        cache.data.normal_(generator=generator)
    ones = [torch.randint(vocabulary, (1,), generator=generator) for _ in caches]
    tokens = torch.randint(vocabulary, (max(prompt, chunk),), generator=generator)

    def iterate(new: int) -> None:
        for cache in caches:
            cache.length = context
        beside = [KVCache(model.config, new)] if new else []
        model([*ones, *([tokens[:new]] if new else [])], [*caches, *beside])

    return HybridSeconds(*_fastest([lambda new=new: iterate(new) for new in (0, prompt, chunk)]))  # type: ignore[misc]


def _fastest(actions: list[Callable[[], object]]) -> list[float]:
    """The least seconds of each action over several turns, in which they alternate."""
    best = [float("inf")] * len(actions)
    for turn in range(WARM_UP + REPEATS):
        for place, action in enumerate(actions):
            start = time.perf_counter()
            action()
            if turn >= WARM_UP:
                best[place] = min(best[place], time.perf_counter() - start)
    return best
