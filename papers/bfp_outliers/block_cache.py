"""A key cache that holds nothing but packed codes, as a cache of transformers.

New tokens are encoded once, after their rotation, and appended; attention reads all keys, the newest among them, from
what is stored. A prompt and its tokens one by one therefore leave the same bytes.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RowCode(Protocol):
    """Rows of channels as tensors whose last dimension but one is the token, and back."""

    def encode(self, rows: Tensor) -> tuple[Tensor, ...]: ...

    def decode(self, stored: tuple[Tensor, ...]) -> Tensor: ...


class Half:
    """FP16: two bytes an element."""

    def encode(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (rows.to(torch.float16),)

    def decode(self, stored: tuple[Tensor, ...]) -> Tensor:
        return stored[0].to(torch.float32)


class CodedLayer(DynamicLayer):
    """One layer's keys and values behind codes; tensors are (batch, KV heads, tokens, ...)."""

    def __init__(self, key_code: RowCode, value_code: RowCode) -> None:
        super().__init__()
        self.key_code, self.value_code = key_code, value_code
        self.stored_keys: tuple[Tensor, ...] = ()
        self.stored_values: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values; all of them as they are stored."""
        self.is_initialized = True
        self.dtype, self.device = key_states.dtype, key_states.device
        self.stored_keys = _appended(self.stored_keys, self.key_code.encode(key_states))
        self.stored_values = _appended(self.stored_values, self.value_code.encode(value_states))
        keys, values = self.key_code.decode(self.stored_keys), self.value_code.decode(self.stored_values)
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def get_seq_length(self) -> int:
        return self.stored_keys[0].shape[-2] if self.stored_keys else 0

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens; a number below zero, as in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to drop, not {tokens_to_remove}")
        if tokens_to_remove:
            self._each(lambda part: part[..., :tokens_to_remove, :])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each(lambda part: part.index_select(0, beam_idx.to(part.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda part: part.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda part: part[indices])

    def reset(self) -> None:
        self.stored_keys, self.stored_values, self.is_initialized = (), (), False

    def offload(self) -> None:
        self._each(lambda part: part.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.is_initialized:
            self._each(lambda part: part.to(self.device, non_blocking=True))

    @property
    def key_bytes(self) -> int:
        """Bytes of the tensors that hold keys, exponents among them."""
        return sum(part.nbytes for part in self.stored_keys)

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.stored_keys = tuple(map(change, self.stored_keys))
        self.stored_values = tuple(map(change, self.stored_values))


class CodedCache(DynamicCache):
    """A cache of transformers whose layers hold codes.

    model(tokens, past_key_values=CodedCache(30, BlockRows(4, 32)), use_cache=True)
    """

    def __init__(self, layers: int, key_code: RowCode, value_code: RowCode | None = None) -> None:
        super().__init__()
        self.layers: list[CodedLayer] = [CodedLayer(key_code, value_code or Half()) for _ in range(layers)]  # type: ignore[assignment]

    @property
    def key_bytes(self) -> int:
        """Bytes of all stored keys."""
        return sum(layer.key_bytes for layer in self.layers)


def _appended(stored: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(pair, dim=-2) for pair in zip(stored, new, strict=True)) if stored else new
