"""Engines on the same training steps, devices, host memory and bytes: who blocks for how long.

Without a GPU the copy engine and the storage are throttled devices (common/distributed/throttled.py). Threads that copy
and write need a core beside the one that computes; both are slowed alike in every engine.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.distributed.throttled import Device
from papers.datastates_llm.baselines import Asynchronous, Snapshot, Synchronous, load_snapshot
from papers.datastates_llm.cluster import EngineName
from papers.datastates_llm.config import SIDES, order_of
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

    def copier(self, folder: Path) -> Copier:
        rate = Device.make(folder / "devices" / "copy", self.copy_rate) if self.copy_rate else None
        return StreamCopier(rate) if self.on_gpu else Copier(rate)

    def storage(self, folder: Path) -> Storage:
        rate = Device.make(folder / "devices" / "storage", self.storage_rate) if self.storage_rate else None
        return Storage(rate)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @contextmanager
    def engine(self, name: EngineName, copier: Copier, storage: Storage) -> Iterator[Engine]:
        """One of the engines; its threads have ended when the block has."""
        host = int(self.buffer_share * self.nbytes)
        kinds: dict[str, Callable[[], Engine]] = {
            "sync": partial(Synchronous, copier, storage),
            "async": partial(Asynchronous, copier, storage, host, self.on_gpu),
            "snapshot": partial(Snapshot, copier, storage, host, min(CHUNK, host // 4)),
            "datastates": partial(DataStates, copier, storage, host, pinned=self.on_gpu),
        }
        engine = kinds[name]()
        try:
            yield engine
        finally:
            engine.close()


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
    name: EngineName,
    text: Tensor,
    seed: int,
    steps: int,
    interval: int,
    read_back: bool = False,
) -> Outcome:
    """A run of `train` with one engine."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        copier, storage = bench.copier(folder), bench.storage(folder)
        training = Training(bench.shape, text, seed, bench.rows, bench.device)
        with bench.engine(name, copier, storage) as engine:
            timed = train(training, engine, lambda version: folder / f"{version}.ds", steps, interval)
        last = read(name, folder / f"{interval * ((steps - 1) // interval)}.ds") if read_back else {}
        return Outcome(timed, tuple(copier.spans), tuple(storage.spans), last)


@dataclass(frozen=True)
class Turn:
    """One checkpoint of one side: seconds it blocked training, its copies and writes, and the computing beside them."""

    side: str
    blocked: float
    copies: tuple[Span, ...]
    writes: tuple[Span, ...]
    compute: tuple[float, ...]  # seconds of forward and backward of each step until the next turn

    @property
    def exposed(self) -> float:
        """Seconds that it blocked, in parts of the seconds its copies took; 0: all of it was hidden."""
        return self.blocked / sum(span.end - span.start for span in self.copies)

    @property
    def first_write(self) -> float:
        """When its first tensor begins to be written, in parts of the time its copies take; below 1 both overlap."""
        begun, ended = self.copies[0].start, self.copies[-1].end
        return (min(span.start for span in self.writes if span.label != "header") - begun) / (ended - begun)


class InTurn:
    """Hands each checkpoint of one training to the next side of an order.

    sides: by name an engine, and switches of it to be set. A turn begins when the one before is on the storage; that
    wait is counted for nobody.
    """

    def __init__(
        self,
        sides: Mapping[str, tuple[Engine, Mapping[str, bool]]],
        order: Sequence[str],
        copier: Copier,
        storage: Storage,
    ) -> None:
        self.sides, self.order, self.spans = sides, order, (copier.spans, storage.spans)
        self.blocked: list[float] = []
        self.made: list[tuple[int, int]] = [(0, 0)]  # copies and writes until the end of each turn
        self._engine: Engine | None = None

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        self.finish()
        self._engine, switches = self.sides[self.order[len(self.blocked)]]
        for name, value in switches.items():
            setattr(self._engine, name, value)
        begun = time.monotonic()
        self._engine.save(state, path)
        self.blocked.append(time.monotonic() - begun)

    def before_update(self) -> None:
        if self._engine is not None:
            begun = time.monotonic()
            self._engine.before_update()
            self.blocked[-1] += time.monotonic() - begun

    def finish(self) -> None:
        if self._engine is not None:
            self._engine.finish()
            self.made.append((len(self.spans[0]), len(self.spans[1])))
            self._engine = None

    def close(self) -> None: ...

    def turns(self, compute: Sequence[float], interval: int) -> list[Turn]:
        """All turns of a training that is through. compute: seconds of each of its steps."""
        copies, writes = self.spans
        return [
            Turn(
                self.order[i],
                blocked,
                tuple(copies[self.made[i][0] : self.made[i + 1][0]]),
                tuple(writes[self.made[i][1] : self.made[i + 1][1]]),
                tuple(compute[(i + 1) * interval : (i + 2) * interval]),
            )
            for i, blocked in enumerate(self.blocked)
        ]


def in_turn(bench: Bench, text: Tensor, seed: int, steps: int, interval: int) -> list[Turn]:
    """One training in which the engines take turns, A B B A, each for `steps` steps at least; as `order_of` says."""
    order = order_of(steps, interval, backwards=seed % 2 == 1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        copier, storage = bench.copier(folder), bench.storage(folder)
        training = Training(bench.shape, text, seed, bench.rows, bench.device)
        with (
            bench.engine("datastates", copier, storage) as ours,
            bench.engine("async", copier, storage) as rival,
        ):
            sides = {side: (ours, switches) if switches else (rival, {}) for side, switches in SIDES.items()}
            engines = InTurn(sides, order, copier, storage)
            timed = train(
                training,
                engines,
                lambda version: folder / f"{version}.ds",
                interval * len(order) + 1,
                interval,
            )
        return engines.turns(timed.compute, interval)


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
