"""Block floating point: the elements of a block are integers that share one power of two.

Between a block's largest magnitude and the step of its integers lie as many powers of two as a mantissa has bits, so
that one outlier takes precision from all its neighbours.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LOWEST, HIGHEST = -126, 127  # of an exponent of 8 bits, as float32's


class Shared(NamedTuple):
    """mantissas: int8, in the shape of the original. exponents: int16, its last dimension in blocks; of the step."""

    mantissas: Tensor
    exponents: Tensor
    block: int


def encode(tensor: Tensor, mantissa_bits: int, block: int, clips: bool = True) -> Shared:
    """Round blocks of the last dimension to integers of `mantissa_bits` bits with the sign, and a shared exponent.

    With e = floor(log2(largest magnitude)) the step is 2^(e - mantissa_bits + 2): the largest magnitude lies between
    half of the integers' range and the whole, and a positive one may be clipped by up to a step. clips False doubles
    the step, so that nothing is. Ties round to even. ValueError if the last dimension is no multiple of `block`.
    """
    if tensor.shape[-1] % block:
        raise ValueError(f"a last dimension of {tensor.shape[-1]} is no multiple of a block of {block}")
    if not 2 <= mantissa_bits <= 8:
        raise ValueError(f"a mantissa has 2 to 8 bits with its sign, not {mantissa_bits}")
    blocks = tensor.detach().to(torch.float32).unflatten(-1, (-1, block))
    largest = blocks.abs().amax(dim=-1)
    _, exponents = torch.frexp(largest)  # largest = f * 2^exponent with f in [0.5, 1)
    exponents = exponents - 1 - (mantissa_bits - 2) + (not clips)
    exponents = torch.where(largest > 0, exponents, LOWEST).clamp(LOWEST, HIGHEST)
    top = 2 ** (mantissa_bits - 1)
    mantissas = torch.ldexp(blocks, -exponents[..., None]).round().clamp(-top, top - 1)
    return Shared(mantissas.flatten(-2).to(torch.int8), exponents.to(torch.int16), block)


def decode(shared: Shared) -> Tensor:
    """The values, float32, exactly."""
    blocks = shared.mantissas.to(torch.float32).unflatten(-1, (-1, shared.block))
    return torch.ldexp(blocks, shared.exponents[..., None].to(torch.int32)).flatten(-2)
