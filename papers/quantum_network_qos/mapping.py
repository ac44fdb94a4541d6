"""A protocol mapped to qubits and slots: ASAP, then ALAP, then swaps and distillations early again.

A link is made with the communication qubit of both ends; each half goes to a storage qubit, which is taken from the
start of link generation until a swap or a distillation frees it (the lock). Without a free storage qubit the half stays
in the communication qubit, which then makes no other link.

An operation waits for the operations that left halves in its own qubits, and for nothing else: measurements at
different nodes commute up to Pauli corrections, which travel as classical bits, so that two swaps, or a swap and a
distillation of the pairs that it makes, may run in the same slot (so does the authors' code).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, log

from common.scheduling.task_graph import (
    Operation,
    Placed,
    TaskGraph,
    as_early_as_possible,
    as_late_as_possible,
    list_schedule,
    makespan,
)
from papers.quantum_network_qos.links import SLOT
from papers.quantum_network_qos.protocols import Distil, Link, Protocol, Swap, links, parts
from papers.quantum_network_qos.topologies import Qubits


class DoesNotFit(Exception):
    """The qubits of a node don't suffice for the protocol in the order tried."""


@dataclass(frozen=True)
class Timing:
    """Seconds a slot; slots of a swap and of a distillation; share of link generations that a reservation covers.

    covers = 0: the mean time of a link generation is reserved, as in the paper; else the time within which this share
    of them has succeeded.
    """

    slot: float = SLOT
    swap: int = 1
    distil: int = 1
    covers: float = 0.0

    def link(self, rate: float) -> int:
        """Slots reserved for a link generation of this rate."""
        mean = 1 / (rate * self.slot)
        return ceil((-log(1 - self.covers) if self.covers else 1.0) * mean - 1e-9)

    def slots(self, protocol: Protocol) -> int:
        """Slots of the protocol's last operation."""
        if isinstance(protocol, Link):
            return self.link(protocol.rate)
        return self.swap if isinstance(protocol, Swap) else self.distil


@dataclass(frozen=True)
class Concrete:
    """A protocol on qubits and slots: the steps, their length, and the protocol behind each step."""

    protocol: Protocol
    steps: tuple[Placed, ...]
    behind: Mapping[str, Protocol]

    @property
    def duration(self) -> int:
        return int(makespan(self.steps))

    def stored(self) -> int:
        """Slots that halves spend in qubits while nothing happens to them, over all qubits: time to decohere."""
        total = 0.0
        for step in self.steps:
            for qubit in step.keeps:
                after = [s.start for s in self.steps if qubit in s.resources and s.start >= step.end]
                total += min(after, default=self.duration) - step.end
        return int(total)


def map_to_qubits(protocol: Protocol, qubits: Mapping[str, Qubits], timing: Timing) -> Concrete:
    """ASAP, ALAP, early swaps and distillations; starts at slot 0. Raises DoesNotFit."""
    asap, behind = as_soon_as_possible(protocol, qubits, timing)
    late = as_late_as_possible(asap)
    begin = min(step.start for step in late)
    if begin:
        late = tuple(replace(step, start=step.start - begin, end=step.end - begin) for step in late)
    moving = [name for name, part in behind.items() if not isinstance(part, Link)]
    return Concrete(protocol, as_early_as_possible(late, moving), behind)


def as_soon_as_possible(
    protocol: Protocol, qubits: Mapping[str, Qubits], timing: Timing
) -> tuple[tuple[Placed, ...], dict[str, Protocol]]:
    """The steps in post-order, each on the qubits that are free first; and the protocol behind each step."""
    operations: list[Operation] = []
    length = _lengths(protocol, timing)
    behind: dict[str, Protocol] = {}
    halves: dict[str, dict[str, str]] = {}  # step -> node -> the step that leaves the half there

    def visit(part: Protocol) -> dict[str, str]:
        below = [visit(inner) for inner in sorted(parts(part), key=lambda p: -length[id(p)])]
        kind = type(part).__name__[0]
        name = f"{kind}{len(operations)} {part.at if isinstance(part, Swap) else '-'.join(part.ends)}"
        nodes = (part.at,) if isinstance(part, Swap) else part.ends
        taken = [holder[node] for node in nodes for holder in below]
        operations.append(Operation(name, timing.slots(part), (), tuple(dict.fromkeys(taken))))
        behind[name] = part
        left = {node: step for holder in below for node, step in holder.items()}
        if not isinstance(part, Swap):
            left = dict.fromkeys(part.ends, name)
        halves[name] = left
        return left

    visit(protocol)
    locks: dict[str, str] = {}  # qubit -> the step that keeps a half in it

    def place(operation: Operation, ready: float, free: Mapping[str, float]) -> Placed:
        part = behind[operation.name]
        if isinstance(part, Link):
            used, keeps = _link_qubits(part, qubits, locks, free)
        else:
            nodes = (part.at,) if isinstance(part, Swap) else part.ends
            held = {node: _held(node, operation.after, locks) for node in nodes}
            used = tuple(sorted(qubit for own in held.values() for qubit in own))
            # of two halves the one in a storage qubit stays, so that the communication qubit can make links again
            keeps = tuple(max(own) for own in held.values()) if isinstance(part, Distil) else ()
        start = max([ready, *(free.get(qubit, 0) for qubit in used)])
        for qubit in used:
            locks.pop(qubit, None)
        locks.update(dict.fromkeys(keeps, operation.name))
        return Placed(operation.name, start, start + operation.duration, used, keeps, operation.after)

    return list_schedule(TaskGraph(operations), place), behind


def _link_qubits(
    link: Link, qubits: Mapping[str, Qubits], locks: Mapping[str, str], free: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The qubits that make and store a link (of each kind the one that is free first), and those that keep it."""
    used, keeps = [], []
    for node in link.ends:
        kinds = []
        for kind, number in (("C", qubits[node].communication), ("S", qubits[node].storage)):
            names = [name for i in range(number) if (name := f"{node}-{kind}{i}") not in locks]
            kinds.append(min(names, key=lambda name: (free.get(name, 0), name), default=None))
        communication, storage = kinds
        if communication is None:
            raise DoesNotFit(f"node {node} has no communication qubit left for another link")
        used += [communication] if storage is None else [communication, storage]
        keeps.append(communication if storage is None else storage)
    return tuple(used), tuple(keeps)


def _held(node: str, steps: tuple[str, ...], locks: Mapping[str, str]) -> list[str]:
    return [qubit for qubit, step in locks.items() if step in steps and qubit.rpartition("-")[0] == node]


def _lengths(protocol: Protocol, timing: Timing) -> dict[int, int]:
    """Of the protocol and its parts, by id: slots of the longest way from a link to the end."""
    found: dict[int, int] = {}

    def visit(part: Protocol) -> int:
        if id(part) not in found:  # parts may be shared
            found[id(part)] = max(map(visit, parts(part)), default=0) + timing.slots(part)
        return found[id(part)]

    visit(protocol)
    return found


def least_slots(protocol: Protocol, qubits: Mapping[str, Qubits], timing: Timing) -> float:
    """No mapping is shorter: what the links ask of the communication qubits of the busiest node."""
    work: dict[str, int] = {}
    for link in links(protocol):
        for node in link.ends:
            work[node] = work.get(node, 0) + timing.link(link.rate)
    return max(slots / max(qubits[node].communication, 1) for node, slots in work.items())
