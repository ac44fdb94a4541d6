"""Perplexities: what a worker process computes for the experiment. Each task is a value, and so is its result.

Windows of text are tuples of token tuples, so that a task can be looked up among those already done. Where only the
last blocks of the model are decomposed, what enters the first of these is computed once for all tasks of a process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.models.llama import embed, linears, load_smollm2, logits, through
from common.models.perplexity import token_losses
from papers.bitstack.baselines import SEARCHED_TOKENS, Inputs, quantise
from papers.bitstack.block_files import BlockFiles, Shape, write
from papers.bitstack.decomposition import decompose
from papers.bitstack.resident import Resident
from papers.bitstack.scaling import Scales, channel_scales, fold, permuted
from papers.bitstack.universal_stack import Counts, greedy_order

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Text = tuple[tuple[int, ...], ...]  # windows of equal length
Group = tuple[str, ...]  # matrices of one block that are sorted together
Held = tuple[tuple[str, int], ...]  # blocks of each matrix
WORST = 100.0  # nats a token; where a broken model's loss is no number, or larger


@dataclass(frozen=True)
class Recipe:
    """How a store is made. A control changes one of the switches."""

    k: int
    blocks: int
    layers: int  # the last so many of the model's 30
    calibration: Text
    scaling: str = "activations"  # "none", or "permuted": the right values on the wrong channels
    absolute: bool = True
    residual: bool = True
    packed: bool = True

    @property
    def first(self) -> int:
        """The first block of the model that is decomposed."""
        return LAYERS - self.layers


LAYERS = 30


class Bench:
    """A model whose last blocks' weights come from a store."""

    def __init__(self, recipe: Recipe, folder: Path, scales: Scales, shuffle: int | None = None) -> None:
        self.recipe = recipe
        self.model = scaled_model(recipe, scales)
        self.layers = {n: x for n, x in linears(self.model).items() if _index(n) >= recipe.first}
        files = BlockFiles(folder)
        self.resident = Resident(files) if shuffle is None else Resident(files, shuffled(files, shuffle))

    def hold(self, counts: Counts) -> None:
        """Give the model the weights of so many blocks of each matrix."""
        self.resident.hold(counts)
        self.resident.restore_into(self.layers)

    @torch.inference_mode()
    def losses(self, hidden: Tensor, start: int, tokens: Tensor) -> Tensor:
        """Mean loss of each window, nats, float64 (windows,), from what enters block `start`."""
        return window_losses(self.model, hidden, start, tokens)


def scaled_model(recipe: Recipe, scales: Scales) -> "LlamaForCausalLM":
    """SmolLM2 with the recipe's scales folded into the blocks that it decomposes."""
    model = load_smollm2()
    wanted = {name: s for name, s in scales.items() if _index(name) >= recipe.first}
    if recipe.scaling == "permuted":
        wanted = permuted(wanted, torch.Generator().manual_seed(0))
    if recipe.scaling != "none":
        fold(model, wanted)
    return model


