"""That a rearranged model is the same model, and that a block as long as a head does not care about order."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.models.capture import watching
from common.models.llama import linears
from common.quant.shared_exponent import encode

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@torch.inference_mode()
def differing_scores(
    model: "LlamaForCausalLM", rearranged: "LlamaForCausalLM", tokens: Tensor, tolerance: float = 1e-5
) -> tuple[float, float]:
    """(share of scores q . k that differ by more than `tolerance`, largest difference), over all layers and heads.

    Differences are relative to the head's largest score. Both models get what enters each attention of the first one.
    """
    positions = torch.arange(tokens.shape[1])[None]
    plain = model.model.rotary_emb(tokens.float(), positions)
    tables = rearranged.model.rotary_emb(tokens.float(), positions)
    beyond, count, largest = 0, 0, 0.0
    for index, hidden in enumerate(attention_inputs(model, tokens)):
        expected = _scores(*turned(model.model.layers[index].self_attn, hidden, plain))
        new = rearranged.model.layers[index].self_attn
        found = _scores(*new.turned(hidden, *(table[:, :, index] for table in tables)))
        relative = (found - expected).abs() / expected.abs().amax(dim=(-2, -1), keepdim=True)
        beyond += int((relative > tolerance).sum())
        count += relative.numel()
        largest = max(largest, float(relative.max()))
    return beyond / count, largest


@torch.inference_mode()
def differing_logits(
    model: "LlamaForCausalLM", rearranged: "LlamaForCausalLM", tokens: Tensor, tolerance: float = 1e-4
) -> tuple[float, float]:
    """(share of logits that differ by more than `tolerance`, largest difference), relative to the largest logit."""
    expected, found = model(tokens).logits, rearranged(tokens).logits
    relative = (found - expected).abs() / expected.abs().max()
    return float((relative > tolerance).double().mean()), float(relative.max())


def differing_codes(keys: Tensor, order: Tensor, bits: int, block: int) -> float:
    """Share of mantissas that change where channels are rearranged before encoding instead of after.

    keys: (layers, KV heads, tokens, head_dim); order: (layers, KV heads, head_dim).
    """
    places = order[:, :, None].expand(keys.shape)
    before = encode(keys.gather(-1, places), bits, block)
    plain = encode(keys, bits, block)
    steps = plain.exponents.repeat_interleave(block, dim=-1).gather(-1, places)
    same = (before.mantissas == plain.mantissas.gather(-1, places)) & (
        before.exponents.repeat_interleave(block, dim=-1) == steps
    )
    return float((~same).double().mean())


@torch.inference_mode()
def attention_inputs(model: "LlamaForCausalLM", tokens: Tensor) -> list[Tensor]:
    """What enters the projections of each layer's attention, (batch, length, hidden)."""
    entered: dict[str, Tensor] = {}
    projections = {name: linear for name, linear in linears(model).items() if name.endswith("q_proj")}
    with watching(projections, entered.__setitem__):
        model.model(tokens)
    return list(entered.values())


def turned(attention: Any, hidden: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries and keys of transformers' own attention at their positions, (batch, heads, length, head_dim)."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    queries, keys = (
        linear(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj)
    )
    return apply_rotary_pos_emb(queries, keys, *tables)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """q . k of every query head with its group's keys, (batch, heads, length, length)."""
    return queries @ keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1).transpose(-1, -2)
