"""What the gates are compared with: isolated scores of blocks, a greedy search, and LaCo's merging of layers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.models.llama import linears, logits, through
from common.models.perplexity import token_losses
from papers.foldgpt.similarity import cosines, states
from papers.foldgpt.virtual_blocks import Fold, fold, unfolded, without

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def ranked(scores: Iterable[float]) -> list[int]:
    """Blocks from the lowest score: the first to go."""
    known = list(scores)
    return sorted(range(len(known)), key=lambda block: (known[block], block))


def block_influence(entered: list[Tensor]) -> list[float]:
    """ShortGPT: BI_l = 1 - cos(x_l, x_{l+1}), of what `states` gave."""
    return [1 - cosine for cosine in cosines(entered)]


@torch.inference_mode()
def single_removals(
    model: "LlamaForCausalLM",
    tokens: Tensor,
    removed: tuple[int, ...] = (),
    among: Iterable[int] | None = None,
) -> dict[int, float]:
    """Shortened LLaMA: how much the loss (nats a token) rises if one block more than `removed` goes.

    among: the blocks tried, all others if None. What enters a removed block is known, so that each trial runs only the
    blocks behind it.
    """
    shorter = fold(model, without(removed, len(model.model.layers))) if removed else model
    kept = [block for block in range(len(model.model.layers)) if block not in removed]
    entered = states(shorter, tokens)
    whole = float(token_losses(logits(model, entered[-1]), tokens).mean())
    tried = set(kept if among is None else among)
    return {
        block: float(
            token_losses(logits(model, through(shorter, entered[place], place + 1)), tokens).mean()
        ) - whole
        for place, block in enumerate(kept)
        if block in tried
    }  # fmt: skip


def greedy_removals(model: "LlamaForCausalLM", tokens: Tensor, count: int, candidates: int) -> list[int]:
    """Shortened LLaMA, iterated: `count` blocks, each the least harmful once its predecessors are gone.

    candidates: how many blocks, by their loss when removed alone, are tried in each round.
    """
    alone = single_removals(model, tokens)
    among = sorted(alone, key=alone.__getitem__)[:candidates]
    removed = [among[0]]
    while len(removed) < count:
        losses = single_removals(model, tokens, tuple(sorted(removed)), set(among) - set(removed))
        removed.append(min(losses, key=losses.__getitem__))
    return removed


def magnitudes(model: "LlamaForCausalLM") -> list[float]:
    """Summed absolute weights of each block: the smallest goes first."""
    sums = [0.0] * len(model.model.layers)
    for name, linear in linears(model).items():
        sums[int(name.split(".")[0])] += float(linear.weight.detach().abs().sum())
    return sums


@torch.inference_mode()
def laco(
    model: "LlamaForCausalLM", tokens: Tensor, removed: int, merge: int = 3, threshold: float = 0.65
) -> tuple["LlamaForCausalLM", Fold]:
    """LaCo: a block takes up the differences of the next `merge` - 1 blocks, which go, from the back to the front.

    theta_l <- theta_l + sum_k (theta_{l+k} - theta_l), kept where the cosine of the model's last hidden state to the
    original's stays above `threshold`; it falls by 0.1 for each pass that ends with too few blocks gone (ours: the
    paper picks threshold and range by hand for a wanted size). Returns a model with its own matrices, and its plan.
    """
    blocks = len(model.model.layers)
    target = states(model, tokens)[-1]
    merged = fold(model, unfolded(blocks), copies=True)
    gone: set[int] = set()
    place = blocks - merge
    while len(gone) < removed:
        heads = [block for block in range(blocks) if block not in gone]
        group = [block for block in heads if block >= place][:merge]
        group = group[: removed - len(gone) + 1]
        if place <= 0 or len(group) < 2:
            place, threshold = blocks - merge, threshold - 0.1
            continue
        before = {name: linear.weight for name, linear in linears(merged).items()}
        _take_up(merged, group)
        trial = fold(merged, without(gone | set(group[1:]), blocks))
        cosine = float(torch.cosine_similarity(states(trial, tokens)[-1], target, dim=-1).mean())
        if cosine > threshold:
            gone |= set(group[1:])
        else:
            for name, linear in linears(merged).items():
                linear.weight = before[name]
        place -= merge - 1 if cosine > threshold else 1
    plan = without(gone, blocks)
    return fold(merged, plan), plan


def _take_up(model: "LlamaForCausalLM", group: list[int]) -> None:
    first, *others = group
    every = linears(model)
    for name, linear in every.items():
        block, projection = name.split(".")
        if int(block) == first:
            added = sum(every[f"{other}.{projection}"].weight - linear.weight for other in others)
            linear.weight = nn.Parameter(linear.weight + added, requires_grad=False)
