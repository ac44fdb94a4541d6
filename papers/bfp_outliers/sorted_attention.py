"""Rotation by position for rearranged channels: R' = P R P^T, so that R' P k = P R k.

R turns the pair (i, i + d/2) by the angle of position and i. Rearranged, each channel needs the angle of the channel
that it was, and its partner from where that one is now. Both are tables made when the weights are rearranged: angles
are looked up once a forward pass for all layers, and the partner takes the place of the halves' exchange that the
unmodified rotation does anyway. Where pairs stay half a head apart, transformers' own function does the turning.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import (
    ALL_ATTENTION_FUNCTIONS,
    LlamaAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class SortedRotary(nn.Module):
    """Angles in the order of each layer's and head's channels, (batch, length, layers, KV heads, head_dim)."""

    order: Tensor
    signs: Tensor

    def __init__(self, rotary: nn.Module, order: Tensor, halves: bool) -> None:
        super().__init__()
        self.rotary = rotary
        first = order < order.shape[-1] // 2
        signs = torch.where(first, -1.0, 1.0)  # x_i cos - x_j sin, and x_j cos + x_i sin
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("signs", torch.ones_like(signs) if halves else signs, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(x, position_ids)
        return cos[..., self.order], sin[..., self.order] * self.signs.to(sin.dtype)


class SortedAttention(LlamaAttention):
    """transformers' attention with the rotation of rearranged channels; weights come rearranged (`ksort.fold`)."""

    key_partners: Tensor | None  # where a projection's outputs find the other element of their pair
    query_partners: Tensor | None

    def __init__(self, config: Any, layer_idx: int, order: Tensor, halves: bool) -> None:
        with torch.device("meta"):
            super().__init__(config, layer_idx)
        self.see: Callable[[Tensor], Tensor] | None = None  # what becomes of turned queries
        heads, width = order.shape
        place = order.argsort(dim=-1)  # of an old channel
        partner = place.gather(-1, (order + width // 2) % width)
        self.groups = heads
        for name, sharing in (("key_partners", 1), ("query_partners", self.num_key_value_groups)):
            each = partner.repeat_interleave(sharing, dim=0)
            rows = each + width * torch.arange(len(each), device=order.device)[:, None]
            self.register_buffer(name, None if halves else rows.reshape(-1), persistent=False)

    def turned(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (batch, heads, length, head_dim) and keys (batch, KV heads, ...) at their positions.

        hidden: (batch, length, hidden); cos and sin: of this layer, (1 or batch, length, KV heads, head_dim).
        """
        queries, keys = self.q_proj(hidden), self.k_proj(hidden)
        if self.query_partners is None or self.key_partners is None:
            queries, keys = apply_rotary_pos_emb(self._grouped(queries), self._grouped(keys), cos, sin, 3)
        else:
            turned = []
            cos, sin = cos[:, :, :, None], sin[:, :, :, None]
            for flat, partners in ((queries, self.query_partners), (keys, self.key_partners)):
                others = flat.index_select(-1, partners)
                turned.append(torch.addcmul(self._grouped(flat) * cos, self._grouped(others), sin))
            queries, keys = turned
        return tuple(x.flatten(2, 3).transpose(1, 2) for x in (queries, keys))  # type: ignore[return-value]

    def _grouped(self, flat: Tensor) -> Tensor:
        """(batch, length, KV heads, heads of the group, head_dim) of a projection's outputs."""
        return flat.view(*flat.shape[:2], self.groups, -1, self.head_dim)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As transformers' own, but for the turning; position_embeddings come from `SortedRotary`."""
        cos, sin = (table[:, :, self.layer_idx] for table in position_embeddings)
        queries, keys = self.turned(hidden_states, cos, sin)
        values = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.see is not None:
            queries = self.see(queries)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self, queries, keys, values, attention_mask, dropout=0.0, scaling=self.scaling, **options
        )
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), weights


def keeps_halves(order: Tensor) -> bool:
    """Whether rotary pairs stay half a head apart in every head, so that an unmodified rotation can be used."""
    half = order.shape[-1] // 2
    return torch.equal(order[..., :half] + half, order[..., half:])


def rearrange_rotation(model: "LlamaForCausalLM", order: Tensor) -> None:
    """Give a model with rearranged weights the rotation that goes with them, in place."""
    halves = keeps_halves(order)
    model.model.rotary_emb = SortedRotary(model.model.rotary_emb, order, halves)
    for index, block in enumerate(model.model.layers):
        old = block.self_attn
        new = SortedAttention(old.config, old.layer_idx, order[index], halves)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(new, name, getattr(old, name))
        block.self_attn = new.train(old.training)


def encode_queries(model: "LlamaForCausalLM", through: Callable[[Tensor], Tensor]) -> None:
    """Pass the turned queries of every layer through a function, such as a code and back; in place."""
    for block in model.model.layers:
        block.self_attn.see = through
