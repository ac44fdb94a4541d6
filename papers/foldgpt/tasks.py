"""Pieces of the experiment that run in processes of their own; each is a value, so that none runs twice.

A seed chooses the text: calibration and healing windows of WikiText-2's validation part, windows of its test part,
questions, and the start of adapters and small decoders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.lab.runtime import Runtime, one_thread
from common.models.choices import accuracy, ag_news, picked, sst2
from common.models.llama import load_smollm2, logits, new_llama, tokenizer
from common.models.perplexity import Windows, token_losses, window_losses
from common.models.texts import encoded, learn_vocabulary, random_windows
from common.training.language import language_batches
from common.training.loop import Batch
from papers.foldgpt.baselines import greedy_removals, laco, magnitudes, single_removals
from papers.foldgpt.depth_ladder import VOCABULARY, Rung, rung
from papers.foldgpt.gates import Pressure, Trained, train_gates
from papers.foldgpt.healing import Recipe, heal, teach
from papers.foldgpt.similarity import cosines, mutual, states
from papers.foldgpt.virtual_blocks import Fold, fold, without

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

CALIBRATION, HEALING, TEST, QUESTIONS = range(4)  # streams of a seed


@dataclass(frozen=True)
class Text:
    """Where the words come from, and how many of the model's blocks are used."""

    train: Path
    test: Path
    blocks: int = 30
    letters: int = 250_000  # of each text that are encoded: about 60,000 tokens

    def windows(self, file: Path, stream: int, seed: int, n: int, length: int) -> Tensor:
        """`n` random windows of a text, int64 of shape (n, length), of a seed's stream."""
        tokens = encoded(file, tokenizer(), self.letters)
        return random_windows(tokens, length, n, np.random.default_rng([seed, stream]))


@cache
def pretrained(blocks: int) -> "LlamaForCausalLM":
    """The first blocks of SmolLM2-135M, once a process; nobody changes it."""
    return load_smollm2(blocks)


@dataclass(frozen=True)
class Scores:
    """What the rankings rest on, of one seed's calibration text. Lists have an entry a block."""

    cosines: tuple[float, ...]
    losses: tuple[float, ...]  # nats a token that the block's removal alone costs
    magnitudes: tuple[float, ...]
    mutual: tuple[tuple[float, ...], ...]
    greedy: tuple[
        int, ...
    ]  # blocks in the order in which the greedy search removes them; empty: not searched
    pairs: tuple[tuple[int, int, float], ...]  # blocks a and b, and what removing both costs


@dataclass(frozen=True)
class Look:
    """Isolated scores of all blocks on `rows` windows of `length` tokens."""

    text: Text
    seed: int
    rows: int
    length: int
    greedy: int = 0  # blocks to remove greedily
    candidates: int = 12
    coupled: int = 0  # middle blocks whose pairwise removal is tried

    def run(self) -> Scores:
        model = pretrained(self.text.blocks)
        tokens = self.text.windows(self.text.train, CALIBRATION, self.seed, self.rows, self.length)
        entered = states(model, tokens)
        losses = single_removals(model, tokens)
        order = greedy_removals(model, tokens, self.greedy, self.candidates) if self.greedy else []
        middle = (self.text.blocks - self.coupled) // 2
        among = range(middle, middle + self.coupled)
        pairs = [
            (a, b, losses[a] + rise)
            for a in among
            for b, rise in single_removals(model, tokens, (a,), [b for b in among if b > a]).items()
        ]
        return Scores(
            tuple(cosines(entered)), tuple(losses[block] for block in range(self.text.blocks)),
            tuple(magnitudes(model)), tuple(map(tuple, mutual(entered).tolist())), tuple(order), tuple(pairs),
        )  # fmt: skip


@dataclass(frozen=True)
class LearnGates:
    """Gates trained jointly. shuffled: on the same tokens in random order, which no language model can predict."""

    text: Text
    seed: int
    steps: int
    rows: int
    length: int
    target: int
    rate: float
    pressure: Pressure
    shuffled: bool = False

    def run(self) -> Trained:
        tokens = encoded(self.text.train, tokenizer(), self.text.letters)
        if self.shuffled:
            tokens = tokens[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(tokens)))]
        batches = language_batches(tokens, self.rows, self.length, self.seed)
        model = pretrained(self.text.blocks)
        return train_gates(model, batches, self.steps, self.target, self.rate, self.pressure)


@dataclass(frozen=True)
class Climb:
    """One decoder of the depth ladder, on Tiny Shakespeare."""

    file: Path
    layers: int
    steps: int
    seed: int
    member: int

    def run(self) -> Rung:
        return rung(_shakespeare(self.file), self.layers, self.steps, self.seed, self.member)


@cache
def _shakespeare(file: Path) -> Tensor:
    words = learn_vocabulary(file.read_text("utf-8")[:100_000], VOCABULARY)
    return encoded(file, words, 300_000)


@dataclass(frozen=True)
class Trial:
    """What a model is tried on: windows of the test text and, where files are given, zero-shot questions."""

    windows: int
    length: int
    sst2: Path | None = None
    news: Path | None = None
    sentences: int = 0  # questions of SST-2
    stories: int = 0  # of AG News


@dataclass(frozen=True)
class Outcome:
    """Mean loss (nats a token) and shares of right answers; of the questions, only where they were asked."""

    loss: float
    next_word: float
    sst2: float | None = None
    news: float | None = None


