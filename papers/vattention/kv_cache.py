"""KV tensors in reserved virtual memory, and a decoder's cache that is one slot of them.

All addresses exist from the beginning and never move: a request grows by pages mapped at its slot's end, in each
layer's K and V, without a copy. Keys and values of a request are one contiguous slice, so that the decoder's attention
(torch's scaled_dot_product_attention) needs no change. Source: vAttention (ASPLOS 2025), Section 5.2.
"""

import time

import numpy as np
from torch import Tensor

from common.models.decoder import DecoderConfig
from papers.vattention.allocator import Allocator, Layout
from papers.vattention.virtual_memory import PagePool, Reservation

FORMATS: dict[int, type[np.generic]] = {2: np.float16, 4: np.float32}


class KVTensors:
    """The virtual tensors of a layout and the physical pages behind them; a Backing of the allocator.

    alias: map two slots' first pages to the same physical page, the negative control of correctness.
    """

    def __init__(self, layout: Layout, blocks: int, *, alias: bool = False) -> None:
        self.layout, self.alias = layout, alias
        self.pool = PagePool(blocks * layout.tensors, layout.page_bytes)
        self.reserved = [Reservation(layout.slots * layout.slot_bytes) for _ in range(layout.tensors)]
        flat = [one.tensor(FORMATS[layout.element_bytes]) for one in self.reserved]
        self.calls = 0  # of mmap
        self.seconds = 0.0  # in them
        self._views = [self._shaped(one) for one in flat]

    def _shaped(self, flat: Tensor) -> Tensor:
        """(slots, longest, [layers,] kv_heads, head_dim); a slot's last page may reach beyond `longest`."""
        layout = self.layout
        inner = layout.kv_heads * layout.head_dim
        middle = (layout.layers,) if layout.sliced else ()
        shape = (layout.slots, layout.longest, *middle, layout.kv_heads, layout.head_dim)
        token = layout.token_bytes // layout.element_bytes
        inside = (inner, layout.head_dim, 1) if layout.sliced else (layout.head_dim, 1)
        return flat.as_strided(shape, (layout.slot_bytes // layout.element_bytes, token, *inside))

    def keys(self, layer: int) -> Tensor:
        """The whole K tensor of a layer, (slots, longest, kv_heads, head_dim); unmapped parts fault."""
        return self._views[0][:, :, layer] if self.layout.sliced else self._views[layer]

    def values(self, layer: int) -> Tensor:
        """The V tensor; see keys."""
        if self.layout.sliced:
            return self._views[1][:, :, layer]
        return self._views[self.layout.layers + layer]

    def map(self, slot: int, index: int, block: int) -> None:
        """See allocator.Backing; ValueError for a page that would lie in another slot."""
        layout = self.layout
        self._check(slot, index)
        if self.alias and index == 0:
            block = 0
        begun = time.perf_counter()
        offset = slot * layout.slot_bytes + index * layout.page_bytes
        for tensor, reserved in enumerate(self.reserved):
            reserved.map(offset, self.pool, block * layout.tensors + tensor)
        self._count(begun)

    def unmap(self, slot: int, index: int) -> None:
        """See allocator.Backing."""
        layout = self.layout
        self._check(slot, index)
        begun = time.perf_counter()
        for reserved in self.reserved:
            reserved.unmap(slot * layout.slot_bytes + index * layout.page_bytes, layout.page_bytes)
        self._count(begun)

    def _check(self, slot: int, index: int) -> None:
        layout = self.layout
        if not (0 <= slot < layout.slots and 0 <= index < layout.pages_per_slot):
            raise ValueError(
                f"page {index} of slot {slot}: there are {layout.slots} slots of {layout.pages_per_slot} pages"
            )

    def _count(self, begun: float) -> None:
        self.seconds += time.perf_counter() - begun
        self.calls += self.layout.tensors


def layout_of(
    config: DecoderConfig, slots: int, longest: int, page_bytes: int, *, sliced: bool = False
) -> Layout:
    """The layout of a decoder's KV tensors in float32."""
    return Layout(config.layers, slots, longest, config.groups, config.head_dim, 4, page_bytes, sliced)


class VirtualCache:
    """One slot as a decoder's cache; see common.models.decoder.Cache. Its pages must be mapped before it is used."""

    def __init__(self, tensors: KVTensors, allocator: Allocator, slot: int) -> None:
        self.tensors, self.allocator, self.slot = tensors, allocator, slot
        self.capacity = tensors.layout.longest
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache; what comes back are views, nothing is copied but what is new."""
        end = self.length + keys.shape[1]
        if (
            end
            > self.allocator.mapped(self.slot)
            * self.tensors.layout.page_bytes
            // self.tensors.layout.token_bytes
        ):
            raise ValueError(f"slot {self.slot} has no pages for {end} tokens; step_async maps them first")
        all_keys = self.tensors.keys(layer)[self.slot, :end]
        all_values = self.tensors.values(layer)[self.slot, :end]
        all_keys[self.length :] = keys.transpose(0, 1)
        all_values[self.length :] = values.transpose(0, 1)
        return all_keys.transpose(0, 1), all_values.transpose(0, 1)

    def advance(self, new: int) -> None:
        """See Cache."""
        self.length += new

    def release(self) -> None:
        """See Cache; the pages stay mapped for the next request."""
        self.allocator.free_reqid(self.slot)
        self.length = 0
