"""Language models trained from scratch: batches of a text, next-token loss, and a tiny decoder ready to use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from common.models.llama import new_llama
from common.models.perplexity import token_losses
from common.models.texts import encoded, learn_vocabulary, random_windows
from common.training.loop import Batch, Checkpoints, train, warmup_cosine

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM


def language_batches(tokens: Tensor, rows: int, length: int, seed: int) -> Callable[[int], Batch]:
    """Batches for `train`: `rows` random windows of a text, int64 of shape (rows, length), a function of the step."""

    def at(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        return (random_windows(tokens, length, rows, rng),)

    return at


def language_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token, nats; for models that return `.logits`, as transformers' do."""
    (tokens,) = batch
    return token_losses(model(tokens).logits, tokens).mean()


@dataclass(frozen=True)
class TinyDecoder:
    """A trained model, its tokenizer, and the loss of every step, nats."""

    model: "LlamaForCausalLM"
    tokenizer: "Tokenizer"
    losses: tuple[float, ...]


def tiny_decoder(
    text: Path, seed: int = 0, steps: int = 400, vocab: int = 1024, checkpoints: Checkpoints | None = None
) -> TinyDecoder:
    """A decoder of 4 layers, 128 wide, trained on a text such as Tiny Shakespeare; under two minutes on two cores.

    steps: batches of 16 windows of 128 tokens. The last tenth of the text is left for evaluation.
    """
    content = text.read_text("utf-8")
    seen = content[: len(content) * 9 // 10]
    tokenizer = learn_vocabulary(seen, vocab)
    model = new_llama(torch.Generator().manual_seed(seed), vocab=vocab)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.1)
    losses = train(
        model,
        optimiser,
        language_batches(encoded(text, tokenizer, len(seen)), 16, 128, seed),
        language_loss,
        steps,
        schedule=warmup_cosine(max(1, steps // 20), steps),
        clip=1.0,
        checkpoints=checkpoints,
    )
    return TinyDecoder(model.eval(), tokenizer, tuple(losses))
