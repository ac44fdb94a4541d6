"""The other tasks of Table 1, small: a CNN on images, fine-tuning on sentences, translation."""

import gzip
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.choices import sst2
from common.models.llama import load_smollm2, new_llama, tokenizer
from common.models.texts import learn_vocabulary
from common.training.loop import Batch, warmup_cosine
from papers.eight_bit_optimizers.runs import Job
from papers.eight_bit_optimizers.stable_embedding import replace_embedding

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def drawn(parts: tuple[Tensor, ...], rows: int, seed: int) -> Callable[[int], Batch]:
    """Batches of rows drawn without repetition, in a new order each epoch; a function of the step."""
    per_epoch = len(parts[0]) // rows

    @cache
    def order(epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(parts[0])))

    def at(step: int) -> Batch:
        first = step % per_epoch * rows
        chosen = order(step // per_epoch)[first : first + rows]
        return tuple(part[chosen] for part in parts)

    return at


def classified(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy, nats, of (inputs, labels) or (inputs, lengths, labels)."""
    *inputs, labels = batch
    return F.cross_entropy(model(*inputs), labels)


def score_on(parts: tuple[Tensor, ...], rows: int) -> Callable[[nn.Module], tuple[float, float]]:
    """Held-out loss in nats, and share of right answers."""
    *inputs, labels = parts

    def score(model: nn.Module) -> tuple[float, float]:
        pieces = zip(*(part.split(rows) for part in inputs), strict=True)
        outputs = torch.cat([model(*piece) for piece in pieces])
        right = float((outputs.argmax(dim=1) == labels).float().mean())
        return float(F.cross_entropy(outputs, labels)), right

    return score


@dataclass(frozen=True)
class ImageTask:
    """A convolutional network with batch norm on CIFAR-10's images, or on scikit-learn's digits without files."""

    train: tuple[Path, ...] = ()  # zips of <class>/<number>.jpg
    test: Path | None = None
    images: int = 5000
    steps: int = 200
    rows: int = 64

    def job(self, seed: int) -> Job:
        """See Task: weights and order of the images come from the seed."""
        if self.train and self.test is not None:
            parts = [torch.cat(side) for side in zip(*(jpegs(file) for file in self.train), strict=True)]
            images, labels = parts[0][: self.images], parts[1][: self.images]
            held_out = jpegs(self.test)
        else:
            (images, labels), held_out = digits()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cnn(images.shape[1])
        schedule = warmup_cosine(max(1, self.steps // 10), self.steps, last=0.01)
        batches = drawn((images, labels), self.rows, seed)
        return Job(model, None, batches, classified, score_on(held_out, 256), schedule, None)


def cnn(channels: int) -> nn.Module:
    """Three strided convolutions and a linear layer; 68,000 parameters for colour images of 32 x 32."""
    widths = (channels, 32, 64, 64)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, 10))


@cache
def jpegs(file: Path) -> tuple[Tensor, Tensor]:
    """Images float32 (n, 3, 32, 32) around zero, and classes, in an order that mixes the classes."""
    from PIL import Image

    with zipfile.ZipFile(file) as archive:
        names = sorted(
            (n for n in archive.namelist() if n.endswith(".jpg")), key=lambda n: n.split("/")[::-1]
        )
        classes = {name: index for index, name in enumerate(sorted({n.split("/")[-2] for n in names}))}
        pixels = np.stack([np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)
    return images.contiguous(), torch.tensor([classes[name.split("/")[-2]] for name in names])


@cache
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1,797 handwritten digits enlarged to 16 x 16; the last 497 held out."""
    from sklearn.datasets import load_digits

    known = load_digits()
    images = torch.tensor(known.images, dtype=torch.float32)[:, None].div_(8).sub_(1)
    images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    labels = torch.tensor(known.target)
    return (images[:1300], labels[:1300]), (images[1300:], labels[1300:])


@dataclass(frozen=True)
class SentenceTask:
    """Film reviews (SST-2) by fine-tuning SmolLM2-135M's lowest blocks and a linear layer; its embedding is frozen."""

    train: Path
    test: Path
    sentences: int = 6920
    tested: int = 500
    layers: int = 1
    steps: int = 40
    rows: int = 16
    longest: int = 24  # tokens of a sentence that are kept

    def job(self, seed: int) -> Job:
        """See Task: the linear layer and the order of the sentences come from the seed."""
        model = Classifier(load_smollm2(self.layers), 2, torch.Generator().manual_seed(seed))
        score = score_on(sentences(self.test, self.tested, self.longest), 64)
        batches = drawn(sentences(self.train, self.sentences, self.longest), self.rows, seed)
        schedule = warmup_cosine(max(1, self.steps // 10), self.steps, last=0.0)
        return Job(model, None, batches, classified, score, schedule, 1.0)


class Classifier(nn.Module):
    """A linear layer on the mean of a decoder's last hidden values; blocks learn, the embedding does not."""

    def __init__(self, decoder: "LlamaForCausalLM", classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.decoder = decoder.model
        self.decoder.layers.requires_grad_(True)
        self.decoder.norm.requires_grad_(True)
        width = decoder.config.hidden_size
        self.head = nn.Parameter(torch.randn(classes, width, generator=generator) * width**-0.5)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """int64 (n, longest) padded behind, lengths (n,); logits (n, classes)."""
        hidden = self.decoder(tokens).last_hidden_state
        counted = (torch.arange(tokens.shape[1]) < lengths[:, None])[..., None]
        return (hidden * counted).sum(dim=1) / lengths[:, None] @ self.head.T


@cache
def sentences(file: Path, most: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens int64 (n, longest) padded with 0 behind, lengths and labels (n,)."""
    known = sst2(file)[:most]
    rows = [
        tokenizer().encode(row.prompt.removeprefix("Review: ").split("\n")[0]).ids[:longest] for row in known
    ]
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return padded, torch.tensor([len(row) for row in rows]), torch.tensor([row.answer for row in known])


@dataclass(frozen=True)
class TranslationTask:
    """English to German on Multi30k's captions: a decoder reads a line and its translation, and learns the second."""

    english: Path
    german: Path
    pairs: int = 1000  # the last tenth is held out
    vocab: int = 4096
    hidden: int = 64
    layers: int = 2
    longest: int = 64  # tokens of a pair that are kept
    rows: int = 8
    steps: int = 100
    stable: bool = True

    def job(self, seed: int) -> Job:
        """See Task: weights and order of the pairs come from the seed."""
        generator = torch.Generator().manual_seed(seed)
        model = new_llama(
            generator, vocab=self.vocab, hidden=self.hidden, layers=self.layers, positions=self.longest
        )
        embedding = replace_embedding(model, generator, self.stable)
        pairs = translations(self.english, self.german, self.pairs, self.vocab, self.longest)
        kept = len(pairs[0]) * 9 // 10
        held_out = tuple(part[kept:] for part in pairs)
        return Job(
            model=model,
            wide=embedding if self.stable else None,
            batch_at=drawn(tuple(part[:kept] for part in pairs), self.rows, seed),
            loss_of=translated,
            score=lambda trained: (float(translated(trained, held_out)), math.nan),
            schedule=warmup_cosine(max(1, self.steps // 10), self.steps),
            clip=1.0,
        )


def translated(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy, nats, of the second line's tokens; batch: tokens and which of them count."""
    tokens, counted = batch
    flat = model(tokens).logits[:, :-1].flatten(0, 1)
    losses = F.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="none")
    weights = counted[:, 1:].flatten().float()
    return (losses * weights).sum() / weights.sum()


@cache
def translations(english: Path, german: Path, most: int, vocab: int, longest: int) -> tuple[Tensor, Tensor]:
    """Pairs as tokens int64 (n, longest), padded with 0 behind, and which are of the second line, bool."""
    lines = []
    for file in (english, german):
        with gzip.open(file, "rt", encoding="utf-8") as text:
            lines.append(text.read().splitlines()[:most])
    known = learn_vocabulary("\n".join(line for side in lines for line in side), vocab)
    rows, counted = [], []
    for first, second in zip(*lines, strict=True):
        a, b = (known.encode(f"{line}\n").ids for line in (first, second))
        row = (a + b)[:longest]
        rows.append(row + [0] * (longest - len(row)))
        counted.append([len(a) <= place < len(row) for place in range(longest)])
    return torch.tensor(rows), torch.tensor(counted)
