"""Codes of k bits in bytes, row by row, so that a cache of rows grows by appending: common/quant/packing.py, faster.

Eight codes of k bits are k bytes. For rows whose codes fill whole bytes the bytes are those of `packing.pack`, which
a test holds.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from common.quant.shared_exponent import Shared, decode, encode


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Integers (..., n) as uint8 (..., n * bits / 8), in two's complement where they are negative.

    ValueError where a row does not fill whole groups of eight codes, or for bits outside 2 to 8.
    """
    if codes.shape[-1] % 8 or not 2 <= bits <= 8:
        raise ValueError(
            f"a row of {codes.shape[-1]} codes of {bits} bits: eight codes at a time, of 2 to 8 bits"
        )
    if bits == 8:
        return codes.to(torch.uint8)
    low = codes.to(torch.uint8).bitwise_and(2**bits - 1)
    if bits == 4:
        return low[..., ::2].bitwise_left_shift(4).bitwise_or(low[..., 1::2])
    eight = low.unflatten(-1, (-1, 8)).to(torch.int64)
    whole = (eight << torch.arange(7 * bits, -1, -bits, device=codes.device)).sum(dim=-1, keepdim=True)
    return (whole >> torch.arange(8 * (bits - 1), -1, -8, device=codes.device)).to(torch.uint8).flatten(-2)


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """Signed codes, int8 of shape (..., n), of what `pack_rows` made."""
    if bits == 8:
        return packed.view(torch.int8)
    if bits == 4:
        both = torch.stack([packed.bitwise_right_shift(4), packed.bitwise_and(15)], dim=-1).flatten(-2)
    else:
        parts = packed.unflatten(-1, (-1, bits)).to(torch.int64)
        whole = (parts << torch.arange(8 * (bits - 1), -1, -8, device=packed.device)).sum(
            dim=-1, keepdim=True
        )
        both = (
            (whole >> torch.arange(7 * bits, -1, -bits, device=packed.device))
            .bitwise_and(2**bits - 1)
            .flatten(-2)
        )
    sign = 2 ** (bits - 1)
    return both.to(torch.int8).bitwise_xor(sign).sub(sign) if bits < 8 else both.to(torch.int8)


class BlockRows(NamedTuple):
    """Block floating point of a head's channels: BFP12 has mantissas of 4 bits, BFP16 of 8, the exponent 8 bits.

    The values are those of common/quant/shared_exponent.py, power-of-two steps and ties to even; `clips` as there.
    """

    bits: int
    block: int
    clips: bool = True

    def encode(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Values (..., n) as packed mantissas, uint8 (..., n * bits / 8), and exponents, int8 (..., n / block)."""
        shared = encode(rows, self.bits, self.block, self.clips)
        return pack_rows(shared.mantissas, self.bits), shared.exponents.to(torch.int8)

    def decode(self, stored: tuple[Tensor, ...]) -> Tensor:
        """The values, float32, exactly."""
        packed, exponents = stored
        return decode(Shared(unpack_rows(packed, self.bits), exponents, self.block))
