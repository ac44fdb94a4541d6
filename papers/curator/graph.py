"""HNSW graphs: one for all with inline filtering (MF-HNSW), or one a tenant (PT-HNSW).

faiss builds the graphs; they are searched here, by the same kernels as all other indexes. Inline filtering as in
hnswlib: the search walks through every vector, but only accessible ones enter the results, and it goes on until the
`ef` results it has are nearer than all that is left.
"""

from typing import Any, NamedTuple

import numpy as np

from papers.curator.compiled import kernel, nanoseconds, squared_distance
from papers.curator.heap import drop_first, keep_nearest, push
from papers.curator.search import Found, Out, found, prepare, write_nearest
from papers.curator.storage import Lists, bytes_of, contains_sorted, empty_lists


class Graphs(NamedTuple):
    """Graphs side by side; row r of a graph stands in base[g] + r."""

    vectors: np.ndarray  # float32 (rows, d)
    ids: np.ndarray  # int32 (rows,)
    base: np.ndarray  # int64 (graphs + 1,): the first row of each; (2,) where all share one
    entry: np.ndarray  # int64 (graphs,): row within the graph, -1 where it is empty
    top: np.ndarray  # int64 (graphs,): highest level
    offsets: np.ndarray  # int64 (rows,): where a row's neighbours begin
    levels: (
        np.ndarray
    )  # int64 (levels + 1,): a row's neighbours on level l are levels[l] to levels[l + 1] further on
    neighbours: np.ndarray  # int32, rows within the graph, -1 ends them
    access: Lists  # tenants of each vector; none where each tenant has a graph
    visited: np.ndarray  # int32 (rows,), scratch


@kernel
def search_graphs(graphs: Graphs, queries: Any, tenants: Any, ef: int, out: Out) -> None:
    """Greedy descent to level 0, then best-first with the `ef` nearest accessible results (Malkov and Yashunin)."""
    shared = len(graphs.base) == 2
    k = out.ids.shape[1]
    queue, rows, near, results = out.keys[0], out.items[0], out.keys[2], out.items[2]
    for q in range(len(tenants)):
        begun = nanoseconds(out.clock)
        tenant, tests, scanned = tenants[q], 0, 0
        graph = 0 if shared else tenant
        base = graphs.base[graph]
        size, waiting = 0, 0
        if graphs.entry[graph] >= 0:
            row = graphs.entry[graph] + base
            nearest = squared_distance(queries, q, graphs.vectors, row)
            scanned += 1
            for level in range(graphs.top[graph], 0, -1):
                moved = True
                while moved:
                    moved = False
                    begin = graphs.offsets[row]
                    for i in range(begin + graphs.levels[level], begin + graphs.levels[level + 1]):
                        if graphs.neighbours[i] < 0:
                            break
                        other = graphs.neighbours[i] + base
                        distance = squared_distance(queries, q, graphs.vectors, other)
                        scanned += 1
                        if distance < nearest:
                            nearest, row, moved = distance, other, True
            graphs.visited[row] = q + 1
            waiting = push(queue, rows, 0, nearest, row)
            allowed = True
            if shared:
                tests += 1
                allowed = contains_sorted(graphs.access, int(graphs.ids[row]), tenant)
            if allowed:
                size = keep_nearest(near, results, size, ef, nearest, row)
        while waiting > 0:
            if size == ef and queue[0] > -near[0]:
                break
            row = rows[0]
            waiting = drop_first(queue, rows, waiting)
            begin = graphs.offsets[row]
            for i in range(begin, begin + graphs.levels[1]):
                if graphs.neighbours[i] < 0:
                    break
                other = graphs.neighbours[i] + base
                if graphs.visited[other] == q + 1:
                    continue
                graphs.visited[other] = q + 1
                distance = squared_distance(queries, q, graphs.vectors, other)
                scanned += 1
                if size < ef or distance < -near[0]:
                    waiting = push(queue, rows, waiting, distance, other)
                    allowed = True
                    if shared:
                        tests += 1
                        allowed = contains_sorted(graphs.access, int(graphs.ids[other]), tenant)
                    if allowed:
                        size = keep_nearest(near, results, size, ef, distance, other)
        while size > k:
            size = drop_first(near, results, size)
        for i in range(size):
            results[i] = graphs.ids[results[i]]
        write_nearest(out, q, size)
        out.touched[q, 0], out.touched[q, 1], out.touched[q, 2] = 0, tests, scanned
        out.times[q] = nanoseconds(out.clock) - begun


