"""Decoders of several depths trained on the same tokens: does the similarity of neighbours grow with the model?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.models.llama import new_llama
from common.training.language import language_batches, language_loss
from common.training.loop import train, warmup_cosine
from papers.foldgpt.similarity import cosines, states

WIDTH, VOCABULARY, ROWS, LENGTH = 64, 512, 8, 64


@dataclass(frozen=True)
class Rung:
    """One trained decoder: mean cosine over its blocks, the same before training, parameters, last loss (nats)."""

    layers: int
    cosine: float
    untrained: float
    parameters: int
    loss: float


def rung(text: Tensor, layers: int, steps: int, seed: int, member: int = 0) -> Rung:
    """Train a decoder of `layers` blocks; text: tokens below VOCABULARY, the last tenth is for looking at similarity.

    member: tells models of the same seed and depth apart; the order of the data is the seed's alone.
    """
    model = new_llama(
        torch.Generator().manual_seed(1000 * seed + member), vocab=VOCABULARY, hidden=WIDTH, layers=layers
    )
    seen, held = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    looked = held[: 4 * LENGTH].view(4, LENGTH)
    before = cosines(states(model, looked))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1)
    losses = train(
        model, optimiser, language_batches(seen, ROWS, LENGTH, seed), language_loss, steps,
        schedule=warmup_cosine(max(1, steps // 10), steps), clip=1.0,
    )  # fmt: skip
    after = cosines(states(model.eval(), looked))
    return Rung(
        layers,
        sum(after) / layers,
        sum(before) / layers,
        sum(p.numel() for p in model.parameters()),
        sum(losses[-5:]) / len(losses[-5:]),
    )
