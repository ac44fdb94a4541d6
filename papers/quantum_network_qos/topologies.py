"""The paper's networks: star, H, line, symmetric and SURFnet. Every node has 1 communication and 3 storage qubits."""

import heapq
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from papers.quantum_network_qos.links import NV_5KM, Capability


@dataclass(frozen=True)
class Qubits:
    """How many qubits of a kind a node has. Only communication qubits make pairs; both kinds store halves."""

    communication: int = 1
    storage: int = 3


@dataclass(frozen=True)
class Network:
    """Nodes with qubits, links with the same capabilities everywhere; `ends` are the nodes that users sit at.

    ValueError for a link or a user at a node that does not exist.
    """

    nodes: tuple[tuple[str, Qubits], ...]
    edges: tuple[tuple[str, str], ...]
    ends: tuple[str, ...]
    capabilities: tuple[Capability, ...] = NV_5KM

    def __post_init__(self) -> None:
        known = dict(self.nodes)
        for name in {*self.ends, *(node for edge in self.edges for node in edge)}:
            if name not in known:
                raise ValueError(f"node {name!r} has no qubits")

    def qubits(self, node: str) -> Qubits:
        return dict(self.nodes)[node]

    def path(self, source: str, target: str) -> tuple[str, ...]:
        """The shortest path by number of links (they are equally long); of several the first by name.

        ValueError where the two are not connected.
        """
        near: dict[str, list[str]] = {}
        for a, b in self.edges:
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        heap: list[tuple[int, tuple[str, ...]]] = [(0, (source,))]
        done: set[str] = set()
        while heap:
            links, path = heapq.heappop(heap)
            if path[-1] == target:
                return path
            if path[-1] not in done:
                done.add(path[-1])
                for node in near.get(path[-1], []):
                    if node not in done:
                        heapq.heappush(heap, (links + 1, (*path, node)))
        raise ValueError(f"no path from {source!r} to {target!r}")


def _network(
    edges: list[tuple[str, str]],
    ends: list[str],
    qubits: Qubits,
    capabilities: tuple[Capability, ...],
) -> Network:
    names = sorted({node for edge in edges for node in edge}, key=lambda name: (len(name), name))
    return Network(tuple((name, qubits) for name in names), tuple(edges), tuple(ends), capabilities)


def topology(name: str, capabilities: tuple[Capability, ...] = NV_5KM, qubits: Qubits = Qubits()) -> Network:
    """One of the paper's four small networks (Section on evaluation). ValueError for another name.

    star: users 0-2 around repeater 3. H: users 0, 2 at repeater 1 and 3, 5 at repeater 4. line: six users in a row.
    symm: users 0-3, each at one of the repeaters 4-7, which are all linked.
    """
    if name == "star":
        edges, ends = [("3", end) for end in "012"], list("012")
    elif name == "H":
        edges, ends = [("0", "1"), ("1", "2"), ("1", "4"), ("3", "4"), ("4", "5")], list("0235")
    elif name == "line":
        edges, ends = [(str(i), str(i + 1)) for i in range(5)], list("012345")
    elif name == "symm":
        edges = [(str(i), str(i + 4)) for i in range(4)] + list(combinations("4567", 2))
        ends = list("0123")
    else:
        raise ValueError(f"unknown topology {name!r}; one of star, H, line, symm")
    return _network(edges, ends, qubits, capabilities)


def surfnet(path: Path, capabilities: tuple[Capability, ...], qubits: Qubits = Qubits()) -> Network:
    """SURFnet's core with one user a city, from the authors' Surfnet.gml (54 repeaters, 54 users). Needs NetworkX."""
    import networkx

    graph = networkx.read_gml(path)
    ends = [node for node in graph.nodes if graph.nodes[node]["end_node"]]
    return _network(list(graph.edges), ends, qubits, capabilities)
