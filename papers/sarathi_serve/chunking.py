"""Real chunked prefill on the CPU: that it computes the same as one shot.

Each chunk attends to the keys and values that earlier chunks stored and, causally, to itself (Section 4.1). The model
is the small decoder of common/models with random weights, in float32 on one thread.
"""

import math

import torch
from torch import Tensor

from common.models.decoder import Decoder, DecoderConfig, KVCache

SMALL = DecoderConfig(vocab=512, hidden=128, layers=4, heads=4, intermediate=352, positions=4096)
TINY = DecoderConfig(vocab=256, hidden=64, layers=2, heads=4, intermediate=128, positions=1024)


def prefill(model: Decoder, tokens: Tensor, chunk: int, keeps_past: bool = True) -> tuple[Tensor, Tensor]:
    """Prefill a prompt, shape (n,), in chunks. Logits after its last token, (vocab,), and the stored keys and values.

    keeps_past=False is a wrong engine: each chunk sees itself alone. Raises ValueError for no token and for chunks
    of none.
    """
    if tokens.ndim != 1 or not len(tokens) or chunk < 1:
        raise ValueError(f"a prompt of shape {tuple(tokens.shape)} in chunks of {chunk}: (n,) and 1 or more")
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
