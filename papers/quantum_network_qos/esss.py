"""Entanglement swap scheme search (ESSS): the fastest repeater protocol along a path for a fidelity and a rate.

A path is split at a pivot, whose swap joins the protocols of both halves; the pair may then be distilled k times with
fresh copies of itself. What the halves must reach follows from undoing the distillations and the swap. The pivot moves
towards the slower half until both are equally fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from papers.quantum_network_qos.links import Capability
from papers.quantum_network_qos.mapping import Concrete, DoesNotFit, Timing, least_slots, map_to_qubits
from papers.quantum_network_qos.protocols import Link, Protocol, Swap, nested, pumped, renamed
from papers.quantum_network_qos.topologies import Network, Qubits
from papers.quantum_network_qos.werner import before_pumpings, levels, pumpings, unswap

PUMPINGS = 8  # after a swap, at most; a further one lowers what the halves need by less than 0.002
LINK_PUMPINGS = 40  # on a link, at most


@dataclass(frozen=True)
class Found:
    """A protocol between the nodes "0" ... "n-1" of a path, and pairs per second once mapped to these nodes' qubits."""

    protocol: Protocol
    rate: float

    @property
    def key(self) -> tuple[float, float]:
        return self.rate, self.protocol.fidelity


@cache
def find_protocol(
    network: Network, source: str, target: str, fidelity: float, timing: Timing, rate: float = 0.0
) -> Concrete | None:
    """The fastest protocol for a pair of users on their shortest path, mapped to qubits; None where there is none."""
    path = network.path(source, target)
    found = esss(tuple(network.qubits(node) for node in path), network.capabilities, fidelity, rate, timing)
    if found is None:
        return None
    protocol = renamed(found.protocol, lambda place: path[int(place)])
    return map_to_qubits(protocol, dict(network.nodes), timing)


@cache
def esss(
    qubits: tuple[Qubits, ...],
    capabilities: tuple[Capability, ...],
    fidelity: float,
    rate: float,
    timing: Timing,
) -> Found | None:
    """The best protocol along nodes with these qubits, of at least this fidelity and rate (pairs per second)."""
    if len(qubits) == 2:
        return _on_a_link(qubits, capabilities, fidelity, rate, timing)
    best: Found | None = None
    lower, upper = 1, len(qubits) - 1
    while lower < upper:
        pivot = (lower + upper + 1) // 2 - 1
        split, left, right = _at_pivot(pivot, qubits, capabilities, fidelity, rate, timing)
        if split is not None and (best is None or split.key > best.key):
            best = split
        if left == right:
            break
        if left < right:
            upper -= 1
        else:
            lower += 1
    return best


def _at_pivot(
    pivot: int,
    qubits: tuple[Qubits, ...],
    capabilities: tuple[Capability, ...],
    fidelity: float,
    rate: float,
    timing: Timing,
) -> tuple[Found | None, float, float]:
    """The fastest of swapping at a node and then pumping k = 0, 1, ... times; and the rates of its two halves."""
    best: tuple[Found | None, float, float] = (None, 0.0, 0.0)
    fastest = min(timing.link(capability.rate) for capability in capabilities)
    for k in range(PUMPINGS + 1):
        least = (
            2 * (k + 1) * fastest / qubits[pivot].communication
        )  # slots of the pivot's communication qubits
        if best[0] is not None and best[0].rate * timing.slot * least > 1 + 1e-9:
            break
        before = before_pumpings(fidelity, k)
        if before is None:
            break
        spare = list(qubits)
        for place in (pivot, 0, len(qubits) - 1) if k else (pivot,):  # one half waits there
            spare[place] = Qubits(spare[place].communication, spare[place].storage - 1)
        if any(node.storage < 0 for node in spare):
            break
        needs = capabilities, unswap(before), rate * (k + 1), timing
        left, right = esss(tuple(spare[: pivot + 1]), *needs), esss(tuple(spare[pivot:]), *needs)
        if left is None or right is None:
            continue
        joined = Swap(
            str(pivot), left.protocol, renamed(right.protocol, lambda place: str(int(place) + pivot))
        )
        slower = best[0].rate if best[0] is not None else 0.0
        found = _mapped(pumped(joined, k), qubits, fidelity, max(rate, slower), timing)
        if found is not None and (best[0] is None or found.key > best[0].key):
            best = found, left.rate, right.rate
    return best


def _on_a_link(
    qubits: tuple[Qubits, ...],
    capabilities: tuple[Capability, ...],
    fidelity: float,
    rate: float,
    timing: Timing,
) -> Found | None:
    """The fastest single link that reaches the fidelity; without one the best of pumping and nested distillation."""
    ends = ("0", "1")
    direct = [c for c in capabilities if c.fidelity >= fidelity and c.rate >= rate]
    if direct:
        chosen = max(direct, key=lambda c: (c.rate, c.fidelity))
        return _mapped(Link(ends, chosen.fidelity, chosen.rate), qubits, fidelity, rate, timing)
    memory = min(node.communication + node.storage for node in qubits)
    candidates = []
    for capability in capabilities if memory > 1 else ():
        base = Link(ends, capability.fidelity, capability.rate)
        times = pumpings(capability.fidelity, fidelity)
        if times <= LINK_PUMPINGS:
            candidates.append(pumped(base, int(times)))
        deep = levels(capability.fidelity, fidelity)
        if 1 < deep <= memory - 1:  # a pair of each level waits for its twin; one level is one pumping
            candidates.append(nested(base, int(deep)))
    best: Found | None = None
    for protocol in candidates:
        found = _mapped(protocol, qubits, fidelity, best.rate if best else rate, timing)
        if found is not None and (best is None or found.key > best.key):
            best = found
    return best


def _mapped(
    protocol: Protocol, qubits: tuple[Qubits, ...], fidelity: float, rate: float, timing: Timing
) -> Found | None:
    """The protocol with the rate of its mapping; None where it does not fit or reaches too little."""
    if protocol.fidelity < fidelity - 1e-9:
        return None
    nodes: Mapping[str, Qubits] = {str(place): node for place, node in enumerate(qubits)}
    if least_slots(protocol, nodes, timing) * timing.slot * rate > 1 + 1e-9:
        return None  # too slow, however it is mapped
    try:
        slots = map_to_qubits(protocol, nodes, timing).duration
    except DoesNotFit:
        return None
    found = Found(protocol, 1 / (slots * timing.slot))
    return found if found.rate >= rate - 1e-12 else None
