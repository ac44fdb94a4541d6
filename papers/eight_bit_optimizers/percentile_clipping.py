"""Percentile clipping: a gradient is no longer than the p-th percentile of its last hundred norms.

An adaptive bound in place of a fixed one (bitsandbytes' percentile_clipping; off by default, at 100). Norms not yet
seen do not count, so that the first gradient passes as it is.
"""

import torch
from torch import Tensor

LAST = 100  # norms that are remembered


def clipping_factor(norms: Tensor, step: int, norm: float, percentile: int) -> float:
    """What to multiply a gradient of this norm by, at most 1; the norm is remembered in `norms`, of shape (LAST,).

    step: counted from 1. percentile: above 0 and below 100; of n norms the one at place n p / 100 from below bounds.
    """
    norms[(step - 1) % LAST] = norm
    seen = torch.sort(norms[: min(step, LAST)]).values
    bound = float(seen[len(seen) * percentile // 100])
    return min(1.0, bound / norm) if norm > 0 else 1.0
