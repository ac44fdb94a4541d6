"""A folded model: virtual blocks in a row, several of which may run the same matrices.

A virtual block is one step of the forward pass. It has its own RMSNorm gains (the paper's "layernorm re-adaptation"),
its own entry in the KV cache and, once healed, its own adapters; its matrices are those of its group's parent, by
reference. The result is an ordinary LlamaForCausalLM of transformers, so that generation and caches are the library's.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from common.models.llama import linears

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Fold:
    """Which blocks of `blocks` stay, and whose matrices each of them runs: parents[i] for the virtual block kept[i]."""

    blocks: int
    kept: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.kept) != sorted(set(self.kept)) or not set(self.kept) <= set(range(self.blocks)):
            raise ValueError(f"kept blocks ascend within 0..{self.blocks - 1}, not {self.kept}")
        if not self.kept or len(self.parents) != len(self.kept) or not set(self.parents) <= set(self.kept):
            raise ValueError(f"each kept block has a parent that is kept itself, not {self.parents}")

    @property
    def removal_rate(self) -> float:
        """Share of blocks that are gone: what saves compute."""
        return 1 - len(self.kept) / self.blocks

    @property
    def sharing_rate(self) -> float:
        """Share of blocks that are there but bring no matrices of their own: what saves size alone."""
        return (len(self.kept) - len(set(self.parents))) / self.blocks

    @property
    def shared(self) -> tuple[int, ...]:
        """Places of the virtual blocks whose matrices another one runs too."""
        return tuple(i for i, parent in enumerate(self.parents) if self.parents.count(parent) > 1)


def unfolded(blocks: int) -> Fold:
    """The original model."""
    return without((), blocks)


def without(removed: Iterable[int], blocks: int) -> Fold:
    """Removal alone. ValueError for a block that there is not."""
    gone = set(removed)
    if not gone <= set(range(blocks)):
        raise ValueError(f"of {blocks} blocks numbers {sorted(gone)} can't be removed")
    kept = tuple(block for block in range(blocks) if block not in gone)
    return Fold(blocks, kept, kept)


def fold(model: "LlamaForCausalLM", plan: Fold, *, copies: bool = False) -> "LlamaForCausalLM":
    """The folded model; its matrices, embedding and head are the parameters of `model` itself, its norms are its own.

    copies: every virtual block gets its own copy of its parent's matrices in memory: the same function, nothing saved.
    ValueError for a plan of another number of blocks.
    """
    from transformers import LlamaForCausalLM

    if plan.blocks != len(model.model.layers):
        raise ValueError(f"a plan for {plan.blocks} blocks does not fit a model of {len(model.model.layers)}")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(plan.kept)
    with torch.device("meta"):
        folded = LlamaForCausalLM(config)
    folded.model.rotary_emb = model.model.rotary_emb
    folded.model.embed_tokens, folded.lm_head = model.model.embed_tokens, model.lm_head
    folded.model.norm = copy.deepcopy(model.model.norm)
    theirs = linears(model)
    for virtual, block in zip(folded.model.layers, plan.kept, strict=True):
        for name in NORMS:
            setattr(virtual, name, copy.deepcopy(getattr(model.model.layers[block], name)))
    for name, linear in linears(folded).items():
        place, projection = name.split(".")
        parent = plan.parents[int(place)]
        weight = theirs[f"{parent}.{projection}"].weight
        linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False) if copies else weight
    return folded.train(model.training)


def unique_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes that parameters hold in memory; a storage that several of them share counts once."""
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}.values())


@dataclass(frozen=True)
class Size:
    """Numbers of parameters that a stored model needs, each once."""

    matrices: int
    norms: int
    adapters: int  # of shared blocks alone: those of a block with its own matrices are merged into them
    embedding: int

    def compression(self, original: "Size", *, embedding: bool = False) -> float:
        """1 - ours / original, of the blocks; embedding: of the whole model."""
        ours, theirs = (
            size.matrices + size.norms + size.adapters + embedding * size.embedding
            for size in (self, original)
        )
        return 1 - ours / theirs


def size_of(model: "LlamaForCausalLM", plan: Fold, rank: int = 0) -> Size:
    """What a fold of `model` stores, with adapters of this rank on its shared blocks."""
    every = linears(model)
    per_block = [
        sum(linear.weight.numel() for name, linear in every.items() if name.startswith(f"{block}."))
        for block in range(plan.blocks)
    ]
    adapter = sum(sum(linear.weight.shape) for name, linear in every.items() if name.startswith("0."))
    norms = sum(getattr(model.model.layers[0], name).weight.numel() for name in NORMS)
    return Size(
        matrices=sum(per_block[parent] for parent in set(plan.parents)),
        norms=len(plan.kept) * norms,
        adapters=len(plan.shared) * rank * adapter,
        embedding=model.model.embed_tokens.weight.numel(),
    )
