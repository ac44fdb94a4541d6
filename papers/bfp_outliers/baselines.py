"""Two later ways to live with outliers in keys, for comparison: rotate them away, or quantise along the token.

Neither is in the paper. QuaRot (arXiv:2404.00456) rotates queries and keys of each head by a Hadamard matrix, online;
KIVI (arXiv:2402.02750) gives every channel its own scale over a group of tokens.
"""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from papers.bfp_outliers.packed_rows import BlockRows, pack_rows, unpack_rows


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix over sqrt(size): symmetric, its own inverse. ValueError if `size` is no power of 2."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard matrix of Sylvester has a power of two as its size, not {size}")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


class RotatedRows:
    """A code of rotated keys. Reading turns them back, which equals rotating the query: q . (H k) = (H q) . k."""

    def __init__(self, code: BlockRows, size: int) -> None:
        self.code, self.matrix = code, hadamard(size)

    def encode(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self.code.encode(rows @ self.matrix.to(rows))

    def decode(self, stored: tuple[Tensor, ...]) -> Tensor:
        rows = self.code.decode(stored)
        return rows @ self.matrix.to(rows)


class PerChannelLayer(DynamicLayer):
    """Keys in 4 bits, asymmetric, with a scale and a minimum (FP16) for each channel of `group` tokens.

    Tokens of a group that is not full yet wait in FP16. A prompt reads its full groups quantised at once; KIVI's
    window of recent tokens in full precision is left out, which errs against it. Bits an element: 4 + 32 / group.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group
        self.codes: Tensor | None = None  # uint8 (batch, heads, head_dim, tokens / 2) of whole groups
        self.scales: Tensor | None = None  # float16 (batch, heads, head_dim, groups)
        self.lowest: Tensor | None = None
        self.waiting: Tensor | None = None  # float16 (batch, heads, tokens < group, head_dim)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        new = key_states.to(torch.float16)
        waiting = new if self.waiting is None else torch.cat([self.waiting, new], dim=-2)
        whole = waiting.shape[-2] // self.group * self.group
        if whole:
            self._encode(waiting[..., :whole, :].float())
        self.waiting = waiting[..., whole:, :]
        self.values = value_states if self.values is None else torch.cat([self.values, value_states], dim=-2)
        self.is_initialized = True
        return torch.cat([*self._decoded(), self.waiting.float()], dim=-2), self.values

    def get_seq_length(self) -> int:
        coded = 0 if self.codes is None else 2 * self.codes.shape[-1]
        return coded + (0 if self.waiting is None else self.waiting.shape[-2])

    @property
    def key_bytes(self) -> int:
        """Bytes of the tensors that hold keys."""
        return sum(
            part.nbytes for part in (self.codes, self.scales, self.lowest, self.waiting) if part is not None
        )

    def _encode(self, keys: Tensor) -> None:
        parts = keys.transpose(-1, -2).unflatten(-1, (-1, self.group))
        lowest = parts.amin(dim=-1).to(torch.float16)
        span = parts.amax(dim=-1) - lowest.float()
        scales = (span / 15).clamp(min=2.0**-24).to(torch.float16)
        codes = ((parts - lowest.float()[..., None]) / scales.float()[..., None]).round().clamp(0, 15)
        new = (pack_rows(codes.flatten(-2), 4), scales, lowest)
        old = (self.codes, self.scales, self.lowest)
        self.codes, self.scales, self.lowest = (
            part if past is None else torch.cat([past, part], dim=-1)
            for past, part in zip(old, new, strict=True)
        )

    def _decoded(self) -> list[Tensor]:
        if self.codes is None or self.scales is None or self.lowest is None:
            return []
        codes = unpack_rows(self.codes, 4).bitwise_and(15).float().unflatten(-1, (-1, self.group))
        rows = codes * self.scales.float()[..., None] + self.lowest.float()[..., None]
        return [rows.flatten(-2).transpose(-1, -2)]


class PerChannelCache(DynamicCache):
    """A cache of such layers; values as they come."""

    def __init__(self, layers: int, group: int = 32) -> None:
        super().__init__()
        self.layers: list[PerChannelLayer] = [PerChannelLayer(group) for _ in range(layers)]  # type: ignore[assignment]

    @property
    def key_bytes(self) -> int:
        return sum(layer.key_bytes for layer in self.layers)
