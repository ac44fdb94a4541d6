"""How keys really look: where the variance of log |k| lies, and whether large channels stay large on other text."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class Shares(NamedTuple):
    """Of the variance of log |k|: between channels, between tokens, and what neither explains; they sum to one."""

    channel: float
    token: float
    rest: float


@torch.inference_mode()
def cached_keys(model: "LlamaForCausalLM", tokens: Tensor) -> Tensor:
    """Keys after their rotation, as a cache holds them: (layers, KV heads, batch * length, head_dim)."""
    from transformers.cache_utils import DynamicCache

    cache: Any = DynamicCache()
    model.model(tokens, past_key_values=cache, use_cache=True)
    return torch.stack([layer.keys.transpose(0, 1).flatten(1, 2) for layer in cache.layers])


def variance_shares(keys: Tensor) -> Shares:
    """Two-way analysis of variance of log |k| over (tokens, channels), a head at a time; the mean over heads.

    keys: (..., tokens, channels). Squares around the channels' means, around the tokens' means, and the rest.
    """
    logs = keys.double().abs().clamp(min=1e-12).log()
    whole = logs.mean(dim=(-2, -1), keepdim=True)
    total = (logs - whole).square().mean(dim=(-2, -1))
    channel = (logs.mean(dim=-2) - whole.squeeze(-1)).square().mean(dim=-1)
    token = (logs.mean(dim=-1) - whole.squeeze(-1)).square().mean(dim=-1)
    first, second = float((channel / total).mean()), float((token / total).mean())
    return Shares(first, second, 1 - first - second)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's, along the last dimension, of values without ties; float64."""
    ranks = [x.argsort(dim=-1).argsort(dim=-1).double() for x in (a, b)]
    one, other = (x - x.mean(dim=-1, keepdim=True) for x in ranks)
    return (one * other).sum(dim=-1) / (one.norm(dim=-1) * other.norm(dim=-1))


def shuffle_channels(keys: Tensor, generator: torch.Generator) -> Tensor:
    """Every token's channels in an order of its own: the negative control, without channels that mean anything."""
    return keys.gather(-1, torch.rand(keys.shape, generator=generator).argsort(dim=-1))


def planted_factors(norms: Tensor, strength: float, share: float, generator: torch.Generator) -> Tensor:
    """For `ksort.scale_pairs`: `strength` for a random share of each head's rotary pairs (at least one), 1 elsewhere.

    norms: of the model's rows, (layers, KV heads, head_dim), for their shape alone.
    """
    layers, heads, width = norms.shape
    chosen = max(1, round(share * width // 2))
    places = torch.rand(layers, heads, width // 2, generator=generator).argsort(dim=-1)[..., :chosen]
    return torch.ones(layers, heads, width // 2).scatter_(-1, places, strength)
