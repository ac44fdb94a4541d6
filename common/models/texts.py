"""Texts as tokens: files encoded once, vocabularies learnt from a text, random windows for training and calibration."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@cache
def encoded(file: Path, tokenizer: "Tokenizer", letters: int | None = None) -> Tensor:
    """A UTF-8 file's tokens, int64 of shape (n,), of its first `letters` characters (None: all); remembered."""
    return torch.tensor(tokenizer.encode(file.read_text("utf-8")[:letters]).ids)


def learn_vocabulary(text: str, size: int) -> "Tokenizer":
    """A byte-pair tokenizer of `size` tokens, learnt from a text: frequent words whole, rare ones in pieces.

    Nothing is unknown to it, for it begins with the 256 bytes. ValueError for a text that does not yield `size` tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=bytes_, show_progress=False)
    made.train_from_iterator(text.splitlines(keepends=True), trainer)
    if made.get_vocab_size() != size:
        raise ValueError(f"this text yields {made.get_vocab_size()} tokens, not {size}")
    return made


def random_windows(tokens: Tensor, length: int, n: int, rng: np.random.Generator) -> Tensor:
    """`n` windows of a text at random places, int64 of shape (n, length): a calibration set, or a training batch.

    ValueError for a text shorter than a window.
    """
    if len(tokens) < length:
        raise ValueError(f"a text of {len(tokens)} tokens has no window of {length}")
    starts = torch.from_numpy(rng.integers(0, len(tokens) - length + 1, n))
    return tokens[starts[:, None] + torch.arange(length)]
