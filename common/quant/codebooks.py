"""Code books: the sorted values, between -1 and 1, that the codes of a quantised tensor stand for."""

import torch
from torch import Tensor


def dynamic(signed: bool = True) -> Tensor:
    """Dynamic quantisation in 8 bits: 256 values over seven decades, float32, ascending.

    Leading zeros of a code are a decimal exponent, the bits behind the first one a linear fraction: in the decade up to
    10^(i - 6) lie the midpoints of 2^i (unsigned: 2^(i+1)) equal parts of [0.1, 1]. Zero and one are added, so that
    signed values are not symmetric: 1.0 has no negative. Source: 8-bit Optimizers (ICLR 2022), Section 2.2;
    bitsandbytes' create_dynamic_map, which gives the same values.
    """
    values = [0.0, 1.0]
    for i in range(7):
        parts = 2**i if signed else 2 ** (i + 1)
        edges = torch.linspace(0.1, 1, parts + 1, dtype=torch.float32)
        decade = (10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += decade
        if signed:
            values += [-value for value in decade]
    return torch.tensor(sorted(values), dtype=torch.float32)


def linear(signed: bool = True, bits: int = 8) -> Tensor:
    """2^bits equally spaced values from -1 (unsigned: 0) to 1, with zero among them, float32.

    Signed values leave one code out of an even number, which stands for zero once more, as in bitsandbytes'
    create_linear_map.
    """
    if not signed:
        return torch.linspace(0.0, 1.0, 2**bits)
    values = torch.linspace(-1.0, 1.0, 2**bits - 1)
    half = len(values) // 2
    values[half].clamp_(min=0.0)  # which linspace misses by rounding, for some numbers of bits from below
    return torch.cat([values[:half], torch.zeros(1), values[half:]])


# NF4: quantiles of a normal distribution with equal shares on either side of zero, scaled to [-1, 1]. Values of the
# QLoRA paper (arXiv:2305.14314), Appendix E, as in bitsandbytes.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def normal_float4() -> Tensor:
    """The 16 values of NF4, float32."""
    return torch.tensor(_NF4, dtype=torch.float32)