def calibrate(text: Text, folder: Path) -> None:
    """Keep SmolLM2's activation scales on calibration windows, and what AWQ needs of the same pass."""
    windows = torch.tensor(text)
    inputs = Inputs(windows.numel() // SEARCHED_TOKENS)
    torch.save(channel_scales(load_smollm2(), windows, inputs), folder / SCALES)
    torch.save(inputs.summary(), folder / INPUTS)


SCALES, INPUTS = "scales.pt", "inputs.pt"  # in the folder of a calibration


@torch.inference_mode()
def window_losses(model: "LlamaForCausalLM", hidden: Tensor, start: int, tokens: Tensor) -> Tensor:
    """Mean loss of each window, nats, float64 (windows,), from what enters block `start`, window by window."""
    sums = [
        token_losses(logits(model, through(model, part, start)), window).double().mean(dim=1)
        for part, window in zip(hidden.split(1), tokens.split(1), strict=True)
    ]
    return torch.cat(sums).nan_to_num(nan=WORST, posinf=WORST).clamp(max=WORST)


def shuffled(files: BlockFiles, seed: int) -> Callable[[str, int], str]:
    """For every block but the first another matrix of the same shape, whose block is read instead: a permutation."""
    generator = torch.Generator().manual_seed(seed)
    by_shape: dict[Shape, list[str]] = {}
    for name, shape in files.shapes.items():
        by_shape.setdefault(shape, []).append(name)
    other = {
        (name, index): names[int(place)]
        for names in by_shape.values()
        for index in range(1, files.blocks)
        for name, place in zip(names, torch.randperm(len(names), generator=generator), strict=True)
    }
    return lambda name, index: other[name, index]


# Tasks of worker processes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decompose:
    """Write the blocks of some of the model's blocks into a folder; the shapes of what was written."""

    recipe: Recipe
    calibrated: str
    folder: str
    indices: tuple[int, ...]

    def run(self) -> dict[str, Shape]:
        recipe = self.recipe
        shapes: dict[str, Shape] = {}
        model = scaled_model(recipe, read_scales(self.calibrated))
        for name, layer in linears(model).items():
            if _index(name) in self.indices:
                rows, columns = layer.weight.shape
                shapes[name] = Shape(rows, columns, recipe.k, recipe.absolute, recipe.packed)
                parts = decompose(
                    layer.weight, recipe.k, recipe.blocks, absolute=recipe.absolute, residual=recipe.residual
                )
                write(Path(self.folder), name, shapes[name], parts)
        return shapes


@dataclass(frozen=True)
class Store:
    """A decomposed model on disk, and the folder of its calibration."""

    recipe: Recipe
    folder: str
    calibrated: str
    shuffle: int | None = None  # seed of a permutation of blocks among matrices (a negative control)


@dataclass(frozen=True)
class Loaded:
    """Losses of a model from a store, in one state of it, on each window of a text."""

    store: Store
    state: Held
    text: Text
    start: int = (
        0  # a block of the model below which many tasks agree: what enters it is computed once for them
    )

    @torch.inference_mode()
    def run(self) -> list[float]:
        bench, start = _bench(self.store), max(self.start, self.store.recipe.first)
        below = tuple((name, count) for name, count in self.state if _index(name) < start)
        hidden = _entering(self.store, below, self.text, start)
        bench.hold(dict(self.state))
        return bench.losses(hidden, start, torch.tensor(self.text)).tolist()


@dataclass(frozen=True)
class Rival:
    """Losses on each window of a text of a model that a baseline quantised; "fp16" leaves it as it is."""

    method: str
    bits: int
    group: int
    layers: int
    calibration: Text
    calibrated: str
    text: Text

    def run(self) -> list[float]:
        model, first = load_smollm2(), LAYERS - self.layers
        if self.method != "fp16":
            seen = (
                torch.load(Path(self.calibrated) / INPUTS, weights_only=True)
                if self.method == "awq"
                else None
            )
            windows = torch.tensor(self.calibration)
            quantise(model, self.method, self.bits, self.group, windows, first, seen)
        return window_losses(model, _entered(self.text, first), first, torch.tensor(self.text)).tolist()


@dataclass(frozen=True)
class SortLevel:
    """Mean loss with one more block in each of some groups, `level` blocks in all others.

    Only what follows the changed block of the model is computed anew. above: blocks of matrices that are not sorted.
    """

    store: Store
    level: int
    groups: tuple[Group, ...]
    others: Held
    text: Text

    @torch.inference_mode()
    def run(self) -> dict[Group, float]:
        bench, tokens = _bench(self.store), torch.tensor(self.text)
        first = self.store.recipe.first
        base = dict.fromkeys(bench.layers, self.level) | dict(self.others)
        bench.hold(base)
        entering: dict[int, Tensor] = {}
        through(bench.model, _entered(self.text, first), first, before=entering.__setitem__)
        found = {}
        for group in self.groups:
            start = min(_index(name) for name in group)
            bench.hold(base | dict.fromkeys(group, self.level + 1))
            found[group] = float(bench.losses(entering[start], start, tokens).mean())
            bench.hold(base)
        return found


@dataclass(frozen=True)
class Greedy:
    """The greedy order of some groups, all other matrices with `others` blocks."""

    store: Store
    groups: tuple[Group, ...]
    others: Held
    text: Text

    @torch.inference_mode()
    def run(self) -> tuple[str, ...]:
        bench, tokens = _bench(self.store), torch.tensor(self.text)
        first = self.store.recipe.first
        start = min(_index(name) for group in self.groups for name in group)
        bench.hold(dict.fromkeys(bench.layers, 1) | dict(self.others))
        entering = through(bench.model, _entered(self.text, first), first, start)

        def loss(counts: Counts) -> float:
            bench.hold(counts)
            return float(bench.losses(entering, start, tokens).mean())

        return greedy_order(self.groups, self.store.recipe.blocks, loss)


Task = Decompose | Loaded | Rival | SortLevel | Greedy


def run_task(task: Task) -> object:
    """What a worker process calls."""
    return task.run()


def read_scales(calibrated: str) -> Scales:
    """Of a folder that `calibrate` filled."""
    return torch.load(Path(calibrated) / SCALES, weights_only=True)


def groups_of(names: Sequence[str], by: str) -> tuple[Group, ...]:
    """Matrices that are sorted together: "block" of the model, or "matrix" for each alone. ValueError otherwise."""
    if by == "matrix":
        return tuple((name,) for name in names)
    if by != "block":
        raise ValueError(f'matrices are sorted by "block" or by "matrix", not by {by!r}')
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(_index(name), []).append(name)
    return tuple(tuple(group) for group in found.values())


def held(counts: Mapping[str, int]) -> Held:
    """Counts as a value that can be looked up."""
    return tuple(counts.items())


@lru_cache(maxsize=1)
def _bench(store: Store) -> Bench:
    return Bench(store.recipe, Path(store.folder), read_scales(store.calibrated), store.shuffle)


@lru_cache(maxsize=4)
def _entered(text: Text, first: int) -> Tensor:
    """What enters block `first` of the model as it is, window by window."""
    model = load_smollm2()
    with torch.inference_mode():
        return torch.cat(
            [through(model, embed(model, window[None]), 0, first) for window in torch.tensor(text)]
        )


@lru_cache(maxsize=4)
def _entering(store: Store, below: Held, text: Text, start: int) -> Tensor:
    """What enters block `start` of the model with these blocks below it."""
    entered = _entered(text, store.recipe.first)
    if not below:
        return entered
    bench = _bench(store)
    bench.hold(dict(below))
    return through(bench.model, entered, store.recipe.first, start)


def _index(name: str) -> int:
    return int(name.partition(".")[0])
