"""Is what was saved what the state was? Every version read back and compared, bit for bit.

The copy engine is slower than forward and backward here and the pool smaller than the state, so that the update really
has to wait and copies really wait for room. An update that does not wait leaves files in which some tensors are of the
next step: torn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.distributed.throttled import Device
from papers.datastates_llm.engine import DataStates
from papers.datastates_llm.file_format import load, same_bits, tensors_of
from papers.datastates_llm.tiers import Copier, Storage
from papers.datastates_llm.training import Shape, Training, train

SMALL = Shape(hidden=64, layers=2, heads=4, context=32)
COPY_BYTES_PER_S = 40e6  # 1.7 MB of state take several steps' forward and backward
STORAGE_BYTES_PER_S = 25e6
POOL_SHARE = 0.4  # of the state


@dataclass(frozen=True)
class Restored:
    """A version read back: of every tensor the version whose value it has (None: of none, mixed within itself)."""

    version: int
    found: tuple[int | None, ...]


def saved_and_read_back(
    folder: Path, text: Tensor, seed: int, versions: int, wait: bool = True
) -> list[Restored]:
    """Train with a checkpoint after every step, and compare each file with what the state was."""
    training = Training(SMALL, text, seed, rows=2)
    nbytes = sum(tensor.nbytes for tensor in tensors_of(training.state()).values())
    engine = DataStates(
        Copier(Device.make(folder / "copy", COPY_BYTES_PER_S)),
        Storage(Device.make(folder / "storage", STORAGE_BYTES_PER_S)),
        int(POOL_SHARE * nbytes),
        wait=wait,
    )
    truth: dict[int, dict[str, Tensor]] = {}

    def path_of(version: int) -> Path:  # asked for right before `save`
        truth[version] = {key: tensor.clone() for key, tensor in tensors_of(training.state()).items()}
        return folder / f"{version}.ds"

    train(training, engine, path_of, versions + 1, 1)
    engine.close()
    path_of(training.steps)  # what the last copies may have caught instead
    return [compare(version, load(folder / f"{version}.ds"), truth) for version in sorted(truth)[:-1]]


def compare(version: int, state: Any, truth: Mapping[int, Mapping[str, Tensor]]) -> Restored:
    """Of which version each tensor of a read state is. ValueError where it has other tensors than the state had."""
    read = tensors_of(state)
    if read.keys() != truth[version].keys():
        raise ValueError(f"version {version} has other tensors than the state had")
    order = sorted(truth, key=lambda known: abs(known - version))  # what never changes is of its own version
    sources = (
        next((known for known in order if same_bits(tensor, truth[known][key])), None)
        for key, tensor in read.items()
    )
    return Restored(version, tuple(sources))
