"""DistAttention: attention over keys and values that lie in several places, merged exactly (v1, Section 4).

For a query q and part j of a sequence with keys K_j and values V_j (d: head dimension):

    m_j = max(q K_j^T / sqrt(d))    e_j = sum exp(q K_j^T / sqrt(d) - m_j)    a_j = exp(q K_j^T / sqrt(d) - m_j) V_j
    m = max_j m_j    attention = sum_j exp(m_j - m) a_j / sum_j exp(m_j - m) e_j

Only q goes to where a part lies, and (a_j, m_j, e_j) come back: as much for a part of ten tokens as for a million.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class Partial(NamedTuple):
    """What one part of the sequence contributes, by head; not normalised."""

    weighted: Tensor  # a, shape (heads, head_dim)
    highest: Tensor  # m, shape (heads,)
    total: Tensor  # e, shape (heads,)


def attend_part(query: Tensor, keys: Tensor, values: Tensor) -> Partial:
    """The contribution of a part, one query a head.

    query: (heads, head_dim). keys, values: (kv_heads, tokens, head_dim) with heads a multiple of kv_heads
    (grouped-query attention) and at least one token. Sums are taken in float32 or better, whatever the inputs are.
    """
    heads, dim = query.shape
    groups, tokens, _ = keys.shape
    if tokens == 0:
        raise ValueError("a part of a sequence holds at least one token")
    wide = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(wide).view(groups, heads // groups, dim)
    scores = grouped @ keys.to(wide).transpose(1, 2) / dim**0.5
    highest = scores.amax(dim=2)
    weights = torch.exp(scores - highest[..., None])
    weighted = weights @ values.to(wide)
    return Partial(weighted.reshape(heads, dim), highest.reshape(heads), weights.sum(dim=2).reshape(heads))


def joined(one: Partial, other: Partial) -> Partial:
    """Two parts as one. Associative and commutative, so that parts may be merged in any order and anywhere."""
    highest = torch.maximum(one.highest, other.highest)
    mine, theirs = torch.exp(one.highest - highest), torch.exp(other.highest - highest)
    return Partial(
        one.weighted * mine[:, None] + other.weighted * theirs[:, None],
        highest,
        one.total * mine + other.total * theirs,
    )


def merge(parts: Iterable[Partial]) -> Tensor:
    """Attention over all parts together, shape (heads, head_dim)."""
    whole = reduce(joined, parts)
    return whole.weighted / whole.total[:, None]


def average(parts: Iterable[Partial]) -> Tensor:
    """What the merge is not: each part normalised on its own, and averaged. Wrong unless all parts weigh the same."""
    alone = [part.weighted / part.total[:, None] for part in parts]
    return torch.stack(alone).mean(dim=0)


def packed(part: Partial) -> Tensor:
    """A partial result as it is sent, shape (heads, head_dim + 2)."""
    return torch.cat([part.weighted, part.highest[:, None], part.total[:, None]], dim=1)


def unpacked(sent: Tensor) -> Partial:
    return Partial(sent[:, :-2], sent[:, -2], sent[:, -1])


def cut(tokens: int, parts: int, uneven: bool = True) -> list[int]:
    """Lengths of `parts` parts of a sequence; uneven: the k-th in proportion to k, as loans of different sizes are."""
    weights = [index + 1 if uneven else 1 for index in range(parts)]
    edges = [round(tokens * sum(weights[:index]) / sum(weights)) for index in range(parts + 1)]
    return [high - low for low, high in zip(edges, edges[1:], strict=False)]