class HnswGraphs:
    """MF-HNSW or PT-HNSW over graphs that faiss built."""

    def __init__(
        self, vectors: np.ndarray, owned: list[np.ndarray], links: int, effort: int, access: Lists
    ) -> None:
        """One graph for each set of rows owned[g] of vectors float32 (n, d).

        links: M, half the neighbours on level 0. effort: efConstruction. access: tenants of each row (shared graph).
        """
        import faiss

        entry, top, offsets, neighbours = [], [], [], []
        base, used = [0], 0
        levels = np.zeros(2, dtype=np.int64)
        for rows in owned:
            built = faiss.IndexHNSWFlat(vectors.shape[1], links)
            built.hnsw.efConstruction = effort
            if len(rows):
                built.add(np.ascontiguousarray(vectors[rows]))
            hnsw: Any = built.hnsw
            entry.append(hnsw.entry_point)
            top.append(max(hnsw.max_level, 0))
            starts = faiss.vector_to_array(hnsw.offsets).astype(np.int64)
            flat = faiss.vector_to_array(hnsw.neighbors)
            offsets.append(starts[:-1] + used)
            neighbours.append(flat)
            used += len(flat)
            base.append(base[-1] + len(rows))
            found_levels = faiss.vector_to_array(hnsw.cum_nneighbor_per_level).astype(np.int64)
            if len(found_levels) > len(levels):
                levels = found_levels
        ids = np.concatenate(owned).astype(np.int32)
        self.graphs = Graphs(
            np.ascontiguousarray(vectors[ids], dtype=np.float32),
            ids,
            np.array(base, dtype=np.int64),
            np.array(entry, dtype=np.int64),
            np.array(top, dtype=np.int64),
            np.concatenate(offsets),
            levels,
            np.concatenate(neighbours).astype(np.int32),
            access,
            np.zeros(len(ids), dtype=np.int32),
        )

    @classmethod
    def shared(cls, vectors: np.ndarray, access: Lists, links: int = 32, effort: int = 32) -> "HnswGraphs":
        """One graph over all vectors, filtered by their tenants."""
        return cls(vectors, [np.arange(len(vectors))], links, effort, access)

    @classmethod
    def per_tenant(
        cls, vectors: np.ndarray, owned: list[np.ndarray], links: int = 32, effort: int = 32
    ) -> "HnswGraphs":
        """A graph for each tenant, over copies of its vectors."""
        if len(owned) < 2:
            raise ValueError("graphs a tenant need at least two tenants")
        return cls(vectors, owned, links, effort, empty_lists(0, 0))

    def search(self, queries: np.ndarray, tenants: np.ndarray, k: int = 10, ef: int = 16) -> Found:
        """The k nearest of what tenant i may see to query i; ef (at least k) is how many results are held."""
        self.graphs.visited[:] = 0
        out = prepare(len(queries), k, len(self.graphs.ids) + max(ef, k) + 1)
        search_graphs(
            self.graphs,
            np.ascontiguousarray(queries, dtype=np.float32),
            np.asarray(tenants, dtype=np.int64),
            max(ef, k),
            out,
        )
        return found(out)

    @property
    def wide_rows(self) -> int:
        """Rows of d floats: the vectors."""
        return len(self.graphs.vectors)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of every part."""
        graphs = self.graphs
        return {
            "vectors": graphs.vectors.nbytes,
            "access": bytes_of(graphs.access),
            "members": bytes_of(graphs.ids, graphs.base, graphs.entry, graphs.top),
            "links": bytes_of(graphs.neighbours, graphs.offsets),
        }
