"""Decoding with shared weights against copies of them: the same arithmetic, other bytes.

A child that follows its parent finds its matrices in the processor's cache, where an unshared block has to fetch its
own from memory. Both models compute the same tokens; they are timed in turn.
"""

import time
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@torch.inference_mode()
def decode_seconds(model: "LlamaForCausalLM", tokens: Tensor, steps: int) -> list[float]:
    """Seconds of each of `steps` decode steps behind a prompt (batch, length), with a real KV cache.

    The cache has an entry for every virtual block, shared or not.
    """
    from transformers import DynamicCache

    cuda = tokens.device.type == "cuda"
    cache = DynamicCache(config=model.config)
    last = model(tokens, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)
    seconds = []
    for _ in range(steps):
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        last = model(last, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds


def paired_decoding(
    unshared: "LlamaForCausalLM", shared: "LlamaForCausalLM", prompt: Tensor, steps: int, rounds: int
) -> tuple[float, float]:
    """Median seconds a token of both, in `rounds` turns of `steps` tokens, after one turn that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        order = ((0, unshared), (1, shared)) if turn % 2 else ((1, shared), (0, unshared))
        for which, model in order:
            seconds = decode_seconds(model, prompt, steps)
            if turn:
                times[which].extend(seconds)
    return median(times[0]), median(times[1])
