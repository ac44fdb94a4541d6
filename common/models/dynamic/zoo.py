"""The nine networks by name, built, seeded and calibrated; and inputs for them, real where there are any."""

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.models.dynamic.calibration import initialise
from common.models.dynamic.cascade import ResolutionCascade
from common.models.dynamic.decoder import GreedyDecoder
from common.models.dynamic.early_exit import EarlyExitResNet, EarlyExitVGG, PatientEncoder
from common.models.dynamic.experts import ExpertStack
from common.models.dynamic.gated import GatedResNet, PolicyResNet
from common.models.dynamic.halting import PonderingRNN

VOCABULARY, LENGTH = 512, 24  # of sentences
STEPS, FEATURES = 4, 32  # of a sequence of vectors made from a sentence
SIDE = 32  # pixels


@dataclass(frozen=True)
class Recipe:
    """How a network is made from its width, and what it reads: images, sentences, sequences or vectors."""

    make: Callable[[int], nn.Module]
    reads: str
    width: int  # by default


RECIPES = {
    "early_exit_vgg": Recipe(EarlyExitVGG, "images", 32),
    "early_exit_resnet": Recipe(EarlyExitResNet, "images", 32),
    "gated_resnet": Recipe(GatedResNet, "images", 32),
    "policy_resnet": Recipe(PolicyResNet, "images", 32),
    "resolution_cascade": Recipe(ResolutionCascade, "images", 32),
    "patient_encoder": Recipe(PatientEncoder, "sentences", 64),
    "greedy_decoder": Recipe(GreedyDecoder, "sentences", 64),
    "pondering_rnn": Recipe(PonderingRNN, "sequences", 64),
    "expert_stack": Recipe(ExpertStack, "vectors", 64),
}


def recipe(name: str) -> Recipe:
    """The recipe of a network; ValueError naming all of them for another name."""
    if name not in RECIPES:
        raise ValueError(f"no dynamic network is called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def build(name: str, generator: torch.Generator, inputs: Tensor, width: int = 0) -> nn.Module:
    """A network in eval mode with seeded weights, calibrated on inputs (n, ...); width 0: its default.

    ValueError for an unknown name, and for fewer than 32 inputs, on which no threshold can be set.
    """
    known = recipe(name)
    if len(inputs) < 32:
        raise ValueError(f"calibration needs at least 32 inputs, not {len(inputs)}")
    network = known.make(width or known.width).eval()
    initialise(network, generator)
    network.calibrate(inputs)  # type: ignore[operator]
    return network.requires_grad_(False).eval()


def draw(reads: str, count: int, generator: torch.Generator, width: int = 64) -> Tensor:
    """Seeded inputs of a kind, for where there is no data: (count, ...)."""
    if reads == "images":  # smooth patterns plus noise, at about the spread of normalised photographs
        coarse = torch.randn(count, 3, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
        return smooth + 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    if reads == "sentences":
        tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
        lengths = torch.randint(4, LENGTH + 1, (count, 1), generator=generator)
        return torch.where(torch.arange(LENGTH) < lengths, tokens, 0)
    if reads == "sequences":
        return torch.randn(count, STEPS, FEATURES, generator=generator)
    if reads == "vectors":
        return torch.randn(count, width, generator=generator)
    raise ValueError(f"{reads!r} is none of images, sentences, sequences, vectors")


def read_images(path: Path, count: int, rng: np.random.Generator) -> Tensor:
    """`count` JPEG images of a zip, drawn without repetition: (count, 3, 32, 32), mean about 0, deviation about 1.

    ValueError where there are fewer.
    """
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png")))
        if len(names) < count:
            raise ValueError(f"{path}: {count} images were asked for, there are {len(names)}")
        drawn = [names[place] for place in rng.choice(len(names), count, replace=False)]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in drawn])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.47) / 0.25


def read_sentences(path: Path) -> Tensor:
    """Token ids (n, 24) of tab-separated sentences: a word's checksum modulo the vocabulary; 0 fills the end."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        words = line.partition("\t")[0].split()[:LENGTH]
        ids = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
        rows.append(ids + [0] * (LENGTH - len(ids)))
    return torch.tensor(rows)


def sequences_of(sentences: Tensor, generator: torch.Generator) -> Tensor:
    """Sentences (n, 24) as vectors (n, 4, 32): means of random word vectors over six words each."""
    table = torch.randn(VOCABULARY, FEATURES, generator=generator)
    return table[sentences].unflatten(1, (STEPS, -1)).mean(dim=2) * (LENGTH // STEPS) ** 0.5
