"""Job shops: instances, random shutdowns of machines, and a simulator that asks for one decision at a time.

    shop = Shop(benchmark("ft06"), "swap")
    while not shop.done:
        shop.take(shop.candidates[0])     # the job that machine shop.machine takes next
    shop.makespan

Rules and learned policies step through this same object. Three kinds of shop: "ordinary" (unlimited buffers),
"swap" (no buffer: a finished job holds its machine until its next machine takes it, and jobs that hold each other's
next machines in a cycle of any length change places at one instant) and "blocking" (the same without swaps, so that
such a cycle is a deadlock). A decision is asked only where at least two jobs wait for an idle machine.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from common.data import DataError, fetch
from common.scheduling import job_shop_events as events
from common.scheduling.machine_failures import Failures

KINDS = {"ordinary": events.ORDINARY, "swap": events.SWAP, "blocking": events.BLOCKING}
MODES = {"never": events.NEVER, "on take": events.ON_TAKE, "any time": events.ANY_TIME}
DATA_SET = "job-shop-benchmarks"


@dataclass(frozen=True, eq=False)
class Instance:
    """Processing times and machines of shape (jobs, machines): operation k of job j lasts durations[j, k] on
    machines[j, k]; every job visits every machine once. ValueError for anything else."""

    durations: np.ndarray
    machines: np.ndarray
    name: str = ""
    optimum: int | None = None  # of the ordinary job shop, where it is published

    def __post_init__(self) -> None:
        durations, machines = np.asarray(self.durations), np.asarray(self.machines)
        if durations.ndim != 2 or durations.shape != machines.shape or durations.size == 0:
            raise ValueError(
                f"durations {durations.shape} and machines {machines.shape} must both be (jobs, machines)"
            )
        if durations.min() < 1 or np.any(durations != durations.astype(np.int64)):
            raise ValueError("every operation lasts at least one whole unit of time")
        if np.any(np.sort(machines, axis=1) != np.arange(machines.shape[1])):
            raise ValueError("every job visits every machine exactly once")
        object.__setattr__(self, "durations", np.ascontiguousarray(durations, dtype=np.int64))
        object.__setattr__(self, "machines", np.ascontiguousarray(machines, dtype=np.int64))

    @property
    def jobs(self) -> int:
        return self.durations.shape[0]

    @property
    def stations(self) -> int:
        """Machines of the shop."""
        return self.durations.shape[1]

    @cached_property
    def work_left(self) -> np.ndarray:
        """Work of a job from operation k on, (jobs, machines + 1); the last column is 0."""
        left = np.zeros((self.jobs, self.stations + 1), dtype=np.int64)
        left[:, :-1] = np.cumsum(self.durations[:, ::-1], axis=1)[:, ::-1]
        return left

    @cached_property
    def lower_bound(self) -> int:
        """The longest job or the busiest machine, whichever is longer: no schedule of any kind of shop is shorter."""
        loads = np.bincount(self.machines.ravel(), self.durations.ravel())
        return int(max(self.work_left[:, 0].max(), loads.max()))


@cache
def benchmark(name: str) -> Instance:
    """A classical instance (ft06, la01, orb01, abz5, swv01, yn1, ta01, ...). KeyError for an unknown name."""
    return benchmarks()[name]


@cache
def benchmarks() -> dict[str, Instance]:
    """All instances of the data set `job-shop-benchmarks`, by name. DataError where it can't be had."""
    content = json.loads(fetch(DATA_SET).read_text(encoding="utf-8"))
    try:
        return {
            name: Instance(
                np.array(one["duration_matrix"]),
                np.array(one["machines_matrix"]),
                name,
                one["metadata"]["optimum"],
            )
            for name, one in content.items()
            if min(min(row) for row in one["duration_matrix"]) > 0
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"data set {DATA_SET} does not hold job-shop instances: {error!r}") from error


def random_instance(
    rng: np.random.Generator, jobs: int, machines: int, shortest: int = 5, longest: int = 99, name: str = ""
) -> Instance:
    """Durations uniform in [shortest, longest], each job's machines in random order (as pyjssp draws them)."""
    durations = rng.integers(shortest, longest + 1, (jobs, machines))
    orders = np.argsort(rng.random((jobs, machines)), axis=1)
    return Instance(durations, orders, name)


@dataclass(frozen=True, eq=False)
class Schedule:
    """What happened: arrays of shape (jobs, machines) in ticks; releases is when an operation leaves its machine.

    downs: (machine, from, to) of every shutdown. swaps: the number of the swap that began an operation, 0 for none.
    """

    starts: np.ndarray
    ends: np.ndarray
    releases: np.ndarray
    swaps: np.ndarray
    downs: list[tuple[int, int, int]]

    @property
    def makespan(self) -> int:
        return int(self.ends.max())


_NO_FAILURES = np.zeros((1, 1), dtype=np.int64)


