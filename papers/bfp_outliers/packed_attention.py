"""Decode attention over a packed cache at the size of a large model, in plain torch: bytes and seconds.

On a GPU this unpacks to registers' worth of memory and multiplies, without a kernel of its own: it shows that order
costs nothing and what bytes are saved, not how fast a fused kernel would be.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from papers.bfp_outliers.packed_rows import BlockRows


@dataclass(frozen=True)
class Shape:
    """Attention of one token: Llama-2-7B has 32 heads and as many KV heads, 128 channels each."""

    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128


@dataclass(frozen=True)
class Measured:
    """Seconds of one step by way, and bytes of the keys by format."""

    seconds: dict[str, list[float]]
    key_bytes: dict[str, int]


@torch.inference_mode()
def measure(shape: Shape, tokens: int, code: BlockRows, rounds: int, generator: torch.Generator) -> Measured:
    """One token's attention over `tokens` cached ones, in turns: FP16 keys; packed in the original and in sorted order;
    packed in sorted order with keys put back into the original one when read.

    Channels' magnitudes are lognormal, so that sorting has something to sort. The device is the generator's.
    """
    device = generator.device
    kv = (shape.kv_heads, tokens, shape.head_dim)
    wide = torch.float16 if device.type == "cuda" else torch.float32
    sizes = torch.randn(shape.kv_heads, 1, shape.head_dim, generator=generator, device=device).exp()
    keys = torch.randn(kv, generator=generator, device=device) * sizes
    values = torch.randn(kv, generator=generator, device=device).to(wide)
    queries = torch.randn(shape.heads, 1, shape.head_dim, generator=generator, device=device).to(wide)
    order = sizes.argsort(dim=-1)
    place = order.argsort(dim=-1)
    repeats = shape.heads // shape.kv_heads
    sorted_queries = queries.gather(-1, order.repeat_interleave(repeats, dim=0))
    plain, half = code.encode(keys), keys.to(torch.float16)
    packed = code.encode(keys.gather(-1, order.expand(kv)))
    wide_code = BlockRows(8, code.block).encode(keys)
    ways: dict[str, Callable[[], Tensor]] = {
        "fp16": lambda: attend(queries, half.to(wide), values),
        "original": lambda: attend(queries, code.decode(plain).to(wide), values),
        "sorted": lambda: attend(sorted_queries, code.decode(packed).to(wide), values),
        "gathered": lambda: attend(
            queries, code.decode(packed).gather(-1, place.expand(kv)).to(wide), values
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = _seconds(ways[name], device)
            if turn:
                seconds[name].append(took)
    stored = {"fp16": (half,), "bfp": packed, "bfp16": wide_code}
    return Measured(seconds, {name: sum(part.nbytes for part in parts) for name, parts in stored.items()})


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q . k / sqrt(d)) v of one token: queries (heads, 1, d), keys and values (KV heads, tokens, d)."""
    return torch.nn.functional.scaled_dot_product_attention(
        queries[None], keys[None], values[None], enable_gqa=len(queries) != len(keys)
    )[0]


def time_ratio(measured: Measured, ours: str, theirs: str) -> float:
    """Median over paired steps of one way's seconds over another's."""
    return median(a / b for a, b in zip(measured.seconds[ours], measured.seconds[theirs], strict=True))


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
