"""The four engines on the same training steps, devices, host memory and bytes: who blocks for how long.

Without a GPU the copy engine and the storage are throttled devices (common/distributed/throttled.py). Threads that copy
and write need a core beside the one that computes; both are slowed alike in every engine.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.distributed.throttled import Device
from papers.datastates_llm.baselines import Asynchronous, Snapshot, Synchronous, load_snapshot
from papers.datastates_llm.cluster import EngineName
from papers.datastates_llm.engine import DataStates, Engine
from papers.datastates_llm.file_format import load, tensors_of
from papers.datastates_llm.tiers import Copier, Span, Storage, StreamCopier
from papers.datastates_llm.torn import same_bits
from papers.datastates_llm.training import STATE_BYTES, Model, Shape, Timed, Training, train

CHUNK = 16 << 20  # bytes of the largest file of a snapshot


@dataclass(frozen=True)
class Bench:
    """What all engines share. Rates in bytes/s; 0: not throttled, such as a real GPU's copies.

    buffer_share: host memory for checkpoints over the bytes of one (64 GB for 40 to 56 a node in the paper). rows: of
    a batch, so that forward and backward take as long as is wanted.
    """

    shape: Shape
    rows: int
    copy_rate: float
    storage_rate: float
    buffer_share: float = 1.25
    device: str = "cpu"

    @property
    def nbytes(self) -> int:
        """Of a checkpoint's tensors."""
        with torch.device("meta"):
            model = Model(self.shape)
        return STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())

    @property
    def buffer(self) -> int:
        return int(self.buffer_share * self.nbytes)

    def copier(self, folder: Path) -> Copier:
        rate = Device.make(folder / "devices" / "copy", self.copy_rate) if self.copy_rate else None
        return StreamCopier(rate) if self.device.startswith("cuda") else Copier(rate)

    def storage(self, folder: Path) -> Storage:
        rate = Device.make(folder / "devices" / "storage", self.storage_rate) if self.storage_rate else None
        return Storage(rate)


@dataclass(frozen=True)
class Outcome:
    """A run's times, what its copier and storage did, and the tensors of its last checkpoint (empty: not read)."""

    timed: Timed
    copies: tuple[Span, ...]
    writes: tuple[Span, ...]
    last: dict[str, Tensor]

    @property
    def blocked(self) -> float:
        """Seconds a checkpoint, on average."""
        return sum(self.timed.blocked) / max(1, len(self.timed.blocked))


def measure(
    bench: Bench,
    engine: EngineName | None,
    text: Tensor,
    seed: int,
    steps: int,
    interval: int,
    *,
    lazy: bool = True,
    stream: bool = True,
    read_back: bool = False,
) -> Outcome:
    """A run of `train` with an engine (None: without). lazy, stream: switches of DataStates."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        copier, storage = bench.copier(folder), bench.storage(folder)
        pinned = bench.device.startswith("cuda")
        kinds: dict[str, Callable[[], Engine]] = {
            "sync": partial(Synchronous, copier, storage),
            "async": partial(Asynchronous, copier, storage, bench.buffer, pinned),
            "snapshot": partial(Snapshot, copier, storage, bench.buffer, min(CHUNK, bench.buffer // 4)),
            "datastates": partial(
                DataStates, copier, storage, bench.buffer, lazy=lazy, stream=stream, pinned=pinned
            ),
        }
        chosen: Engine | None = None if engine is None else kinds[engine]()
        training = Training(bench.shape, text, seed, bench.rows, bench.device)

        def path_of(version: int) -> Path:
            return folder / f"{version}.ds"

        try:
            timed = train(training, chosen, path_of, steps, interval)
        finally:
            if chosen is not None:
                chosen.close()
        last: dict[str, Tensor] = {}
        if read_back and engine is not None:
            last = read(engine, path_of(interval * ((steps - 1) // interval)))
        return Outcome(timed, tuple(copier.spans), tuple(storage.spans), last)


def read(engine: EngineName, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that an engine wrote."""
    if engine == "sync":
        return tensors_of(torch.load(path, weights_only=True))
    return load_snapshot(path) if engine == "snapshot" else tensors_of(load(path))


def disagreeing(found: Sequence[dict[str, Tensor]]) -> int:
    """Tensors that are not the same in all of several checkpoints of the same training."""
    first, *others = found
    return sum(
        any(key not in other or not same_bits(tensor, other[key]) for other in others)
        for key, tensor in first.items()
    )


def first_write_shares(outcome: Outcome) -> list[float]:
    """For each checkpoint when its first tensor begins to be written, in parts of the time its copies take.

    Below 1 the storage works while tensors are still to be copied.
    """
    copies = outcome.copies
    writes = [span for span in outcome.writes if span.label != "header"]
    tensors = len({span.label for span in copies})
    shares = []
    for first in range(0, len(copies), tensors):
        own = copies[first : first + tensors]
        taken = own[-1].end - own[0].start
        shares.append((writes[first].start - own[0].start) / taken)
    return shares


def exposed_share(outcome: Outcome) -> float:
    """Seconds that a checkpoint blocks training, in parts of the seconds its copies take; 0: all of it is hidden."""
    checkpoints = len(outcome.timed.blocked)
    copying = sum(span.end - span.start for span in outcome.copies) / checkpoints
    return outcome.blocked / copying
