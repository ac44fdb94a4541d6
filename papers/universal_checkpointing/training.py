"""What the processes of a run do: train, save, stop; resume under another layout, train on. And what they held.

Each function is called on every rank of a gloo group. A rank returns what it held at the moment that matters, so that
the parent can put all ranks' parts together in a way that knows nothing of universal checkpoints (`whole_state`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.fleet import METHOD, Fleet
from common.training.sharded.layout import Layout, Place, form_groups
from common.training.sharded.parameters import Shape, held_by, parameters
from common.training.sharded.trainer import Recipe, Trainer
from papers.universal_checkpointing.loading import How, resume
from papers.universal_checkpointing.native import Described, Progress, save
from papers.universal_checkpointing.patterns import Rule

PRELOADED = ("torch._dynamo", "safetensors.torch", __name__)
LETTERS = 65  # distinct characters of Tiny Shakespeare


@dataclass(frozen=True)
class Job:
    """A decoder, how it is laid out and trained, and on what: `rows` windows of a text each step.

    text: a file, or None for a text drawn from a chain of letters.
    """

    shape: Shape
    layout: Layout
    recipe: Recipe
    rows: int
    text: str | None = None


@dataclass(frozen=True)
class Held:
    """A rank's state: place, steps, rows consumed, fragments (name, local size, start, three values), generator."""

    place: Place
    step: int
    consumed: int
    fragments: tuple[tuple[str, tuple[int, ...], int, tuple[np.ndarray, ...]], ...]
    rng: bytes


@dataclass(frozen=True)
class Ran:
    """What a rank did: losses of its steps, its state at the checkpoint, and whether a conversion was needed."""

    losses: tuple[float, ...]
    held: Held
    converted: bool = False


def fleet() -> Fleet:
    """A fleet whose fork server has loaded what every rank needs; a server that runs already stays as it is."""
    made = Fleet()
    if METHOD == "forkserver":
        forkserver.set_forkserver_preload(["torch", "torch.distributed", *PRELOADED])
    return made


def letters(text: str | None) -> np.ndarray:
    """The text as numbers from 0 to LETTERS - 1."""
    if text is not None:
        found = np.frombuffer(Path(text).read_bytes(), np.uint8)
        return np.searchsorted(np.unique(found), found).astype(np.int64)
    rng = np.random.default_rng(0)
    likely = rng.integers(
        0, LETTERS, (LETTERS, 4)
    )  # four successors a letter, so that there is something to learn
    choices, state, chain = rng.integers(0, 4, 50_000), 0, np.empty(50_000, np.int64)
    for i, choice in enumerate(choices):
        state = chain[i] = likely[state, choice]
    return chain


class Data:
    """Windows of a text; the row of number n is the same whoever reads it, and `consumed` rows are gone."""

    def __init__(self, job: Job) -> None:
        self._letters, self._job, self.consumed = letters(job.text), job, 0

    def batch(self) -> Tensor:
        """The next rows, int64 of shape (rows, context + 1)."""
        job, length = self._job, self._job.shape.context + 1
        rows = []
        for n in range(self.consumed, self.consumed + job.rows):
            start = int(np.random.default_rng([job.recipe.seed, n]).integers(len(self._letters) - length))
            rows.append(self._letters[start : start + length])
        self.consumed += job.rows
        return torch.from_numpy(np.stack(rows))


def train(
    rank: int, world: int, job: Job, until: int, folder: str, further: int, rules: tuple[Rule, ...]
) -> Ran:
    """Train `until` steps from scratch, save, and go on for some more; the state is that which was saved."""
    import torch._dynamo  # noqa: F401  the first optimiser would load it, in every process; the fork server has it

    trainer, data = Trainer(job.shape, form_groups(job.layout, rank), job.recipe), Data(job)
    assert_holds_only_its_part(trainer)
    losses = [trainer.step(data.batch()) for _ in range(until)]
    progress = Progress(trainer.steps, data.consumed, job.recipe.adam, job.recipe.rate_at)  # type: ignore[arg-type]
    save(Path(folder), trainer, Described(job.layout, progress, rules))
    held = snapshot(trainer, data.consumed)
    if world > 1:
        dist.barrier()
    losses += [trainer.step(data.batch()) for _ in range(further)]
    return Ran(tuple(losses), held)


