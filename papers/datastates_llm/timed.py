"""Engines on the same training steps, devices, host memory and bytes: who blocks for how long.

Without a GPU the copy engine and the storage are throttled devices (common/distributed/throttled.py). Threads that copy
and write need a core beside the one that computes; both are slowed alike in every engine.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from torch import Tensor

from common.distributed.throttled import Device
from papers.datastates_llm.baselines import Asynchronous, Snapshot, Synchronous, read
from papers.datastates_llm.cluster import ENGINES
from papers.datastates_llm.config import SIDES, order_of
from papers.datastates_llm.engine import DataStates, Engine
from papers.datastates_llm.file_format import same_bits
from papers.datastates_llm.tiers import Copier, Span, Storage, StreamCopier
from papers.datastates_llm.training import Shape, Timed, Training, train

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
        return self.shape.nbytes

    def copier(self, folder: Path) -> Copier:
        rate = Device.make(folder / "devices" / "copy", self.copy_rate) if self.copy_rate else None
        return StreamCopier(rate) if self.on_gpu else Copier(rate)

    def storage(self, folder: Path) -> Storage:
        rate = Device.make(folder / "devices" / "storage", self.storage_rate) if self.storage_rate else None
        return Storage(rate)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def engine(self, name: str, copier: Copier, storage: Storage) -> Engine:
        """One of the engines; its threads end with `close`."""
        host = int(self.buffer_share * self.nbytes)
        kinds: dict[str, Callable[[], Engine]] = {
            "sync": partial(Synchronous, copier, storage),
            "async": partial(Asynchronous, copier, storage, host, self.on_gpu),
            "snapshot": partial(Snapshot, copier, storage, host, min(CHUNK, host // 4)),
            "datastates": partial(DataStates, copier, storage, host, pinned=self.on_gpu),
        }
        return kinds[name]()


class InTurn:
    """Hands each checkpoint of one training to the next side: an engine, or ours with switches of `SIDES`."""

    def __init__(self, order: Sequence[str], make: Callable[[str], Engine]) -> None:
        self._order = cycle(order)
        names = {side if side in ENGINES else "datastates" for side in order}
        self._engines = {name: make(name) for name in names}
        self._now = next(iter(self._engines.values()))

    def save(self, state: Mapping[str, Any], path: Path) -> None:
        side = next(self._order)
        self._now = self._engines[side if side in ENGINES else "datastates"]
        for switch, value in SIDES.get(side, {}).items():
            setattr(self._now, switch, value)
        self._now.save(state, path)

    def before_update(self) -> None:
        self._now.before_update()

    def finish(self) -> None:
        self._now.finish()

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


@dataclass(frozen=True)
class Turn:
    """One checkpoint of one side: seconds it blocked training, its copies and writes, and the computing beside them."""

    side: str
    blocked: float
    copies: Sequence[Span]
    writes: Sequence[Span]
    compute: Sequence[float]  # seconds of forward and backward of each step until the next turn

    @property
    def exposed(self) -> float:
        """Seconds that it blocked, in parts of the seconds its copies took; 0: all of it was hidden."""
        return self.blocked / sum(span.end - span.start for span in self.copies)

    @property
    def first_write(self) -> float:
        """When its first tensor begins to be written, in parts of the time its copies take; below 1 both overlap."""
        begun, ended = self.copies[0].start, self.copies[-1].end
        return (min(span.start for span in self.writes if span.label != "header") - begun) / (ended - begun)


@dataclass(frozen=True)
class Outcome:
    """A run's times, what its copier and storage did, and the tensors of its last checkpoint (empty: not read).

    marks: copies and writes until each checkpoint began, and at the end.
    """

    timed: Timed
    copies: tuple[Span, ...]
    writes: tuple[Span, ...]
    marks: tuple[tuple[int, int], ...]
    last: dict[str, Tensor]

    @property
    def blocked(self) -> float:
        """Seconds a checkpoint, on average."""
        return sum(self.timed.blocked) / len(self.timed.blocked)


def measure(
    bench: Bench,
    order: Sequence[str],
    text: Tensor,
    seed: int,
    steps: int,
    interval: int,
    apart: bool = False,
    read_back: bool = False,
) -> Outcome:
    """A run of `train` in which the sides of an order take a checkpoint each, over and over."""
    marks: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        copier, storage = bench.copier(folder), bench.storage(folder)

        def mark() -> None:
            marks.append((len(copier.spans), len(storage.spans)))

        def path_of(version: int) -> Path:
            mark()
            return folder / f"{version}.ds"

        training = Training(bench.shape, text, seed, bench.rows, bench.device)
        engines = InTurn(order, lambda name: bench.engine(name, copier, storage))
        try:
            timed = train(training, engines, path_of, steps, interval, apart)
        finally:
            engines.close()
        mark()
        last = read(folder / f"{interval * ((steps - 1) // interval)}.ds") if read_back else {}
        return Outcome(timed, tuple(copier.spans), tuple(storage.spans), tuple(marks), last)


def in_turn(bench: Bench, text: Tensor, seed: int, steps: int, interval: int) -> list[Turn]:
    """One training in which the engines take turns, A B B A, each for `steps` steps at least; as `order_of` says.

    A turn begins when the checkpoint before is on the storage; that wait is counted for nobody.
    """
    order = order_of(steps, interval, backwards=seed % 2 == 1)
    run = measure(bench, order, text, seed, interval * len(order) + 1, interval, apart=True)
    return [
        Turn(
            side,
            run.timed.blocked[i],
            run.copies[run.marks[i][0] : run.marks[i + 1][0]],
            run.writes[run.marks[i][1] : run.marks[i + 1][1]],
            run.timed.compute[(i + 1) * interval : (i + 2) * interval],
        )
        for i, side in enumerate(order)
    ]


def disagreeing(found: Sequence[dict[str, Tensor]]) -> int:
    """Tensors that are not the same in all of several checkpoints of the same training."""
    first, *others = found
    return sum(
        any(key not in other or not same_bits(tensor, other[key]) for other in others)
        for key, tensor in first.items()
    )
