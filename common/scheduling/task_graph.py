"""A graph of operations that need named resources: list scheduling as soon as possible, then as late as possible.

Time is a number of any unit. A resource is used by one operation at a time; an operation may also keep a resource after
its end, until the next operation that uses it begins (a buffer that holds a result, a qubit that holds half of a pair).

    graph = TaskGraph([Operation("a", 3, ("cpu",)), Operation("b", 2, ("dsp",), after=("a",))])
    placed = list_schedule(graph)
    late = as_late_as_possible(placed)
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True)
class Operation:
    """A node of the graph: its duration, the resources it needs at once, the operations that must end before it."""

    name: str
    duration: float
    resources: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placed:
    """An operation with its time and resources; of these it keeps `keeps` until their next use begins."""

    name: str
    start: float
    end: float
    resources: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class Use(NamedTuple):
    """A resource is taken in [begin, end)."""

    resource: str
    begin: float
    end: float


class TaskGraph:
    """Operations by name, in a topological order that keeps the given order where it can.

    ValueError for a name that is taken twice, an unknown predecessor, a negative duration or a cycle.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        given = list(operations)
        self.operations = {operation.name: operation for operation in given}
        if len(self.operations) < len(given):
            raise ValueError("two operations have the same name")
        for operation in given:
            if operation.duration < 0:
                raise ValueError(f"operation {operation.name!r} has a negative duration")
            for name in operation.after:
                if name not in self.operations:
                    raise ValueError(f"operation {operation.name!r} comes after {name!r}, which is unknown")
        self.order: list[Operation] = []
        seen: dict[str, bool] = {}  # False while its predecessors are visited
        for operation in given:
            self._visit(operation, seen)

    def _visit(self, first: Operation, seen: dict[str, bool]) -> None:
        stack = [first]
        while stack:
            operation = stack[-1]
            seen.setdefault(operation.name, False)
            ahead = [name for name in operation.after if not seen.get(name)]
            if any(name in seen for name in ahead):
                raise ValueError(f"operation {operation.name!r} is on a cycle")
            if ahead:
                stack.append(self.operations[ahead[0]])
                continue
            stack.pop()
            if not seen[operation.name]:
                seen[operation.name] = True
                self.order.append(operation)

    def tails(self) -> dict[str, float]:
        """Of each operation the longest way from its start to the end of the graph: the usual priority of lists."""
        tails: dict[str, float] = {}
        for operation in reversed(self.order):
            tails[operation.name] = tails.get(operation.name, 0.0) + operation.duration
            for name in operation.after:
                tails[name] = max(tails.get(name, 0.0), tails[operation.name])
        return tails


Place = Callable[[Operation, float, Mapping[str, float]], Placed]


def on_named_resources(operation: Operation, ready: float, free: Mapping[str, float]) -> Placed:
    """The default placement: the resources that the operation names, once all of them are free."""
    start = max([ready, *(free.get(resource, 0) for resource in operation.resources)])
    return Placed(operation.name, start, start + operation.duration, operation.resources, (), operation.after)


def list_schedule(
    graph: TaskGraph, place: Place = on_named_resources, priority: Mapping[str, float] | None = None
) -> tuple[Placed, ...]:
    """As soon as possible: one operation after the other is appended to the resources it gets.

    place(operation, ready, free): chooses time and resources; `ready` is the end of its predecessors, `free` the end of
    each resource's last use. It may raise to say that there is no place. priority: of the operations whose predecessors
    are placed the largest goes first (such as `graph.tails()`); without it they go in the graph's order.
    """
    free: dict[str, float] = {}
    ends: dict[str, float] = {}
    placed = []
    left = list(graph.order)
    while left:
        at = 0
        if priority is not None:
            ready = [i for i, op in enumerate(left) if all(name in ends for name in op.after)]
            at = max(ready, key=lambda i: (priority[left[i].name], -i))
        operation = left.pop(at)
        found = place(operation, max((ends[name] for name in operation.after), default=0), free)
        ends[operation.name] = found.end
        for resource in found.resources:
            free[resource] = found.end
        placed.append(found)
    return tuple(placed)


def makespan(placed: Collection[Placed]) -> float:
    """From the first start to the last end."""
    return max(p.end for p in placed) - min(p.start for p in placed) if placed else 0


def as_late_as_possible(placed: Sequence[Placed], end: float | None = None) -> tuple[Placed, ...]:
    """The same operations pushed late, with the order on every resource and the last end (or `end`) kept."""
    last = max(p.end for p in placed) if end is None else end
    before, begins = _follow(placed), dict[str, float]()
    for p in sorted(placed, key=lambda p: (p.start, p.end), reverse=True):
        latest = min((begins[name] for name in before[p.name]), default=last)
        begins[p.name] = latest - (p.end - p.start)
    return _moved(placed, begins)


def as_early_as_possible(placed: Sequence[Placed], moving: Collection[str]) -> tuple[Placed, ...]:
    """The operations named in `moving` pulled early, with the order on every resource kept; the others stay."""
    behind: dict[str, list[str]] = {p.name: [] for p in placed}
    for name, followers in _follow(placed).items():
        for follower in followers:
            behind[follower].append(name)
    ends, begins = dict[str, float](), dict[str, float]()
    for p in sorted(placed, key=lambda p: (p.start, p.end)):
        earliest = max((ends[name] for name in behind[p.name]), default=0)
        begins[p.name] = earliest if p.name in moving else p.start
        ends[p.name] = begins[p.name] + (p.end - p.start)
    return _moved(placed, begins)


def _moved(placed: Sequence[Placed], begins: Mapping[str, float]) -> tuple[Placed, ...]:
    return tuple(
        p
        if begins[p.name] == p.start
        else replace(p, start=begins[p.name], end=begins[p.name] + (p.end - p.start))
        for p in placed
    )


def _follow(placed: Sequence[Placed]) -> dict[str, set[str]]:
    """Of each operation those that must wait for its end: its successors, and the next users of its resources."""
    followers: dict[str, set[str]] = {p.name: set() for p in placed}
    for p in placed:
        for name in p.after:
            followers[name].add(p.name)
    for uses in users(placed).values():
        for first, second in zip(uses, uses[1:], strict=False):
            followers[first.name].add(second.name)
    return followers


def users(placed: Iterable[Placed]) -> dict[str, list[Placed]]:
    """Of each resource the operations that use it, in order of time."""
    found: dict[str, list[Placed]] = {}
    for p in sorted(placed, key=lambda p: (p.start, p.end)):
        for resource in p.resources:
            found.setdefault(resource, []).append(p)
    return found


def occupation(placed: Collection[Placed]) -> tuple[Use, ...]:
    """When each resource is taken, what is kept included; what is kept and never used again is kept to the end."""
    last = max(p.end for p in placed)
    taken = []
    for resource, uses in sorted(users(placed).items()):
        spans: list[list[float]] = []
        for i, p in enumerate(uses):
            until = p.end
            if resource in p.keeps:
                until = uses[i + 1].start if i + 1 < len(uses) else last
            if spans and spans[-1][1] == p.start:
                spans[-1][1] = until
            else:
                spans.append([p.start, until])
        taken += [Use(resource, begin, end) for begin, end in spans if end > begin]
    return tuple(taken)
