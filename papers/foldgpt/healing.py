"""Healing: norms and low-rank adapters of every virtual block, taught by the original model's last layers.

    L = L_LM + beta sum_{last T blocks} mean (norm(h_student) - norm(h_teacher))^2 + gamma KL(teacher || student)

The matrices stand still, so that shared ones stay shared: adapters (peft) are what tells the blocks of a group apart.
The teacher runs once over all batches, beforehand. The abstract names light fine-tuning and tail-layer distillation;
beta, gamma, T, the norm inside the error (root mean square, without gains) and the KL term are inferred.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.llama import PROJECTIONS, embed, logits, through
from common.models.perplexity import token_losses
from common.training.loop import Batch, train, warmup_cosine
from papers.foldgpt.virtual_blocks import NORMS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Recipe:
    """How long and with what a folded model is healed."""

    steps: int
    rank: int = 4
    rate: float = 2e-3
    tail: int = 3  # T: how many of the last blocks are taught
    beta: float = 1.0  # weight of the last blocks' hidden states
    gamma: float = 1.0  # weight of the logits
    clip: float = 1.0


@torch.inference_mode()
def teach(model: "LlamaForCausalLM", tokens: Tensor, tail: int) -> Tensor:
    """What leaves each of a model's last `tail` blocks, float32 of shape (tail, batch, length, hidden).

    The last block's comes before the final norm. ValueError for more blocks than the model has.
    """
    if not 1 <= tail <= len(model.model.layers):
        raise ValueError(f"of {len(model.model.layers)} blocks 1 to all can teach, not {tail}")
    return torch.stack(_tail(model, tokens, tail))


def _tail(model: "LlamaForCausalLM", tokens: Tensor, tail: int) -> list[Tensor]:
    entered: list[Tensor] = []
    last = through(model, embed(model, tokens), before=lambda _, hidden: entered.append(hidden))
    return [*entered, last][-tail:]


def rms(hidden: Tensor) -> Tensor:
    """Hidden values (..., hidden) over their root mean square: RMSNorm without gains."""
    return hidden * (hidden.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()


def adapt(model: "LlamaForCausalLM", rank: int, generator: torch.Generator) -> list[nn.Parameter]:
    """Put low-rank adapters on every projection of every virtual block, in place; what is to be trained.

    They begin as zero (B = 0, A uniform as in LoRA, drawn from `generator`). Norm gains are trained too, matrices not.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(PROJECTIONS)), model)
    found: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            bound = math.sqrt(3 / parameter.shape[1])
            parameter.data.uniform_(-bound, bound, generator=generator)
        if "lora_" in name or any(norm in name for norm in NORMS):
            found.append(parameter)
        parameter.requires_grad_("lora_" in name or any(norm in name for norm in NORMS))
    return found


def heal(
    model: "LlamaForCausalLM",
    teacher: "LlamaForCausalLM",
    batch_at: Callable[[int], Batch],
    recipe: Recipe,
    generator: torch.Generator,
) -> list[float]:
    """Heal a folded model in place; the loss of every step.

    batch_at: tokens (rows, length) int64 and what `teach` gave for them, (rows, tail, length, hidden). The teacher's
    head alone is run again, for its logits. Nothing but adapters and the virtual blocks' own norms changes.
    """
    if not recipe.steps:
        return []
    chosen = adapt(model, recipe.rank, generator)
    tail = min(recipe.tail, len(model.model.layers))

    def loss_of(_: nn.Module, batch: Batch) -> Tensor:
        tokens, known = batch
        ours = _tail(model, tokens, tail)
        mine = logits(model, ours[-1])
        loss = token_losses(mine, tokens).mean()
        if recipe.beta:
            pairs = zip(ours, known.unbind(1)[-tail:], strict=True)
            loss = loss + recipe.beta * sum(F.mse_loss(rms(a), rms(b)) for a, b in pairs)
        if recipe.gamma:
            with torch.no_grad():
                theirs = logits(teacher, known[:, -1])
            loss = loss + recipe.gamma * divergence(theirs, mine)
        return loss

    optimiser = torch.optim.AdamW(chosen, lr=recipe.rate, weight_decay=0.0)
    schedule = warmup_cosine(max(1, recipe.steps // 10), recipe.steps)
    losses = train(model, optimiser, batch_at, loss_of, recipe.steps, schedule=schedule, clip=recipe.clip)
    model.requires_grad_(False)
    return losses


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher || student), nats, of logits (batch, length, vocab)."""
    theirs, mine = teacher.log_softmax(dim=-1).flatten(0, 1), student.log_softmax(dim=-1).flatten(0, 1)
    return F.kl_div(mine, theirs, reduction="batchmean", log_target=True)
