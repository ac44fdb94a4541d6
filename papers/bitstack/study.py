"""Perplexities of SmolLM2-135M from stores, under orders, beside rivals: which tasks there are and what they say.

Stores and sorting are done once, whatever the number of seeds: a seed is another window of the test text, another
random order and another memory trace.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data import DataError, fetch
from common.lab.runtime import Runtime, one_thread
from common.models.llama import tokenizer
from common.models.smollm2 import CONFIG, DATASET
from common.models.texts import encoded, random_windows
from papers.bitstack import block_files, evaluation, kept
from papers.bitstack.baselines import NF4_BLOCK, packed_bytes
from papers.bitstack.block_files import BlockFiles, Shape
from papers.bitstack.config import Config
from papers.bitstack.evaluation import Held, Recipe, Rival, SortLevel, Store, Task, Text, held
from papers.bitstack.universal_stack import Stack, average_order, from_the_bottom

SORT_TEXT, TEST_TEXT = "wikitext2-valid", "wikitext2-test"
LETTERS = 400_000  # of a text that are encoded, about 100,000 tokens
HALF = 2  # bytes of a number in fp16
_done: dict[
    Task, Any
] = {}  # results of this process, so that a control computes only what its switch changes


def prepared(config: Config, lab: Runtime) -> "Study | None":
    """The texts of a study; None where the model or a text can't be had."""
    texts = {}
    for name in (DATASET, SORT_TEXT, TEST_TEXT):
        try:
            fetch(name)
        except DataError:
            return None
        path = lab.data(name)
        if path is None:
            return None
        texts[name] = path
    valid, test = (encoded(texts[name], tokenizer(), LETTERS) for name in (SORT_TEXT, TEST_TEXT))

    def drawn(tokens: torch.Tensor, length: int, n: int, rng: np.random.Generator) -> Text:
        return tuple(tuple(window) for window in random_windows(tokens, length, n, rng).tolist())

    calibration = drawn(
        valid, config.calibration_tokens, config.calibration_windows, lab.rng(0, "calibration")
    )
    hessian = drawn(valid, config.calibration_tokens, config.gptq_windows, lab.rng(0, "calibration of GPTQ"))
    sorting = drawn(valid, config.sort_tokens, 1, lab.rng(0, "sorting"))
    tested = (drawn(test, config.test_tokens, 1, lab.rng(seed, "test")) for seed in lab.seeds)
    return Study(config, lab, calibration, hessian, sorting, tuple(chain.from_iterable(tested)))