@dataclass(frozen=True)
class Arm:
    """One model: folded by a plan, healed where the recipe has steps, and tried."""

    text: Text
    seed: int
    plan: Fold
    recipe: Recipe
    trial: Trial
    rows: int  # of a healing batch
    length: int
    shuffled_teacher: bool = False  # the teacher's states belong to other windows
    laco: bool = False  # as many blocks as the plan removes, but merged into others

    def run(self) -> Outcome:
        torch.manual_seed(self.seed)  # peft's own first draw, which `adapt` replaces
        teacher = pretrained(self.text.blocks)
        if self.laco:
            removed = self.text.blocks - len(self.plan.kept)
            tokens = self.text.windows(self.text.train, CALIBRATION, self.seed, 2, self.length)
            model, _ = laco(teacher, tokens, removed)
        else:
            model = fold(teacher, self.plan)
        if self.recipe.steps:
            batches = self._batches()
            heal(model, teacher, batches, self.recipe, torch.Generator().manual_seed(self.seed))
        return tried(model, self.text, self.seed, self.trial)

    def _batches(self) -> Callable[[int], Batch]:
        tokens, known = _lesson(
            self.text, self.seed, self.recipe.steps * self.rows, self.length, self.recipe.tail
        )

        def at(step: int) -> Batch:
            rows = slice(step * self.rows, (step + 1) * self.rows)
            return tokens[rows], known[rows]

        if self.shuffled_teacher:
            known = known.roll(self.rows, dims=0)
        return at


@cache
def _lesson(text: Text, seed: int, rows: int, length: int, tail: int) -> tuple[Tensor, Tensor]:
    """Healing windows of a seed and the teacher's last states for them, once a process."""
    tokens = text.windows(text.train, HEALING, seed, rows, length)
    known = [teach(pretrained(text.blocks), part, tail).transpose(0, 1) for part in tokens.split(8)]
    return tokens, torch.cat(known).clone()


def tried(model: "LlamaForCausalLM", text: Text, seed: int, trial: Trial) -> Outcome:
    """A model's loss and share of next words on the seed's test windows, and its answers to the seed's questions."""
    tokens = text.windows(text.test, TEST, seed, trial.windows, trial.length)
    right = []

    def run(part: Tensor) -> Tensor:
        found = model(part).logits
        right.append((found[:, :-1].argmax(dim=-1) == part[:, 1:]).float().mean())
        return found

    cut = Windows(tokens, torch.full((len(tokens),), trial.length - 1))
    sums, counts = window_losses(run, cut, batch=2)
    answers: list[float | None] = []
    rng = np.random.default_rng([seed, QUESTIONS])
    for file, read, n in ((trial.sst2, sst2, trial.sentences), (trial.news, ag_news, trial.stories)):
        if file is None or not n:
            answers.append(None)
            continue
        every = read(file)
        asked = [every[i] for i in rng.choice(len(every), n, replace=False)]
        answers.append(accuracy(picked(lambda t: model(t).logits, tokenizer(), asked, 128), asked))
    loss = float(sums.sum() / counts.sum())
    return Outcome(loss, float(torch.stack(right).mean()), *answers)


@dataclass(frozen=True)
class Untrained:
    """A model of SmolLM2's shape that has learnt nothing: its similarity profile, and what removals cost it."""

    text: Text
    seed: int
    length: int
    every: int = 5

    def run(self) -> tuple[list[float], dict[int, float]]:
        like = pretrained(self.text.blocks).config
        model = new_llama(
            torch.Generator().manual_seed(self.seed), vocab=like.vocab_size, hidden=like.hidden_size,
            layers=self.text.blocks, heads=like.num_attention_heads, kv_heads=like.num_key_value_heads,
            intermediate=like.intermediate_size,
        ).requires_grad_(False)  # fmt: skip
        tokens = self.text.windows(self.text.train, CALIBRATION, self.seed, 2, self.length)
        entered = states(model, tokens)
        whole = token_losses(logits(model, entered[-1]), tokens).mean()
        costs = {}
        for block in range(0, self.text.blocks, self.every):
            shorter = fold(model, without([block], self.text.blocks))
            with torch.inference_mode():
                costs[block] = float(token_losses(shorter(tokens).logits, tokens).mean() - whole)
        return cosines(entered), costs


Task = Look | LearnGates | Climb | Arm | Untrained


def perform(task: Task) -> Any:
    """A task's result; a function of a module, for worker processes."""
    return task.run()


_done: dict[
    Task, Any
] = {}  # results of this process: a control repeats nothing that its switch leaves as it was


def forget() -> None:
    """Drop the results kept in this process, so that a run computes everything again."""
    _done.clear()


def outcomes(lab: Runtime, tasks: Sequence[Task], label: str, parallel: bool = True) -> list[Any]:
    """Results of tasks, in order; equal tasks run once a process. parallel: in processes, where that pays."""
    new = [task for task in dict.fromkeys(tasks) if task not in _done]
    short = len(new) <= 3  # processes take some eight seconds to begin
    if parallel and not short:
        results = lab.map(perform, new, label)
    else:
        with one_thread():
            results = [perform(task) for task in lab.progress(new, label)]
    _done.update(zip(new, results, strict=True))
    return [_done[task] for task in tasks]
