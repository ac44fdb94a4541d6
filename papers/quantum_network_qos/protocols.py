"""Repeater protocols as trees: links at the leaves, swaps and distillations above them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from papers.quantum_network_qos.werner import distil, swap


@dataclass(frozen=True)
class Link:
    """Make a pair between two neighbours: (F, rate) is one of the link's capabilities."""

    ends: tuple[str, str]
    fidelity: float
    rate: float


@dataclass(frozen=True)
class Swap:
    """Measure both halves at a repeater, so that the far ends share a pair."""

    at: str
    left: "Protocol"
    right: "Protocol"

    @cached_property
    def ends(self) -> tuple[str, str]:
        return self.left.ends[0], self.right.ends[1]

    @cached_property
    def fidelity(self) -> float:
        return swap(self.left.fidelity, self.right.fidelity)


@dataclass(frozen=True)
class Distil:
    """Spend one pair to raise the fidelity of another one between the same ends."""

    kept: "Protocol"
    spent: "Protocol"

    @cached_property
    def ends(self) -> tuple[str, str]:
        return self.kept.ends

    @cached_property
    def fidelity(self) -> float:
        return distil(self.kept.fidelity, self.spent.fidelity)


Protocol = Link | Swap | Distil


def parts(protocol: Protocol) -> tuple[Protocol, ...]:
    """The protocols that this one builds upon."""
    if isinstance(protocol, Link):
        return ()
    if isinstance(protocol, Swap):
        return protocol.left, protocol.right
    return protocol.kept, protocol.spent


def renamed(protocol: Protocol, name: Callable[[str], str]) -> Protocol:
    """The same protocol between other nodes."""
    if isinstance(protocol, Link):
        return replace(protocol, ends=(name(protocol.ends[0]), name(protocol.ends[1])))
    if isinstance(protocol, Swap):
        return Swap(name(protocol.at), renamed(protocol.left, name), renamed(protocol.right, name))
    return Distil(renamed(protocol.kept, name), renamed(protocol.spent, name))


def links(protocol: Protocol) -> list[Link]:
    """Its link generations, from left to right."""
    if isinstance(protocol, Link):
        return [protocol]
    return [link for part in parts(protocol) for link in links(part)]


def distillations(protocol: Protocol) -> list[Distil]:
    """Its distillations."""
    own = [protocol] if isinstance(protocol, Distil) else []
    return own + [found for part in parts(protocol) for found in distillations(part)]


def pumped(base: Protocol, times: int) -> Protocol:
    """Distil `times` times, each time with a fresh copy of `base`."""
    protocol = base
    for _ in range(times):
        protocol = Distil(protocol, base)
    return protocol


def nested(base: Protocol, levels: int) -> Protocol:
    """Distil two equal pairs, two of the results, and so on: 2^levels copies of `base`."""
    protocol = base
    for _ in range(levels):
        protocol = Distil(protocol, protocol)
    return protocol
