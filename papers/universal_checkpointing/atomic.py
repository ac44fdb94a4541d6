"""Atomic checkpoints: one folder a parameter, whole tensors, and no trace of ranks, shards or padding.

    universal.json              steps, data position, optimiser's constants, the rules; written last
    rng.safetensors             generators by stage and data rank of the source
    <parameter>/fp32.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors

Every layout that fits the model loads from the same folder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.distributed.tensor_files import CheckpointError, Storage, read_json, write_json
from common.training.sharded.layout import Place
from papers.universal_checkpointing.native import Described, Progress, file_of
from papers.universal_checkpointing.patterns import Rule

DESCRIPTION, GENERATORS, TENSOR = "universal.json", "rng.safetensors", "values"


def path_of(folder: Path, name: str, value: str) -> Path:
    return folder / name / f"{value}.safetensors"


def write_parameter(
    folder: Path, name: str, value: str, whole: Tensor, rule: Rule, step: int, storage: Storage
) -> None:
    """Save: one whole tensor, with its pattern and the number of steps beside it."""
    about = {"rule": rule.to_json(), "step": step}
    storage.write(path_of(folder, name, value), {TENSOR: whole.contiguous()}, about)


def write_generators(source: Path, folder: Path, described: Described, storage: Storage) -> None:
    """The generators of all stages and data ranks; tensor ranks have the same."""
    layout = described.layout
    found = {}
    for rank in range(layout.world):
        place = layout.place(rank)
        if place.tensor == 0:
            with storage.open(source / file_of(place)) as file:
                found[key_of(place)] = file.part("rng")
    storage.write(folder / GENERATORS, found, {"stages": layout.pipeline, "data": layout.data})


def key_of(place: Place) -> str:
    return f"stage {place.stage} data {place.data}"


def generator_at(folder: Path, place: Place, storage: Storage) -> Tensor:
    """The generator's state for a rank: that of the same stage and data rank, so far as the source had one.

    A rank beyond those begins a stream of its own, which follows from the state of the one it doubles: two data ranks
    with equal masks would be worse than none.
    """
    with storage.open(folder / GENERATORS) as file:
        stages, data = file.about["stages"], file.about["data"]
        source = Place(0, place.data % data, place.stage % stages)
        state = file.part(key_of(source))
    if (source.data, source.stage) == (place.data, place.stage):
        return state
    generator = torch.Generator()
    generator.set_state(state)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    again = (place.stage // stages) * 1_000_003 + place.data // data
    return torch.Generator().manual_seed(seed ^ again).get_state()


@dataclass(frozen=True)
class Universal:
    """universal.json."""

    progress: Progress
    rules: dict[str, Rule]  # by the parameters' names
    marks: list[list[int]]  # of the rank files that it was made of

    @classmethod
    def read(cls, folder: Path) -> "Universal":
        """CheckpointError where the folder is no atomic checkpoint, or one whose conversion did not end."""
        stated: Mapping[str, Any] = read_json(folder / DESCRIPTION)
        try:
            rules = {name: Rule.from_json(rule) for name, rule in stated["rules"].items()}
            return cls(Progress.from_json(stated["progress"]), rules, stated["marks"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / DESCRIPTION}: {error!r}") from None

    def write(self, folder: Path) -> None:
        rules = {name: rule.to_json() for name, rule in self.rules.items()}
        stated = {"progress": asdict(self.progress), "rules": rules, "marks": self.marks}
        write_json(folder / DESCRIPTION, stated)


def is_made_of(folder: Path, source: Path, described: Described) -> bool:
    """Whether a conversion into this folder has ended, and was of this checkpoint and no other."""
    return (folder / DESCRIPTION).is_file() and Universal.read(folder).marks == described.marks(source)
