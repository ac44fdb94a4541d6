"""What an experiment sees of the lab: `run(config, lab)` gets a `Runtime` and returns `Observations`.

    def run(config: Config, lab: Runtime) -> Observations:
        seen = Observations()
        for seed in lab.seeds:
            workload = draw(config, lab.rng(seed, "arrivals"))
            for rate in lab.progress(config.rates, "rates"):
                seen.add("goodput", simulate(workload, rate), seed, rate=rate)
        return seen

Standard library and numpy only (torch when a torch generator is asked for), so that experiments run on a bare machine.
"""

import hashlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from common.lab.cores import workers as allowed_workers
from common.lab.errors import LabError

if TYPE_CHECKING:
    import pandas
    import torch

Coordinate = str | float | int | bool
Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]


@dataclass(frozen=True)
class Observation:
    """One number that an experiment saw; `seed` is None where chance plays no part, `at` are free coordinates."""

    metric: str
    value: float
    seed: int | None = None
    at: Mapping[str, Coordinate] = field(default_factory=dict)


class Observations:
    """Tidy, append-only rows (metric, value, seed, coordinates), which figures and claims both read."""

    def __init__(self, rows: Iterable[Observation] = ()) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._rows)

    def add(self, metric: str, value: float, seed: int | None = None, **at: Coordinate) -> None:
        """Append a row. ValueError for a value that is not a finite number: observe a count or a bound instead."""
        number = float(value)
        if not math.isfinite(number):
            place = "".join(f", {key}={_plain(known)!r}" for key, known in at.items())
            raise ValueError(f"observation {metric!r} is {number} at seed={seed}{place}; it must be finite")
        plain = {key: _plain(known) for key, known in at.items()}
        self._rows.append(Observation(metric, number, None if seed is None else int(seed), plain))

    def extend(self, rows: Iterable[Observation]) -> None:
        """Append all rows of another series, such as what `Runtime.map` brought back."""
        for row in rows:
            self.add(row.metric, row.value, row.seed, **row.at)

    @property
    def metrics(self) -> list[str]:
        """The metrics observed so far, in order of appearance."""
        return list(dict.fromkeys(row.metric for row in self._rows))

    def rows(self, metric: str | None = None, **at: Coordinate) -> list[Observation]:
        """The rows of a metric (all without one) whose coordinates contain `at`; `seed=` filters by seed."""
        seed = at.pop("seed", None)
        return [
            row
            for row in self._rows
            if (metric is None or row.metric == metric)
            and (seed is None or row.seed == seed)
            and all(key in row.at and row.at[key] == known for key, known in at.items())
        ]

    def values(self, metric: str, **at: Coordinate) -> list[float]:
        """The values of these rows, in order."""
        return [row.value for row in self.rows(metric, **at)]

    def frame(self) -> "pandas.DataFrame":
        """A data frame with the columns metric, value, seed and one a coordinate (missing where a row has none)."""
        pandas = import_module("pandas")
        columns = ["metric", "value", "seed", *dict.fromkeys(key for row in self._rows for key in row.at)]
        rows = [{"metric": row.metric, "value": row.value, "seed": row.seed, **row.at} for row in self._rows]
        return pandas.DataFrame(rows, columns=columns)

    def to_json(self) -> str:
        """Canonical JSON, one row a line: the same rows give the same bytes."""
        lines = [
            json.dumps(
                {"metric": row.metric, "value": row.value, "seed": row.seed, "at": dict(row.at)},
                sort_keys=True,
                allow_nan=False,
            )
            for row in self._rows
        ]
        return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"

    @classmethod
    def from_json(cls, text: str) -> "Observations":
        """Read what `to_json` wrote. ValueError where it is something else."""
        seen = cls()
        try:
            for row in json.loads(text):
                seen.add(row["metric"], row["value"], row["seed"], **row["at"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"these are no observations: {error!r}") from None
        return seen


class Stopwatch:
    """Seconds since it was started; they stand still once its block has ended."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stop: float | None = None

    @property
    def seconds(self) -> float:
        return (self._stop or time.perf_counter()) - self._start

    def stop(self) -> None:
        self._stop = time.perf_counter()


class Runtime:
    """Seeds and their generators, processes, data sets, a clock: all that an experiment may ask of the lab.

    `wanted` is None in a normal run; in an arm's (a control's, say) it holds the metrics that the arm's claims read.
    `kept` is what the arms of one command share through `once`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        device: str = "cpu",
        progress: Progress | None = None,
        workers: int | None = None,
        wanted: Iterable[str] | None = None,
        kept: dict[Hashable, Any] | None = None,
    ) -> None:
        self.seeds = tuple(seeds)
        self.device = device
        self.workers = workers or allowed_workers()
        self.data_used: dict[str, str] = {}
        self._progress = progress
        self._kept = {} if kept is None else kept
        self._wanted = None if wanted is None else frozenset(wanted)

    def rng(self, seed: int, *stream: str) -> np.random.Generator:
        """An independent generator for each seed and stream name, the same in every process and Python version."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *_words(stream)])))

    def torch_generator(self, seed: int, *stream: str) -> "torch.Generator":
        """The same for torch, on this runtime's device."""
        torch = import_module("torch")
        state = np.random.SeedSequence([seed, *_words(stream)]).generate_state(1, np.uint64)[0]
        return torch.Generator(device=self.device).manual_seed(int(state >> np.uint64(1)))

    def progress(self, iterable: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
        """Pass the items through, showing how far it is where somebody watches."""
        if self._progress is None:
            return iterable
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        return self._progress(iterable, label, total)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], label: str) -> list[Result]:
        """`[function(item) for item in items]` in parallel processes, each on one thread; results in order.

        `function` must be picklable (a function of a module, or functools.partial of one). The first error is raised
        again here, with a note that names its item.
        """
        work = list(items)
        if self.workers == 1 or len(work) < 2:
            with one_thread():
                return [_noted(function, item, label) for item in self.progress(work, label, len(work))]
        context = multiprocessing.get_context("forkserver")  # a fork of a process with threads may hang
        with ProcessPoolExecutor(min(self.workers, len(work)), context, _worker) as pool:
            futures = [pool.submit(_noted, function, item, label) for item in work]
            try:
                return [future.result() for future in self.progress(futures, label, len(futures))]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def map_once(
        self, name: str, function: Callable[[Key], Result], items: Iterable[Key], label: str
    ) -> dict[Key, Result]:
        """`{item: function(item)}` by `map`; what another arm of this command has had under this name is not run again.

        An item holds all that decides its result, but for what `name` says.
        """
        known: dict[Key, Result] = self.once(("map_once", name), dict)
        asked = list(dict.fromkeys(items))
        missing = [item for item in asked if item not in known]
        known.update(zip(missing, self.map(function, missing, label), strict=True))
        return {item: known[item] for item in asked}

    def data(self, name: str) -> Path | None:
        """The verified file of a registered data set, or None where it can't be had; the record names what was used."""
        registry = import_module(
            "common.data"
        )  # by name: a new data set must not outdate every paper's record
        try:
            path = registry.find(name)
        except registry.DataError as error:  # such as a file whose digest is wrong
            raise LabError(str(error)) from error
        if path is not None:
            self.used(name, registry.DATASETS[name].sha256)
        return path

    def used(self, name: str, sha256: str) -> None:
        """Note that the result rests on this data, such as a table that is embedded in the code."""
        self.data_used[name] = sha256

    @contextmanager
    def stopwatch(self) -> Iterator[Stopwatch]:
        """`with lab.stopwatch() as watch: ...` and then `watch.seconds`."""
        watch = Stopwatch()
        try:
            yield watch
        finally:
            watch.stop()

    def once(self, key: Hashable, function: Callable[[], Result]) -> Result:
        """function(), computed once for all arms of a run that ask with this key (ours, controls, settings).

        The key holds all that decides the result: the name of the thing, the seed, the fields of the config. What is
        kept lives as long as the command, and no longer.
        """
        if key not in self._kept:
            self._kept[key] = function()
        return self._kept[key]  # type: ignore[no-any-return]

    def wants(self, *metrics: str) -> bool:
        """Whether any of these metrics is asked for; False only in a control's run whose claims read none of them."""
        return self._wanted is None or not self._wanted.isdisjoint(metrics)


def _words(stream: Sequence[str]) -> list[int]:
    digest = hashlib.sha256("\x1f".join(stream).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]


def _plain(value: Any) -> Coordinate:
    """A coordinate as JSON knows it: numpy scalars become Python's."""
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, (str, float, int, bool)):
        raise TypeError(f"a coordinate is a string, a number or a boolean, not {value!r}")
    return plain


def _noted(function: Callable[[Item], Result], item: Item, label: str) -> Result:
    try:
        return function(item)
    except Exception as error:
        error.add_note(f"{label}: {item!r}"[:500])
        raise


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, as in a worker process, so that sums come out the same with any number of workers."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _worker() -> None:
    """Start of a worker process: one thread, and no life of its own once the process that asked for it is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that this worker has yet to load
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def follow() -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