class Shop:
    """A job shop in motion; it stands at a decision, or is done.

    may_wait: a machine may also decline all its candidates until the next event (`wait`); then it is also asked where
    only one job waits. compile: run the clock through numba where it is installed.
    """

    def __init__(
        self,
        instance: Instance,
        kind: str = "swap",
        failures: Failures | None = None,
        may_wait: bool = False,
        compile: bool = True,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind of shop is one of {', '.join(KINDS)}, not {kind!r}")
        if failures is not None and failures.table.shape[0] < instance.stations:
            raise ValueError(
                f"failures of {failures.table.shape[0]} machines don't do for {instance.stations}"
            )
        self.instance = instance
        self.kind = kind
        self.failures = failures
        self.may_wait = may_wait
        self._advance = events.compiled() if compile else events.advance
        self.reset()

    def reset(self) -> None:
        """Back to time 0, with the same failures."""
        n, m = self.instance.durations.shape
        self.jobs = np.zeros((5, n), dtype=np.int64)
        self.jobs[events.WHERE] = -1
        self.stations = np.zeros((5, m), dtype=np.int64)
        self.stations[events.HOLDER] = -1
        self.stations[events.DECLINED] = -1
        self.operations = np.zeros((4, n, m), dtype=np.int64)
        self.clock = np.zeros(9, dtype=np.int64)
        self.clock[events.LEFT] = n
        self.clock[events.ASKED] = -1
        self._downs = np.zeros(((n + 1) * m, 3), dtype=np.int64)
        self._waiting = np.zeros(n, dtype=np.int64)
        self._go(events.WAIT)

    def _go(self, choice: int) -> None:
        mode = "never" if self.failures is None else self.failures.mode
        table = _NO_FAILURES if self.failures is None else self.failures.table
        self._advance(
            choice,
            KINDS[self.kind],
            MODES[mode],
            self.may_wait,
            self.instance.durations,
            self.instance.machines,
            table,
            self.jobs,
            self.stations,
            self.operations,
            self.clock,
            self._downs,
            self._waiting,
        )
        self.machine = int(self.clock[events.ASKED])
        count = int(self.clock[events.CANDIDATES]) if self.machine >= 0 else 0
        self.candidates = self._waiting[:count].copy()

    def take(self, job: int) -> None:
        """The asked machine takes this job. ValueError for a job that is no candidate or a shop that is done."""
        if job not in self.candidates.tolist():
            raise ValueError(f"job {job} does not wait for machine {self.machine}")
        self._go(int(job))

    @property
    def can_wait(self) -> bool:
        """Whether the asked machine may decline: something else must be able to happen first."""
        return bool(self.clock[events.CAN_WAIT])

    def wait(self) -> None:
        """The asked machine takes nobody until the next event. ValueError where it may not wait."""
        if self.machine < 0 or not self.can_wait:
            raise ValueError(
                "the machine may not wait: nothing else can happen, or the shop has may_wait=False"
            )
        self._go(events.WAIT)

    @property
    def done(self) -> bool:
        """No decision is left: all jobs are finished, or all are stuck."""
        return self.machine < 0

    @property
    def deadlocked(self) -> bool:
        """Jobs hold each other's next machines and may not swap."""
        return bool(self.clock[events.DEADLOCKED])

    @property
    def time(self) -> int:
        return int(self.clock[events.TIME])

    @property
    def makespan(self) -> int:
        """Time at which the last job ended. ValueError before that, and of a deadlock."""
        if not self.done or self.deadlocked:
            raise ValueError("no makespan: " + ("a deadlock" if self.deadlocked else "jobs are left"))
        return int(self.operations[events.END].max())

    @property
    def swaps(self) -> int:
        """How often a cycle of jobs changed places."""
        return int(self.clock[events.SWAPS])

    @property
    def longest_swap(self) -> int:
        """Jobs in the longest of these cycles."""
        return int(self.clock[events.LONGEST])

    def schedule(self) -> Schedule:
        """What happened so far."""
        operations = self.operations.copy()
        downs = [(int(b), int(begin), int(end)) for b, begin, end in self._downs[: self.clock[events.DOWNS]]]
        if self.failures is not None and self.failures.mode == "any time":
            until = int(operations[events.END].max())
            downs = [(b, *w) for b in range(self.instance.stations) for w in self.failures.windows(b, until)]
        return Schedule(
            operations[events.START],
            operations[events.END],
            operations[events.RELEASE],
            operations[events.BY_SWAP],
            downs,
        )


def wait_for_cycle(shop: Shop) -> Sequence[int]:
    """Jobs of one cycle, each of which waits for the machine that the next one holds; empty where there is none."""
    holder, state, started = shop.stations[events.HOLDER], shop.jobs[events.STATE], shop.jobs[events.STARTED]
    for first in np.flatnonzero(state == events.HOLDING):
        path: list[int] = []
        job = int(first)
        while job >= 0 and state[job] == events.HOLDING and job not in path:
            path.append(job)
            job = int(holder[shop.instance.machines[job, started[job]]])
        if job in path:
            return path[path.index(job) :]
    return []
