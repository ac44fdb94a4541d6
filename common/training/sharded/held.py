"""What ranks hold at a moment, and all ranks' parts put together: an oracle for checkpoints, which shares no code with
whoever saves, converts or loads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from common.training.sharded.layout import Layout, Place
from common.training.sharded.parameters import Shape, held_by, parameters
from common.training.sharded.trainer import Trainer

State = dict[str, tuple[Tensor, Tensor, Tensor]]  # whole weights and moments by name


@dataclass(frozen=True)
class Held:
    """A rank's state: place, steps, rows consumed, fragments (name, local size, start, three values), generator."""

    place: Place
    step: int
    consumed: int
    fragments: tuple[tuple[str, tuple[int, ...], int, tuple[np.ndarray, ...]], ...]
    rng: bytes


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
    local = {
        p.name: prod(p.size) // (1 if p.split.dim is None else layout.tensor)
        for p in held_by(trainer.shape, layout, place.stage)
    }
    fragments = trainer.state().fragments
    for fragment in fragments:
        assert prod(fragment.size) == local[fragment.name], fragment.name
    shares = layout.data if layout.zero else 1
    owned = sum(fragment.weight.numel() for fragment in fragments)
    whole = (
        sum(-(-n // shares) for n in local.values())
        if layout.zero == 3
        else -(-sum(local.values()) // shares)
    )
    assert owned <= whole, f"{place} holds {owned} elements, its part is {whole}"


def whole_state(ranks: Sequence[Held], shape: Shape, layout: Layout) -> State:
    """All ranks' parts put together by the trainer's own account of how it splits tensors; padding off.

    AssertionError where copies differ or elements are missing.
    """
    found: State = {}
    for parameter in parameters(shape, layout):
        pieces: dict[tuple[int, int], list[Tensor]] = {}
        for held in ranks:
            for name, size, start, values in held.fragments:
                if name == parameter.name:
                    empty = [torch.full(size, torch.nan, dtype=torch.from_numpy(v).dtype) for v in values]
                    room = pieces.setdefault((held.place.stage, held.place.tensor), empty)
                    for whole, value in zip(room, values, strict=True):
                        whole.view(-1)[start : start + len(value)] = torch.from_numpy(value)
        by_stage = [
            [parameter.split.join([pieces[stage, t][i] for t in range(layout.tensor)]) for i in range(3)]
            for stage in sorted({stage for stage, _ in pieces})
        ]
        for other in by_stage[1:]:
            assert all(map(torch.equal, by_stage[0], other)), parameter.name
        assert not any(value.isnan().any() for value in by_stage[0]), parameter.name
        weight, first, second = (value[: parameter.rows] for value in by_stage[0])
        found[parameter.name] = (weight, first, second)
    return found


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


def generators_kept(before: Sequence[Held], after: Sequence[Held]) -> bool:
    """Whether each rank has its predecessor's generator: same stage, same data rank; and newcomers have their own."""
    known = {(held.place.stage, held.place.data): held.rng for held in before}
    found = {(held.place.stage, held.place.data): held.rng for held in after}
    kept = all(found[place] == known[place] for place in found.keys() & known.keys())
    return kept and all(found[place] not in known.values() for place in found.keys() - known.keys())
