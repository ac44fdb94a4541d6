"""The language model of the ablation: a small Llama with a vocabulary of byte pairs, next tokens of Wikipedia's text.

Rare tokens are what the stable embedding is about: the vocabulary is learnt from natural text, where a few tokens are
most of it and thousands are seen a handful of times.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.models.llama import new_llama
from common.models.perplexity import window_losses, windows
from common.models.texts import encoded, learn_vocabulary
from common.training.language import language_batches, language_loss
from common.training.loop import warmup_cosine
from papers.eight_bit_optimizers.runs import Job
from papers.eight_bit_optimizers.stable_embedding import replace_embedding

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class LanguageTask:
    """Sizes, files, and which embedding the model has."""

    text: Path  # to train on; the vocabulary is learnt from it
    held_out: Path
    vocab: int = 8192
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 64
    rows: int = 4
    steps: int = 80
    scored: int = 48  # windows of the held-out text
    stable: bool = True
    layer_norm: bool = True  # False: a stable embedding without its norm
    wide: bool = True  # False: a stable embedding with states as all others

    def job(self, seed: int) -> Job:
        """See Task: weights and the windows of each batch come from the seed."""
        generator = torch.Generator().manual_seed(seed)
        model = new_llama(
            generator, vocab=self.vocab, hidden=self.hidden, layers=self.layers, heads=self.heads,
            positions=self.length,
        )  # fmt: skip
        embedding = replace_embedding(model, generator, self.stable, self.layer_norm)
        cut = windows(tokens_of(self.held_out, self.text, self.vocab), self.length, most=self.scored)

        def score(trained: nn.Module) -> tuple[float, float]:
            sums, counts = window_losses(lambda tokens: trained(tokens).logits, cut, batch=self.rows)
            return float(sums.sum() / counts.sum()), math.nan

        return Job(
            model=model,
            wide=embedding if self.stable and self.wide else None,
            batch_at=language_batches(
                tokens_of(self.text, self.text, self.vocab), self.rows, self.length, seed
            ),
            loss_of=language_loss,
            score=score,
            schedule=warmup_cosine(max(1, self.steps // 10), self.steps),
            clip=1.0,
        )


@cache
def tokens_of(file: Path, learnt_from: Path, vocab: int) -> Tensor:
    """A file's tokens, int64, in the vocabulary learnt from another."""
    return encoded(file, learn_vocabulary_of(learnt_from, vocab))


@cache
def learn_vocabulary_of(file: Path, vocab: int) -> "Tokenizer":
    """See learn_vocabulary; once a process."""
    return learn_vocabulary(file.read_text("utf-8"), vocab)
