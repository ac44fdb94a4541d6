"""Zero-shot multiple choice: a language model picks the continuation that it finds most likely.

The score of an option is the sum of its tokens' log-likelihoods behind the prompt (lm-evaluation-harness: acc).
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Choice:
    """A question: `options[answer]` is right; options begin with a blank where the prompt does not end in one."""

    prompt: str
    options: tuple[str, ...]
    answer: int


def sst2(file: Path) -> list[Choice]:
    """Sentiment of film reviews (SST-2): lines of sentence, tab, 0 or 1."""
    lines = [line.rsplit("\t", 1) for line in file.read_text("utf-8").splitlines() if line]
    return [
        Choice(f"Review: {sentence.strip()}\nSentiment:", (" negative", " positive"), int(label))
        for sentence, label in lines
    ]


def ag_news(file: Path) -> list[Choice]:
    """Topics of news (AG News): class 1 to 4, title, description."""
    topics = (" world", " sports", " business", " technology")
    with file.open(encoding="utf-8", newline="") as rows:
        return [
            Choice(f"News: {title} {text}\nTopic:", topics, int(label) - 1)
            for label, title, text in csv.reader(rows)
        ]


@torch.inference_mode()
def picked(
    model: Callable[[Tensor], Tensor], tokenizer: "Tokenizer", choices: Sequence[Choice], longest: int = 512
) -> list[int]:
    """The option that the model finds most likely, for each choice.

    model: tokens (batch, length) to logits (batch, length, vocab). The options of a choice run as one batch, padded
    behind, where causal attention does not look; options of one token need the prompt alone. Of a prompt only the last
    tokens are kept, so that with the longest option `longest` tokens remain.
    """
    found = []
    for choice in choices:
        options = [tuple(tokenizer.encode(option).ids) for option in choice.options]
        width = max(len(option) for option in options)
        prompt = tokenizer.encode(choice.prompt).ids[-(longest - width) :]
        fed = list(dict.fromkeys(option[:-1] for option in options))  # nothing follows an option's last token
        rows = torch.tensor([[*prompt, *begun, *[0] * (width - 1 - len(begun))] for begun in fed])
        likely = model(rows)[:, len(prompt) - 1 :].float().log_softmax(dim=-1)
        scores = [
            sum(float(likely[fed.index(option[:-1]), i, token]) for i, token in enumerate(option))
            for option in options
        ]
        found.append(scores.index(max(scores)))
    return found


def accuracy(answers: Sequence[int], choices: Sequence[Choice]) -> float:
    """Share of choices answered right. ValueError for another number of answers than choices, or none."""
    if not choices or len(answers) != len(choices):
        raise ValueError(f"{len(answers)} answers to {len(choices)} choices")
    right = sum(answer == choice.answer for answer, choice in zip(answers, choices, strict=True))
    return right / len(choices)
