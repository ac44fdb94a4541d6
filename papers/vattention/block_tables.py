"""The CPU's part of PagedAttention: a padded block table for the kernel at every iteration.

vAttention passes a list of slots instead, and maps in the background. Source: vAttention (ASPLOS 2025), Section 3.3.
"""

import time
from itertools import chain

import numpy as np
import torch
from torch import Tensor


def padded_in_python(tables: list[list[int]]) -> Tensor:
    """[batch, longest] int32: pad lists, then convert, as vLLM's first versions did (_make_tensor_with_pad)."""
    longest = max(map(len, tables), default=0)
    return torch.tensor([table + [0] * (longest - len(table)) for table in tables], dtype=torch.int32)


def padded_in_numpy(tables: list[list[int]]) -> Tensor:
    """The same through one flat array."""
    sizes = np.fromiter(map(len, tables), np.int64, len(tables))
    padded = np.zeros((len(tables), int(sizes.max(initial=0))), dtype=np.int32)
    padded[np.arange(padded.shape[1]) < sizes[:, None]] = np.fromiter(
        chain.from_iterable(tables), np.int32, int(sizes.sum())
    )
    return torch.from_numpy(padded)


def build_seconds(batch: int, context: int, block_tokens: int, rounds: int) -> tuple[float, float]:
    """Least CPU seconds to build the table of `batch` sequences of `context` tokens: in Python, and with numpy.

    ValueError where one of the sizes is less than one.
    """
    if min(batch, context, block_tokens, rounds) < 1:
        raise ValueError(f"{batch} sequences of {context} tokens, blocks of {block_tokens}, {rounds} rounds")
    blocks = -(-context // block_tokens)
    tables = [list(range(i * blocks, (i + 1) * blocks - i % 7 % blocks)) for i in range(batch)]
    found = []
    for build in (padded_in_python, padded_in_numpy):
        times = []
        for _ in range(rounds):
            begun = time.thread_time()
            build(tables)
            times.append(time.thread_time() - begun)
        found.append(min(times))
    return found[0], found[1]
