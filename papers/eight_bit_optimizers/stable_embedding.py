"""The stable embedding layer (Section 2.3) and the standard one, for a Llama whose output weights are its embedding's.

Stable: Xavier-uniform weights, layer norm behind the lookup, no scaling, states in 32 bits. Standard, as in fairseq,
which the paper's language models were trained with: normal weights with standard deviation d^-1/2, scaled by d^1/2.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class Embedding(nn.Module):
    """From tokens to vectors. layer_norm False leaves the norm out of a stable embedding."""

    def __init__(
        self,
        tokens: int,
        width: int,
        generator: torch.Generator,
        stable: bool = True,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))
        self.norm = nn.LayerNorm(width) if stable and layer_norm else None
        self.scale = 1.0 if stable else math.sqrt(width)
        if stable:
            nn.init.xavier_uniform_(self.weight, generator=generator)
        else:
            nn.init.normal_(self.weight, std=width**-0.5, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 of shape (...) to (..., width)."""
        found = F.embedding(tokens, self.weight) * self.scale
        return found if self.norm is None else self.norm(found)


def replace_embedding(
    model: "LlamaForCausalLM", generator: torch.Generator, stable: bool, layer_norm: bool = True
) -> Embedding:
    """Give a new model another embedding, tied to its output weights; the embedding."""
    tokens, width = model.model.embed_tokens.weight.shape
    made = Embedding(tokens, width, generator, stable, layer_norm)
    model.model.embed_tokens = made  # type: ignore[assignment]
    model.lm_head.weight = made.weight
    return made


def parameter_groups(model: nn.Module, wide: nn.Module | None) -> list[dict[str, Any]]:
    """For an optimizer: all parameters of a model, those of `wide` with 32-bit states."""
    kept = [] if wide is None else list(wide.parameters())
    ids = {id(parameter) for parameter in kept}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    return [{"params": others}] + ([{"params": kept, "bits": 32}] if kept else [])
