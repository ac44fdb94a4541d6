"""Codes of k bits in bytes. What a compressed tensor takes is the length of what comes out here."""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integer codes of any shape below 2^bits as a stream of bits, uint8 of shape (ceil(elements * bits / 8),).

    The first code's highest bit is the first byte's highest. Raises ValueError for a code that does not fit.
    """
    _check(bits)
    flat = codes.reshape(-1).to(torch.int64)
    if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= 2**bits):
        raise ValueError(
            f"codes of {bits} bits lie between 0 and {2**bits - 1}, not {flat.min()} and {flat.max()}"
        )
    stream = (flat[:, None] >> torch.arange(bits - 1, -1, -1)) & 1
    whole = torch.nn.functional.pad(stream.reshape(-1), (0, -stream.numel() % 8)).view(-1, 8)
    return (whole << torch.arange(7, -1, -1)).sum(dim=1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, elements: int) -> Tensor:
    """The first `elements` codes of a packed stream, int64 of shape (elements,). ValueError where there are fewer."""
    _check(bits)
    if elements * bits > 8 * len(packed):
        raise ValueError(f"{len(packed)} bytes hold no {elements} codes of {bits} bits")
    stream = (packed.to(torch.int64)[:, None] >> torch.arange(7, -1, -1)) & 1
    codes = stream.reshape(-1)[: elements * bits].view(-1, bits)
    return (codes << torch.arange(bits - 1, -1, -1)).sum(dim=1)


def _check(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"a code has 1 to 16 bits, not {bits}")