@dataclass
class Study:
    """Texts, stores and results. test: one window a seed, in the order of the seeds."""

    config: Config
    lab: Runtime
    calibration: Text
    hessian: Text  # GPTQ's calibration
    sorting: Text
    test: Text
    _stores: dict[Recipe, "Made"] = field(default_factory=dict)

    # What there is to measure

    def intact(self) -> Recipe:
        """The method as it is, whatever this run switches off: its store is the one that is sorted."""
        config = self.config
        return Recipe(config.k, config.blocks, config.layers, self.calibration, packed=config.packed)

    def recipe(self, k: int | None = None, **changed: Any) -> Recipe:
        """Of this run's own store, with its switches; `changed` for an ablation or another rank."""
        config = self.config
        rank = config.k if k is None else k
        own = replace(
            self.intact(), k=0 if config.sign_only else rank,
            scaling=config.scaling, absolute=config.absolute, residual=config.residual,
        )  # fmt: skip
        return replace(own, **changed)

    def store(self, recipe: Recipe) -> "Made":
        """A recipe's store, decomposed where nobody has done so before."""
        self.make([recipe])
        return self._stores[recipe]

    def make(self, recipes: Sequence[Recipe]) -> None:
        """Decompose for all recipes that have no store yet, at once."""
        calibrated = self.calibrated()
        places = {r: kept.place_of("blocks", asdict(r)) for r in recipes if r not in self._stores}
        with ExitStack() as stack:
            parts = {r: stack.enter_context(kept.making(p)) for r, p in places.items() if not p.is_dir()}
            tasks = [
                evaluation.Decompose(recipe, calibrated, str(folder), share)
                for recipe, folder in parts.items()
                for share in shares(recipe)
            ]
            written = self._run(tasks, "decomposing")
            for recipe, folder in parts.items():
                mine: list[Any] = [w for task, w in zip(tasks, written, strict=True) if task.recipe == recipe]
                shapes: dict[str, Shape] = dict(chain(*(part.items() for part in mine)))
                ordered = dict(sorted(shapes.items(), key=lambda item: int(item[0].partition(".")[0])))
                block_files.write_index(folder, ordered, recipe.blocks)
        for recipe, place in places.items():
            self._stores[recipe] = Made(
                recipe, place, Store(recipe, str(place), calibrated), BlockFiles(place).shapes
            )

    def calibrated(self) -> str:
        """The folder of the calibration, which is done where nobody has done so before."""
        place = kept.place_of("calibration", self.calibration)
        if not place.is_dir():
            with kept.making(place) as folder, one_thread():
                evaluation.calibrate(self.calibration, folder)
        return str(place)

    def results(self, tasks: Sequence[Task], label: str) -> None:
        """Compute what was not computed before; `result` then has it."""
        missing = [task for task in dict.fromkeys(tasks) if task not in _done]
        _done.update(zip(missing, self._run(missing, label), strict=True))

    def _run(self, tasks: Sequence[Task], label: str) -> list[Any]:
        """In processes, but for a few tasks."""
        if len(tasks) > self.config.few:
            return self.lab.map(evaluation.run_task, tasks, label)
        with one_thread():
            return [evaluation.run_task(task) for task in self.lab.progress(tasks, label)]

    def result(self, task: Task) -> Any:
        """Of a task that was among `results`."""
        return _done[task]

    # Bytes

    @property
    def fixed_bytes(self) -> int:
        """Of what no method compresses, in fp16: embeddings (shared with the head), norms, blocks left as they are."""
        norms = (2 * CONFIG.layers + 1) * CONFIG.hidden
        whole = self.full_bytes // HALF - CONFIG.vocab * CONFIG.hidden - norms
        untouched = whole // CONFIG.layers * (CONFIG.layers - self.config.layers)
        return HALF * (CONFIG.vocab * CONFIG.hidden + norms + untouched)

    @property
    def full_bytes(self) -> int:
        """The whole model in fp16."""
        queries, keys = CONFIG.hidden, CONFIG.groups * CONFIG.head_dim
        block = CONFIG.hidden * (2 * queries + 2 * keys + 3 * CONFIG.intermediate + 2)
        return HALF * (CONFIG.layers * block + CONFIG.hidden + CONFIG.vocab * CONFIG.hidden)

    def rival_bytes(self, rival: str) -> int:
        """Bytes of a model that a baseline such as "gptq-2-64" quantised."""
        method, bits, group = _parts(rival)
        total = self.fixed_bytes
        for shape in self.store(self.intact()).shapes.values():
            if method == "nf4":
                total += shape.parameters // 2 + 4 * (shape.parameters // NF4_BLOCK)
            else:
                total += packed_bytes(shape.rows, shape.columns, bits, group)
        return total

    # The stack

    def names(self) -> tuple[str, ...]:
        """All matrices that are compressed, in order."""
        return tuple(self.store(self.intact()).shapes)

    def stack(self, order: Sequence[str] | None = None, made: "Made | None" = None) -> Stack:
        """This run's stack; of another order or store where one is given."""
        made = made or self.store(self.intact())
        chosen = self.order() if order is None else order
        nbytes = {name: shape.nbytes for name, shape in made.shapes.items()}
        divisions = HALF * CONFIG.hidden * made.recipe.layers if made.recipe.scaling != "none" else 0
        grain = len(nbytes) if self.config.whole_levels else 1
        base = self.fixed_bytes + divisions + sum(nbytes.values())
        return Stack(tuple(chosen), nbytes, base, grain)

    def order(self) -> tuple[str, ...]:
        """By measured perplexity, of all matrices; this run's switch may turn it around."""
        tasks = self.sort_tasks(self.names())
        self.results([task for level in tasks for task in level], "sorting")
        return self.turned(self.sorted_by(tasks))

    def turned(self, order: tuple[str, ...]) -> tuple[str, ...]:
        """As it is, or from its wrong end. ValueError for a switch that is neither."""
        if self.config.order not in ("average", "reversed"):
            raise ValueError(f'an order is "average" or "reversed", not {self.config.order!r}')
        return order if self.config.order == "average" else from_the_bottom(order)

    def sort_tasks(
        self, names: Sequence[str], others: Held = (), tokens: int | None = None
    ) -> list[list[SortLevel]]:
        """For every level the tasks that measure its groups; late blocks are cheaper, so they are dealt."""
        store = self.store(self.intact()).store
        groups = evaluation.groups_of(names, self.config.sort_by if not others else "block")
        text = tuple(window[:tokens] for window in self.sorting)
        shares = [share for share in (groups[::2], groups[1::2]) if share]
        return [
            [SortLevel(store, level, share, others, text) for share in shares]
            for level in range(1, self.config.blocks)
        ]

    def sorted_by(self, tasks: list[list[SortLevel]]) -> tuple[str, ...]:
        """The order that measured levels say."""
        return average_order([dict(chain(*(self.result(t).items() for t in level))) for level in tasks])


@dataclass(frozen=True)
class Made:
    """A store that is there: its recipe, its folder, what workers need, and the shapes of its matrices."""

    recipe: Recipe
    path: Path
    store: Store
    shapes: dict[str, Shape]

    def uniform(self, blocks: int) -> Held:
        """So many blocks of every matrix."""
        return held(dict.fromkeys(self.shapes, blocks))


def shares(recipe: Recipe) -> list[tuple[int, ...]]:
    """The blocks of the model that are decomposed, for two processes; few of them for one."""
    every = tuple(range(recipe.first, evaluation.LAYERS))
    return [every] if len(every) < 8 else [every[::2], every[1::2]]


def _parts(rival: str) -> tuple[str, int, int]:
    """Method, bits and group of a name such as "gptq-2-64". ValueError for anything else."""
    method, *numbers = rival.split("-")
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise ValueError(f'a rival is named like "gptq-2-64" (method, bits, group), not {rival!r}')
    return method, int(numbers[0]), int(numbers[1])


def rival_task(study: Study, rival: str) -> Rival:
    """The losses of a rival, "fp16" among them, on the test windows."""
    method, bits, group = ("fp16", 16, 0) if rival == "fp16" else _parts(rival)
    calibration = study.hessian if method == "gptq" else ()
    calibrated = study.calibrated() if method == "awq" else ""
    return Rival(method, bits, group, study.config.layers, calibration, calibrated, study.test)
