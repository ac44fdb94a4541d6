"""Contiguous against paged attention on a GPU: FlashAttention-2's own kernels, with and without its block table."""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

BLOCK_TOKENS = 256  # the smallest block that FlashAttention-2's paged kernel takes


def paged_over_contiguous(
    batch: int, new: int, context: int, heads: int, kv_heads: int, dim: int, block_tokens: int = BLOCK_TOKENS
) -> float:
    """Seconds of the paged kernel over the contiguous one, fp16; `new` queries at the end of each context.

    ModuleNotFoundError without flash-attn.
    """
    kernel = import_module("flash_attn").flash_attn_with_kvcache
    place: Any = {"device": "cuda", "dtype": torch.float16}
    keys, values = (torch.randn(batch, context, kv_heads, dim, **place) for _ in range(2))
    queries = torch.randn(batch, new, heads, dim, **place)
    blocks = context // block_tokens
    table = torch.randperm(batch * blocks, device="cuda").view(batch, blocks)
    pools = []
    for one in (keys, values):
        pool = torch.empty(batch * blocks, block_tokens, kv_heads, dim, **place)
        pool[table.flatten()] = one.view_as(pool)
        pools.append(pool)
    lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    table = table.int()

    def contiguous() -> None:
        kernel(queries, keys, values, cache_seqlens=lengths, causal=True)

    def paged() -> None:
        kernel(queries, *pools, cache_seqlens=lengths, block_table=table, causal=True)

    first, second, third, fourth = map(_seconds, (contiguous, paged, paged, contiguous))  # in turn
    return (second + third) / (first + fourth)


def _seconds(run: Callable[[], None], rounds: int = 20) -> float:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(rounds):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / rounds
