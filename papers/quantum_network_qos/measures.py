"""What is measured on a task set: schedules of one set, their quality and their violations, and a replay."""

from collections.abc import Iterable

from common.lab.runtime import Coordinate, Observations
from common.scheduling import periodic
from common.scheduling.periodic import Schedule, Scheduler, Task
from common.scheduling.periodic_check import violations
from common.scheduling.periodic_preemption import with_budget
from papers.quantum_network_qos.links import SLOT

Place = dict[str, Coordinate]  # coordinates of an observation

NP_EDF: dict[str, Scheduler] = {
    "uni": periodic.uni_np_edf,
    "block": periodic.block_np_edf,
    "non-block": periodic.non_block_np_edf,
}
OTHERS: dict[str, Scheduler] = {
    "uni CEDF": periodic.uni_cedf,
    "block CEDF": periodic.block_cedf,
    "FCFS": periodic.fcfs,
}
BUDGETED: dict[str, Scheduler] = {
    "budget, block": with_budget("block"),
    "budget, segment-block": with_budget("segment-block"),
    "budget, segment": with_budget("segment"),
}
ALL = NP_EDF | OTHERS | BUDGETED


def scheduler_of(name: str, order: str, seed: int) -> Scheduler:
    """A scheduler by name; order "random": block and non-block take ready instances in an order drawn for the seed."""
    if order == "random" and name in ("block", "non-block"):
        place = periodic.as_block if name == "block" else periodic.by_uses
        return periodic.PerComponent(periodic.list_scheduler(place, periodic.at_random(seed)))
    return ALL[name]


def on_one_set(tasks: list[Task], names: Iterable[str]) -> dict[str, Schedule]:
    """Schedules of one and the same task set: what the first scheduler accepts, less the last until all can do it."""
    schedulers = {name: ALL[name] for name in names}
    kept = {run.task.name for run in periodic.admit(tasks, next(iter(schedulers.values())))}
    left = [task for task in tasks if task.name in kept]
    while True:
        found = {name: scheduler(left) for name, scheduler in schedulers.items()}
        whole = {name: schedule for name, schedule in found.items() if schedule is not None}
        if len(whole) == len(found):
            return whole
        left.pop()


def measure(schedule: Schedule, seen: Observations, seed: int, **place: Coordinate) -> None:
    """Throughput, accepted demands, worst response (s), jitter (s^2) and the verifier's violations of a schedule."""
    tasks = periodic.accepted_tasks(schedule)
    seen.add("throughput", sum(1 / (task.period * SLOT) for task in tasks), seed, **place)
    seen.add("accepted", len(tasks), seed, **place)
    seen.add("response", periodic.worst_response(schedule) * SLOT, seed, **place)
    seen.add("jitter", periodic.jitter(schedule) * SLOT**2, seed, **place)
    seen.add("schedule_violations", len(violations(tasks, schedule)), seed, **place)


def gain(seen: Observations, seed: int, scheduler: str, **at: Coordinate) -> float:
    """Throughput of a scheduler over that of the network as one processor; 1 where neither accepts anything."""
    ours, base = (
        sum(seen.values("throughput", seed=seed, scheduler=name, **at)) for name in (scheduler, "uni")
    )
    return ours / base if base else 1.0


def carried(seen: Observations, seed: int, load: float) -> float:
    """The share of the offered load that non-block NP-EDF carries at a load of the grid, mean over its settings."""
    shares = []
    for row in seen.rows("throughput", seed=seed, part="grid", load=load, scheduler="non-block"):
        at = {name: row.at[name] for name in ("part", "topology", "fidelity", "load")}
        offered = mean(seen, "offered", seed=seed, **at)
        shares.append(row.value / offered if offered else 1.0)
    return sum(shares) / len(shares)


def mean(seen: Observations, metric: str, **at: Coordinate) -> float:
    """The mean of the rows of a metric at these coordinates. ValueError where there is none."""
    values = seen.values(metric, **at)
    if not values:
        raise ValueError(f"no {metric} was observed at {at}")
    return sum(values) / len(values)
