"""Stage 1, SGB: which schemas contain which, comparing within clusters only.

Tables in descending order of schema size; each joins the cluster of every centre whose schema contains its own, and
becomes a centre where there is none. No pair is missed: if A's schema is in B's, B lies under a centre c (or is one)
with B's schema in c's; then A's is in c's too, so A and B meet in c's cluster. A table must join all its centres: with
disjoint clusters A may sit under another centre than B.

Schemas are sets of (name, type); they become integers with one bit a column of the lake, so that a test is one `and`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

Edge = tuple[int, int]  # (container, contained), places in the list of tables
Schema = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class SchemaGraph:
    """edges: all (container, contained) whose schemas contain each other, sorted. comparisons: tests made."""

    edges: tuple[Edge, ...]
    comparisons: int
    centres: tuple[int, ...]


def schema_graph(schemas: Sequence[Schema], clustered: bool = True, every_centre: bool = True) -> SchemaGraph:
    """The schema containment graph.

    clustered: False compares all pairs. every_centre: False lets a table join one cluster only, which loses edges.
    """
    columns = {column: place for place, column in enumerate(sorted({c for s in schemas for c in s}))}
    bits = [sum(1 << columns[column] for column in schema) for schema in schemas]
    order = sorted(range(len(bits)), key=lambda place: (-bits[place].bit_count(), place))
    comparisons = 0
    clusters: dict[int, list[int]] = {} if clustered else {-1: list(order)}
    for place in order if clustered else ():
        joined = False
        for centre, cluster in clusters.items():
            comparisons += 1
            if bits[place] & bits[centre] == bits[place]:
                cluster.append(place)
                joined = True
                if not every_centre:
                    break
        if not joined:
            clusters[place] = [place]
    edges: set[Edge] = set()
    compared: set[Edge] = set()
    for cluster in clusters.values():  # larger schemas first, so one test a pair, and two ways if equal
        for larger, smaller in combinations(cluster, 2):
            if (larger, smaller) in compared:
                continue
            compared.add((larger, smaller))
            comparisons += 1
            if bits[smaller] & bits[larger] == bits[smaller]:
                edges.add((larger, smaller))
                if bits[smaller] == bits[larger]:
                    edges.add((smaller, larger))
    return SchemaGraph(tuple(sorted(edges)), comparisons, tuple(clusters) if clustered else ())