def go_on(rank: int, world: int, job: Job, source: str, universal: str, steps: int, how: How) -> Ran:
    """Resume a checkpoint under the job's layout and train on; the state is that after loading.

    The recipe's rate, schedule and the data position are the checkpoint's, whatever the job says.
    """
    import torch._dynamo  # noqa: F401

    progress = Described.read(Path(source)).progress
    recipe = replace(job.recipe, adam=progress.adam, rate_at=progress.schedule)
    first = replace(
        recipe, seed=job.recipe.seed + 1_000
    )  # other first values than the source's: all must be loaded
    trainer, data = Trainer(job.shape, form_groups(job.layout, rank), first), Data(job)
    assert_holds_only_its_part(trainer)
    resumed = resume(Path(source), Path(universal), trainer, how)
    data.consumed = resumed.progress.consumed
    held = snapshot(trainer, data.consumed)
    losses = tuple(trainer.step(data.batch()) for _ in range(steps))
    return Ran(losses, held, resumed.converted)


def snapshot(trainer: Trainer, consumed: int) -> Held:
    """A copy of a rank's state."""
    state = trainer.state()
    fragments = tuple(
        (f.name, f.size, f.start, tuple(v.numpy().copy() for v in (f.weight, f.exp_avg, f.exp_avg_sq)))
        for f in state.fragments
    )
    return Held(trainer.groups.place, state.step, consumed, fragments, state.rng.numpy().tobytes())


def assert_holds_only_its_part(trainer: Trainer) -> None:
    """No process has more of weights and moments than its place in the layout gives it."""
    layout, place = trainer.groups.layout, trainer.groups.place
    local = {}
    for p in held_by(trainer.shape, layout, place.stage):
        cut = prod(p.size) // (1 if p.split.dim is None else layout.tensor)
        local[p.name] = cut
    fragments = trainer.state().fragments
    for fragment in fragments:
        assert prod(fragment.size) == local[fragment.name], fragment.name
    shares = layout.data if layout.zero else 1
    owned = sum(fragment.weight.numel() for fragment in fragments)
    most = (
        sum(-(-n // shares) for n in local.values())
        if layout.zero == 3
        else -(-sum(local.values()) // shares)
    )
    assert owned <= most, f"{place} holds {owned} elements, its part is {most}"


State = dict[str, tuple[Tensor, Tensor, Tensor]]  # whole weights and moments by name


def whole_state(ranks: Sequence[Ran], shape: Shape, layout: Layout) -> State:
    """All ranks' parts put together by the trainer's own account of how it splits tensors; padding off.

    The oracle: it shares no code with the converter. AssertionError where copies differ or elements are missing.
    """
    found: State = {}
    for parameter in parameters(shape, layout):
        pieces: dict[tuple[int, int], list[Tensor]] = {}
        for ran in ranks:
            for name, size, start, values in ran.held.fragments:
                if name == parameter.name:
                    key = (ran.held.place.stage, ran.held.place.tensor)
                    room = pieces.setdefault(
                        key, [torch.full(size, torch.nan, dtype=_dtype(v)) for v in values]
                    )
                    for whole, value in zip(room, values, strict=True):
                        whole.view(-1)[start : start + len(value)] = torch.from_numpy(value)
        stages = sorted({stage for stage, _ in pieces})
        by_stage = [
            [parameter.split.join([pieces[stage, t][i] for t in range(layout.tensor)]) for i in range(3)]
            for stage in stages
        ]
        for other in by_stage[1:]:
            assert all(map(torch.equal, by_stage[0], other)), parameter.name
        assert not any(value.isnan().any() for value in by_stage[0]), parameter.name
        weight, first, second = (value[: parameter.rows] for value in by_stage[0])
        found[parameter.name] = (weight, first, second)
    return found


def _dtype(value: np.ndarray) -> torch.dtype:
    return torch.from_numpy(value).dtype


def differing(ours: State, theirs: State) -> float:
    """Share of elements, of weights and both moments, that are not equal to the last bit."""
    if ours.keys() != theirs.keys():
        return 1.0
    unequal = total = 0
    for name, values in theirs.items():
        for a, b in zip(ours[name], values, strict=True):
            if a.shape != b.shape:
                return 1.0
            unequal += int((a != b).sum())
            total += a.numel()
    return unequal / total


def generators_kept(before: Sequence[Ran], after: Sequence[Ran]) -> bool:
    """Whether each rank has its predecessor's generator: same stage, same data rank; and newcomers have their own."""
    known = {(ran.held.place.stage, ran.held.place.data): ran.held.rng for ran in before}
    found = {(ran.held.place.stage, ran.held.place.data): ran.held.rng for ran in after}
    kept = all(found[place] == known[place] for place in found.keys() & known.keys())
    return kept and all(found[place] not in known.values() for place in found.keys() - known.keys())
