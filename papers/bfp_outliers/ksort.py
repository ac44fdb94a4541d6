"""K-sort: an order of each key head's channels, found in the weights alone, and folded into them.

An order is an int64 tensor of shape (layers, KV heads, head_dim): the new channel j of a head is its old channel
order[layer, head, j]. Every query head of a KV head's group takes the same order, so that q . k is what it was.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def row_norms(model: "LlamaForCausalLM", gains: bool = False) -> Tensor:
    """||W_k[h, c, :]|| with the bias folded in, float32 of shape (layers, KV heads, head_dim).

    gains True (ours): of the weights times the gains of the norm before them, which are weights just as well.
    """
    norms = []
    for block in model.model.layers:
        attention = block.self_attn
        weight = attention.k_proj.weight
        if gains:
            weight = weight * block.input_layernorm.weight
        squares = weight.square().sum(dim=1)
        if attention.k_proj.bias is not None:
            squares = squares + attention.k_proj.bias.square()
        norms.append(squares.sqrt().view(-1, attention.head_dim))
    return torch.stack(norms)


def original(like: Tensor) -> Tensor:
    """The order that changes nothing, for magnitudes of shape (..., head_dim)."""
    return torch.arange(like.shape[-1], device=like.device).expand(like.shape).contiguous()


def ksort(magnitudes: Tensor) -> Tensor:
    """Ascending within each head: of `row_norms` it is the paper's K-sort, of mean |k| the calibrated order (ours)."""
    return _rounded(magnitudes).argsort(dim=-1, stable=True)


def pair_sort(norms: Tensor, adjacent: bool = False) -> Tensor:
    """Ascending by sqrt(n_i^2 + n_j^2) of the rotary pairs (i, i + head_dim / 2), which stay pairs.

    adjacent False: pairs lie half a head apart, as transformers' rotation wants them. With a block of half a head each
    block then holds the channels it held before: nothing can be gained. True: pairs lie side by side, as in Meta's
    own rotation.
    """
    half = norms.shape[-1] // 2
    pairs = _rounded(norms[..., :half].square() + norms[..., half:].square()).argsort(dim=-1, stable=True)
    both = torch.stack([pairs, pairs + half], dim=-1 if adjacent else -2)
    return both.flatten(-2)


def interleaved(like: Tensor) -> Tensor:
    """Rotary pairs side by side in their original order: Meta's layout, without any sorting."""
    return pair_sort(torch.ones_like(like, dtype=torch.float32), adjacent=True)


def shuffled(like: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of each head: the negative control."""
    return torch.rand(like.shape, generator=generator).argsort(dim=-1)


def fold(model: "LlamaForCausalLM", order: Tensor, queries: bool = True) -> "LlamaForCausalLM":
    """A copy of the model whose W_k and W_q are rearranged and whose rotation follows; all else is shared with it.

    queries False leaves W_q as it is, which breaks the model: the negative control. ValueError for what is no order.
    """
    from papers.bfp_outliers.sorted_attention import rearrange_rotation

    attention = model.model.layers[0].self_attn
    heads = attention.k_proj.out_features // attention.head_dim
    shape = (len(model.model.layers), heads, attention.head_dim)
    if order.shape != shape or not torch.equal(order.sort(dim=-1).values, original(order)):
        raise ValueError(f"an order has shape {shape}, each head's channels once; not {tuple(order.shape)}")
    made = copy_of_keys_and_queries(model)
    for index, block in enumerate(made.model.layers):
        _rearrange(block.self_attn.k_proj, order[index])
        if queries:
            group = block.self_attn.num_key_value_groups
            _rearrange(block.self_attn.q_proj, order[index].repeat_interleave(group, dim=0))
    rearrange_rotation(made, order)
    return made


def copy_of_keys_and_queries(model: "LlamaForCausalLM") -> "LlamaForCausalLM":
    """A model of its own W_k and W_q that shares every other parameter."""
    shared: dict[int, object] = {
        id(parameter): parameter
        for name, parameter in model.named_parameters()
        if ".k_proj." not in name and ".q_proj." not in name
    }
    return copy.deepcopy(model, shared)


@torch.no_grad()
def scale_pairs(model: "LlamaForCausalLM", factors: Tensor) -> "LlamaForCausalLM":
    """A copy whose rotary pairs of W_k are `factors` times as large, and W_q's as much smaller: the same function.

    factors: (layers, KV heads, head_dim / 2), positive. Both rows of a pair must be scaled alike, since the rotation
    mixes them.
    """
    made = copy_of_keys_and_queries(model)
    for index, block in enumerate(made.model.layers):
        keys = torch.cat([factors[index], factors[index]], dim=-1)
        queries = keys.repeat_interleave(block.self_attn.num_key_value_groups, dim=0)
        for linear, by in ((block.self_attn.k_proj, keys), (block.self_attn.q_proj, 1 / queries)):
            linear.weight.mul_(by.reshape(-1, 1))
            if linear.bias is not None:
                linear.bias.mul_(by.reshape(-1))
    return made


def equal_pairs(model: "LlamaForCausalLM") -> Tensor:
    """Factors by which all rotary pairs of a head get the same norm, the head's mean: nothing is left to sort."""
    norms = row_norms(model)
    half = norms.shape[-1] // 2
    pairs = (norms[..., :half].square() + norms[..., half:].square()).sqrt()
    return pairs.mean(dim=-1, keepdim=True) / pairs


@torch.no_grad()
def _rearrange(linear: nn.Linear, order: Tensor) -> None:
    """Rows in the order of each head, in place; order: (heads, head_dim)."""
    heads, width = order.shape
    rows = (order + width * torch.arange(heads, device=order.device)[:, None]).reshape(-1)
    linear.weight.copy_(linear.weight[rows])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[rows])


def _rounded(magnitudes: Tensor) -> Tensor:
    """To four digits, so that norms that are equal but for rounding keep their order."""
    scale = magnitudes.amax(dim=-1, keepdim=True).clamp(min=1e-30)
    return (magnitudes / scale * 1e4).round()
