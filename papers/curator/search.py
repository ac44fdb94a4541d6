"""Best-first search over one tenant's sub-tree (Curator, Section 5), and what a search reports."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from papers.curator.bloom import contains, places_of
from papers.curator.compiled import inner, kernel, nanoseconds, squared_distance
from papers.curator.heap import drop_first, keep_nearest, push
from papers.curator.sharing import NODE, State
from papers.curator.storage import SIZE, START, contains_sorted, look_up

CENTROIDS, TESTS, VECTORS = 0, 1, 2  # columns of Out.touched


class Out(NamedTuple):
    """What the kernels write, a row a query, and their scratch memory."""

    ids: np.ndarray  # int32 (queries, k), -1 where the tenant has fewer vectors
    distances: np.ndarray  # float32 (queries, k), squared
    touched: np.ndarray  # int32 (queries, 3): distances to centroids, access tests, distances to vectors
    times: np.ndarray  # int64 (queries,), nanoseconds
    keys: np.ndarray  # float32 (3, scratch): three heaps
    items: np.ndarray  # int32 (3, scratch)
    clock: np.ndarray  # int64 (2,)


@dataclass(frozen=True)
class Found:
    """The answers to a batch of queries, nearest first, and what they cost."""

    ids: np.ndarray  # int (queries, k), -1 where the tenant has fewer vectors
    distances: np.ndarray  # float32 (queries, k), squared; infinite where there is no vector
    centroids: np.ndarray  # (queries,) distances to centroids
    tests: np.ndarray  # (queries,) access tests
    vectors: np.ndarray  # (queries,) distances to vectors
    seconds: np.ndarray  # (queries,)

    @property
    def touched(self) -> np.ndarray:
        """Entries touched by each query: centroid distances, access tests and vector distances."""
        return self.centroids + self.tests + self.vectors


def prepare(queries: int, k: int, scratch: int) -> Out:
    """Arrays for a batch; `scratch` bounds what a heap may hold. ValueError for k below 1."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return Out(
        np.full((queries, k), -1, dtype=np.int32),
        np.full((queries, k), np.inf, dtype=np.float32),
        np.zeros((queries, 3), dtype=np.int32),
        np.zeros(queries, dtype=np.int64),
        np.zeros((3, scratch), dtype=np.float32),
        np.zeros((3, scratch), dtype=np.int32),
        np.zeros(2, dtype=np.int64),
    )


def found(out: Out) -> Found:
    """The answers in a readable form."""
    centroids, tests, vectors = out.touched.T.astype(np.int64)
    return Found(out.ids, out.distances, centroids, tests, vectors, out.times * 1e-9)


@inner
def write_nearest(out: Out, q: int, size: int) -> None:
    """Empty the heap of results (number 2) into row q, nearest first."""
    keys, items = out.keys[2], out.items[2]
    while size > 0:
        out.ids[q, size - 1] = items[0]
        out.distances[q, size - 1] = -keys[0]
        size = drop_first(keys, items, size)


@kernel
def search_tree(
    state: State,
    queries: Any,
    tenants: Any,
    collect: int,
    budget: int,
    filtered: bool,
    best_first: bool,
    places: Any,
    out: Out,
) -> None:
    """Descend to the tenant's buckets nearest first, until they hold `collect` vectors; scan the nearest `budget`.

    A bucket is a shortlist (its number) or a leaf without one (-1 - node). At least one bucket is scanned. filtered:
    skip what the Bloom filters rule out. best_first: False collects all buckets of the tenant and then sorts them.
    """
    tree, lists = state.tree, state.short
    k = out.ids.shape[1]
    queue, nodes, order, buckets, near, results = (
        out.keys[0],
        out.items[0],
        out.keys[1],
        out.items[1],
        out.keys[2],
        out.items[2],
    )
    bits = 64 * state.filters.shape[1]
    for q in range(len(tenants)):
        begun = nanoseconds(out.clock)
        tenant, centroids, tests, scanned = tenants[q], 0, 0, 0
        places_of(tenant, bits, places)
        waiting = push(queue, nodes, 0, 0.0, 0)
        kept, collected = 0, 0
        while waiting > 0 and (collected < collect or not best_first):
            distance, node = queue[0], nodes[0]
            waiting = drop_first(queue, nodes, waiting)
            bucket = look_up(state.shortlists, (node << NODE) | tenant)
            size = 0
            if bucket >= 0:
                size = lists.head[bucket, SIZE]
            elif filtered and not contains(state.filters, node, places):
                continue
            elif tree.children[node] > 0:
                for child in range(tree.first[node], tree.first[node] + tree.children[node]):
                    distance = np.float32(0)
                    if best_first:
                        distance = squared_distance(queries, q, tree.centroids, child)
                        centroids += 1
                    waiting = push(queue, nodes, waiting, distance, child)
                continue
            else:
                size = look_up(state.counts, (node << NODE) | tenant)
                bucket = -1 - node
            if size > 0:
                if not best_first:
                    distance = squared_distance(queries, q, tree.centroids, node)
                    centroids += 1
                kept = push(order, buckets, kept, distance, bucket)
                collected += size
        best, used = 0, 0
        while kept > 0:
            bucket = buckets[0]
            kept = drop_first(order, buckets, kept)
            if bucket >= 0:
                start, size = lists.head[bucket, START], lists.head[bucket, SIZE]
                if used > 0 and used + size > budget:
                    break
                used += size
                for i in range(start, start + size):
                    v = lists.data[i]
                    distance = squared_distance(queries, q, state.vectors, v)
                    best = keep_nearest(near, results, best, k, distance, v)
                scanned += size
            else:
                leaf = -1 - bucket
                size = look_up(state.counts, (leaf << NODE) | tenant)
                if used > 0 and used + size > budget:
                    break
                used += size
                start = state.members.head[leaf, START]
                for i in range(start, start + state.members.head[leaf, SIZE]):
                    v = state.members.data[i]
                    tests += 1
                    if contains_sorted(state.access, v, tenant):
                        distance = squared_distance(queries, q, state.vectors, v)
                        best = keep_nearest(near, results, best, k, distance, v)
                        scanned += 1
        write_nearest(out, q, best)
        out.touched[q, 0], out.touched[q, 1], out.touched[q, 2] = centroids, tests, scanned
        out.times[q] = nanoseconds(out.clock) - begun
