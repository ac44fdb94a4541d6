"""Activation-aware scaling: W diag(s) in place of W, and inputs divided by s.

s is large where a channel's inputs are large, so that a decomposition that knows no inputs approximates the channels
that matter best. The division goes into what makes the inputs, exactly: the gains of the norm before q, k, v and before
gate and up; the rows of up_proj before down_proj; the rows of v_proj before o_proj where their shapes agree. Under
grouped-query attention they don't, and o_proj's inputs are divided explicitly.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.models.capture import Channels, watching
from common.models.llama import embed, linears, through

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

READERS = {  # who reads the same inputs; the first name stands for them
    "q_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
OFFSET = 1e-3  # the repository's get_act_scale

Scales = Mapping[
    str, Tensor
]  # by names such as `3.q_proj`, one for each reader's first name; float32 (inputs,)


def inputs_of(model: "LlamaForCausalLM") -> dict[str, nn.Linear]:
    """One linear layer for each distinct input, by names such as `3.q_proj`."""
    return {name: layer for name, layer in linears(model).items() if name.partition(".")[2] in READERS}


@torch.inference_mode()
def channel_scales(
    model: "LlamaForCausalLM", windows: Tensor, see: Callable[[str, Tensor], None] | None = None
) -> dict[str, Tensor]:
    """s of every distinct input: the norm of a channel over a window's tokens, averaged over windows, plus 1e-3.

    windows: calibration tokens, int64 (n, length). see: called with every input too, for whoever else needs it.
    """
    sums: dict[str, Tensor] = {}
    for window in windows:
        seen = Channels()
        with watching(inputs_of(model), seen), watching(inputs_of(model) if see else {}, see or seen):
            through(model, embed(model, window[None]))
        for name, squares in seen.squares.items():
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares.sqrt()
    return {name: (total / len(windows) + OFFSET).float() for name, total in sums.items()}


def permuted(scales: Scales, generator: torch.Generator) -> dict[str, Tensor]:
    """The same scales on the wrong channels: a negative control."""
    return {name: s[torch.randperm(len(s), generator=generator)] for name, s in scales.items()}


@torch.no_grad()
def fold(model: "LlamaForCausalLM", scales: Scales) -> None:
    """Scale all weights and divide all inputs, in place; the model computes what it did before, but for rounding.

    ValueError for a scale that is not positive.
    """
    for name, s in scales.items():
        if not bool((s > 0).all()):
            raise ValueError(f"the scale of {name} is not positive everywhere")
        index, _, reader = name.partition(".")
        block = model.model.layers[int(index)]
        for layer in READERS[reader]:
            _linear(block, layer).weight.mul_(s)
        if reader == "q_proj":
            block.input_layernorm.weight.div_(s)
        elif reader == "gate_proj":
            block.post_attention_layernorm.weight.div_(s)
        elif reader == "down_proj":
            block.mlp.up_proj.weight.div_(s[:, None])
        elif _linear(block, "v_proj").out_features == len(s):
            _linear(block, "v_proj").weight.div_(s[:, None])
        else:  # grouped-query attention: one row of v_proj feeds several inputs of o_proj
            _linear(block, "o_proj").register_forward_pre_hook(lambda _, inputs, s=s: (inputs[0] / s,))


def explicit_divisions(model: "LlamaForCausalLM") -> int:
    """How many numbers the divisions keep that no weight could take."""
    grouped = model.config.num_key_value_heads != model.config.num_attention_heads
    return sum(block.self_attn.o_proj.in_features for block in model.model.layers) if grouped else 0


def _linear(block: nn.Module, name: str) -> nn.Linear:
    holder = block.mlp if name in ("gate_proj", "up_proj", "down_proj") else block.self_attn
    return getattr(holder, name)
