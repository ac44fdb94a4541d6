"""Which rank is where: tensor ranks side by side, then data ranks, then pipeline stages."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """Coordinates of a rank."""

    tensor: int
    data: int
    stage: int


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism, and the ZeRO stage (0: all replicated, 1: moments, 2: gradients, 3: weights split).

    ValueError for a degree below 1 or another stage.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    zero: int = 0

    def __post_init__(self) -> None:
        if min(self.tensor, self.pipeline, self.data) < 1 or self.zero not in (0, 1, 2, 3):
            raise ValueError(f"degrees are at least 1 and ZeRO has stages 0 to 3, not {self}")

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data

    def place(self, rank: int) -> Place:
        """Where a rank is. ValueError for a rank outside the world."""
        if not 0 <= rank < self.world:
            raise ValueError(f"rank {rank} is not in 0..{self.world - 1}")
        beyond_tensor, tensor = divmod(rank, self.tensor)
        stage, data = divmod(beyond_tensor, self.data)
        return Place(tensor, data, stage)

    def rank(self, place: Place) -> int:
        """The rank at a place."""
        return (place.stage * self.data + place.data) * self.tensor + place.tensor

    def stages(self, layers: int) -> list[range]:
        """The blocks of each pipeline stage, earlier stages first with one more. ValueError for too few blocks."""
        if layers < self.pipeline:
            raise ValueError(f"{layers} blocks can't fill {self.pipeline} stages")
        each, more = divmod(layers, self.pipeline)
        bounds = [0]
        for stage in range(self.pipeline):
            bounds.append(bounds[-1] + each + (stage < more))
        return [range(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]


@dataclass(frozen=True)
class Groups:
    """A rank's place and the process groups it belongs to; None for a group of this rank alone.

    ends: the first and the last stage at the same tensor and data rank, which share tied embeddings (of those stages).
    """

    layout: Layout
    place: Place
    tensor: Any = None
    data: Any = None
    ends: Any = None

    def neighbour(self, step: int) -> int:
        """The rank `step` stages further on."""
        there = Place(self.place.tensor, self.place.data, self.place.stage + step)
        return self.layout.rank(there)

    @property
    def first(self) -> bool:
        return self.place.stage == 0

    @property
    def last(self) -> bool:
        return self.place.stage == self.layout.pipeline - 1


def form_groups(layout: Layout, rank: int = 0) -> Groups:
    """Make the process groups; every rank of the world must call it. ValueError where the world has another size.

    A layout of one rank needs no torch.distributed.
    """
    place = layout.place(rank)
    if layout.world == 1:
        return Groups(layout, place)
    if dist.get_world_size() != layout.world:
        raise ValueError(f"{layout} needs {layout.world} processes, not {dist.get_world_size()}")

    def mine(degree: int, key: Any) -> Any:
        """Of all groups of ranks with equal key the one with this rank; all are made, in the same order everywhere."""
        members: dict[Any, list[int]] = {}
        for other in range(layout.world):
            members.setdefault(key(layout.place(other)), []).append(other)
        made = {k: dist.new_group(ranks) for k, ranks in members.items() if len(ranks) > 1 and k is not None}
        return made.get(key(place)) if degree > 1 else None

    ends = (0, layout.pipeline - 1)
    return Groups(
        layout,
        place,
        tensor=mine(layout.tensor, lambda p: (p.data, p.stage)),
        data=mine(layout.data, lambda p: (p.tensor, p.stage)),
        ends=mine(layout.pipeline, lambda p: (p.tensor, p.data) if p.stage in ends else None),
    )
