"""Seconds of a decode step with and without rearranged weights, in turns, and with a rearrangement at run time."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class GatheredLayer(DynamicLayer):
    """What a cache must do where the weights are not rearranged: sort new keys, and put all keys back when read.

    Keys stand sorted, so that similar channels share blocks, while queries come in the model's order.
    """

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.order, self.place = order[None, :, None], order.argsort(dim=-1)[None, :, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        new = key_states.gather(-1, self.order.expand(key_states.shape))
        keys, values = super().update(new, value_states)
        return keys.gather(-1, self.place.expand(keys.shape)), values


def gathered_cache(order: Tensor) -> DynamicCache:
    """A cache of such layers; order: (layers, KV heads, head_dim)."""
    cache = DynamicCache()
    cache.layers = [GatheredLayer(heads) for heads in order]
    return cache


@torch.inference_mode()
def step_seconds(
    systems: dict[str, tuple["LlamaForCausalLM", Callable[[], Any]]], context: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of `rounds` decode steps behind `context` cached tokens, for each system: a model and a maker of caches.

    What is cached is random: it takes the same time as a real prompt. Systems take turns, and who begins changes, so
    that what the machine does meanwhile falls on all of them.
    """
    generator = torch.Generator().manual_seed(0)
    caches = {}
    for name, (model, make) in systems.items():
        caches[name] = make()
        config = model.config
        heads = config.num_key_value_heads or config.num_attention_heads
        shape = (1, heads, context, config.hidden_size // config.num_attention_heads)
        for layer in range(config.num_hidden_layers):
            caches[name].update(*(torch.randn(shape, generator=generator) for _ in range(2)), layer)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names, token = list(systems), torch.zeros(1, 1, dtype=torch.int64)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            model, cache = systems[name][0], caches[name]
            begun = time.perf_counter()
            model(token, past_key_values=cache, use_cache=True)
            took = time.perf_counter() - begun
            cache.crop(-1)
            if turn:  # the first one warms up
                seconds[name].append(took)
    return seconds
