"""The dynamic disjunctive graph: what a policy sees of a shop that stands at a decision.

Nodes are the operations; those that are done are deleted with all their edges (`alive`). Edges, none of which is stored
as a pair since each follows from arrays of shape (jobs, operations):

    conjunctive   (j, k) -> (j, k + 1) and back, while both are alive
    disjunctive   between alive operations of the same machine
    blocking      from an operation that is done but holds its machine to the operations that wait for that machine;
                  it appears when the operation ends and is gone at the hand-over

Features follow pyjssp (status one-hot, complete_ratio, processing_time, remaining_ops, waiting_time, remain_time); what
this problem adds is the status "holding", whether the operation's machine is down, and for how long it has been. Times
are in units of twice the instance's mean duration, so that instances of other scales look alike.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.scheduling import job_shop_events as events
from common.scheduling.job_shop import Instance, Shop

FEATURES = (
    "not started",
    "processing",
    "holding",
    "waiting",
    "complete ratio",
    "processing time",
    "remaining operations",
    "waiting time",
    "remaining time",
    "machine down",
    "time since shutdown",
)
HOLDING, DOWN, SINCE = FEATURES.index("holding"), FEATURES.index("machine down"), len(FEATURES) - 1


@dataclass(frozen=True, eq=False)
class Fixed:
    """What does not change of an instance: features (jobs, operations, 3), unit of time, indices."""

    features: np.ndarray
    unit: float
    operations: np.ndarray  # 0 .. operations - 1, shape (1, operations)


def fixed(instance: Instance) -> Fixed:
    """complete_ratio, processing_time and remaining_ops of every operation."""
    n, m = instance.durations.shape
    unit = 2.0 * float(instance.durations.mean())
    done = np.cumsum(instance.durations, axis=1)
    features = np.stack(
        [
            done / done[:, -1:],
            instance.durations / unit,
            np.broadcast_to((m - np.arange(m)) / m, (n, m)),
        ],
        axis=2,
    )
    return Fixed(features.astype(np.float32), unit, np.arange(m)[None])


class Graphs:
    """A batch of graphs of shops of up to (jobs, machines), filled shop by shop; rows beyond a shop are not alive."""

    def __init__(self, count: int, jobs: int, machines: int) -> None:
        self.features = np.zeros((count, jobs, machines, len(FEATURES)), dtype=np.float32)
        self.alive = np.zeros((count, jobs, machines), dtype=bool)
        self.machine = np.zeros((count, jobs, machines), dtype=np.int64)
        self.waits = np.zeros((count, jobs, machines), dtype=bool)  # ends of blocking edges
        self.holds = np.zeros((count, jobs, machines), dtype=bool)  # and where they begin
        self.allowed = np.zeros((count, jobs), dtype=bool)
        self.next = np.zeros((count, jobs), dtype=np.int64)

    def write(self, row: int, shop: Shop, known: Fixed) -> None:
        """Put the graph of a shop into a row. ValueError for a shop that is larger than the batch."""
        n, m = shop.instance.durations.shape
        if n > self.alive.shape[1] or m > self.alive.shape[2]:
            raise ValueError(f"a shop of {n} x {m} does not fit a batch of {self.alive.shape[1:]}")
        state, started, until, ready, _ = shop.jobs
        now = shop.time
        running, holding = state == events.PROCESSING, state == events.HOLDING
        waiting = (state == events.OUTSIDE) | holding
        at = started[:, None]
        current = known.operations == at - 1
        alive = (known.operations >= at) | (current & (running | holding)[:, None])
        alive[state == events.FINISHED] = False
        following = (known.operations == at) & waiting[:, None]
        processing, held = current & running[:, None], current & holding[:, None]
        down = shop.stations[events.DOWN_UNTIL] > now
        since = np.where(down, now - shop.stations[events.DOWN_SINCE], 0) / known.unit
        features = self.features[row]
        features[:] = 0.0
        part = features[:n, :m]
        part[..., 0] = alive & ~processing & ~held & ~following
        part[..., 1] = processing
        part[..., 2] = held
        part[..., 3] = following
        part[..., 4:7] = known.features
        part[..., 7] = following * ((now - ready) / known.unit)[:, None]
        part[..., 8] = processing * (_nominal_rest(shop) / known.unit)[:, None]
        part[..., 9] = down[shop.instance.machines]
        part[..., 10] = since[shop.instance.machines]
        part *= alive[..., None]
        for array, known_now in ((self.alive, alive), (self.waits, following), (self.holds, held)):
            array[row] = False
            array[row, :n, :m] = known_now
        self.machine[row] = 0
        self.machine[row, :n, :m] = shop.instance.machines
        self.allowed[row] = False
        self.allowed[row, shop.candidates] = True
        self.next[row] = 0
        self.next[row, :n] = np.minimum(started, m - 1)

    def tensors(self) -> dict[str, Tensor]:
        """A copy as tensors, leading axis the shops."""
        return {name: torch.from_numpy(array.copy()) for name, array in vars(self).items()}


def _nominal_rest(shop: Shop) -> np.ndarray:
    """Time left of what each job runs, without shutdowns to come."""
    started, until = shop.jobs[events.STARTED], shop.jobs[events.UNTIL]
    if shop.failures is None or shop.failures.mode == "on take":
        return np.maximum(until - shop.time, 0)
    left = np.zeros(len(started))
    table = shop.failures.table
    for j in np.flatnonzero(shop.jobs[events.STATE] == events.PROCESSING):
        k = started[j] - 1
        ticks = np.arange(shop.operations[events.START, j, k], shop.time) % table.shape[1]
        worked = np.count_nonzero(table[shop.instance.machines[j, k], ticks] == 0)
        left[j] = shop.instance.durations[j, k] - worked
    return left


def blocking_edges(shop: Shop) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The blocking edges of a shop as pairs of (job, operation), for drawing and tests."""
    graphs = Graphs(1, *shop.instance.durations.shape)
    graphs.write(0, shop, fixed(shop.instance))
    return [
        ((int(j), int(k)), (int(a), int(b)))
        for j, k in np.argwhere(graphs.holds[0])
        for a, b in np.argwhere(graphs.waits[0])
        if graphs.machine[0, j, k] == graphs.machine[0, a, b]
    ]
