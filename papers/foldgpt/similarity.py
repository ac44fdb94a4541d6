"""How alike neighbouring blocks' outputs are: what makes blocks look redundant, and which of them share weights.

    cos_l = mean over tokens of cosine(x_l, x_{l+1})

with x_l what enters block l. The last x is taken before the final norm: behind it the last block would look useless.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.llama import embed, through

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@torch.inference_mode()
def states(model: "LlamaForCausalLM", tokens: Tensor) -> list[Tensor]:
    """x_0 ... x_L of tokens (batch, length), each (batch, length, hidden); x_L has not met the final norm."""
    seen: list[Tensor] = []
    last = through(model, embed(model, tokens), before=lambda _, hidden: seen.append(hidden))
    return [*seen, last]


def cosines(entered: list[Tensor], shift: int = 0) -> list[float]:
    """cos_l of every block, from `states`. shift: compare with the token that many places on, another token's state."""
    return [
        float(F.cosine_similarity(before, after.roll(shift, dims=1), dim=-1).mean())
        for before, after in zip(entered, entered[1:], strict=False)
    ]


def mutual(entered: list[Tensor]) -> Tensor:
    """Mean cosine over tokens between the outputs of every two blocks, float32 of shape (blocks, blocks)."""
    outputs = torch.stack([F.normalize(state.flatten(0, 1), dim=-1) for state in entered[1:]])
    return torch.einsum("atd,btd->ab", outputs, outputs) / outputs.shape[1]
