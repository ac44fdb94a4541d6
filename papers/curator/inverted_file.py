"""Inverted files: one for all with an access test (MF-IVF) and Bloom filters (+BF), or one a tenant (PT-IVF)."""

import time
from typing import Any, NamedTuple

import numpy as np

from papers.curator import bloom
from papers.curator.bloom import contains, insert, places_of
from papers.curator.compiled import inner, kernel, nanoseconds, squared_distance
from papers.curator.heap import drop_first, keep_nearest, push
from papers.curator.search import Found, Out, found, prepare, write_nearest
from papers.curator.storage import (
    SIZE,
    START,
    TOP,
    Lists,
    append,
    bytes_of,
    contains_sorted,
    empty_lists,
    insert_sorted,
    room,
    touched,
    trimmed,
)
from papers.curator.tree import k_means


class Files(NamedTuple):
    """One inverted file, or one a tenant side by side; list l holds ids, and beside each id its vector."""

    centroids: np.ndarray  # float32 (lists, d)
    bounds: np.ndarray  # int64 (tenants + 1,): a tenant's lists; (2,) where all share one file
    lists: Lists
    codes: np.ndarray  # float32 (places of lists, d)
    access: Lists  # tenants of each vector; none where each tenant has a file
    filters: np.ndarray  # uint64 (lists, words), or (0, 1)


@inner
def _put(files: Files, low: int, high: int, v: int, vectors: Any, row: int) -> int:
    """Append a vector to the nearest of the lists low to high - 1; the list."""
    best, nearest = np.float32(np.inf), low
    for centroid in range(low, high):
        distance = squared_distance(vectors, row, files.centroids, centroid)
        if distance < best:
            best, nearest = distance, centroid
    moved = int(append(files.lists, nearest, v))
    start, last = files.lists.head[nearest, START], files.lists.head[nearest, SIZE] - 1
    d = files.codes.shape[1]
    if moved >= 0:
        for i in range(last):
            for c in range(d):
                files.codes[start + i, c] = files.codes[moved + i, c]
    for c in range(d):
        files.codes[start + last, c] = vectors[row, c]
    return nearest


@kernel
def add_many(
    files: Files, ids: Any, vectors: Any, offsets: Any, tenants: Any, begin: int, places: Any
) -> int:
    """Insert vectors[i] as ids[i] for tenants[offsets[i]:offsets[i + 1]]; stops where room runs out, says how far."""
    shared, filtered = len(files.bounds) == 2, len(files.filters) > 0
    longest = 0
    for i in range(len(files.lists.head)):
        longest = max(longest, files.lists.head[i, SIZE])
    for i in range(begin, len(ids)):
        first, last = offsets[i], offsets[i + 1]
        need = 2 * (longest + i - begin + 1) * (1 if shared else last - first)
        if files.lists.state[TOP] + need > len(files.codes):
            return i
        v = ids[i]
        if not shared:
            for j in range(first, last):
                _put(files, files.bounds[tenants[j]], files.bounds[tenants[j] + 1], v, vectors, i)
            continue
        if files.access.state[TOP] + 4 * (last - first) > len(files.access.data):
            return i
        number = _put(files, 0, files.bounds[1], v, vectors, i)
        for j in range(first, last):
            insert_sorted(files.access, v, tenants[j])
            if filtered:
                places_of(tenants[j], 64 * files.filters.shape[1], places)
                insert(files.filters, number, places)
    return len(ids)


@kernel
def search_lists(
    files: Files, queries: Any, tenants: Any, nprobe: int, budget: int, filtered: bool, places: Any, out: Out
) -> None:
    """Scan the `nprobe` nearest lists; in a shared file every vector first meets the access test.

    filtered: pass over lists whose Bloom filter rules the tenant out, and scan lists until `budget` vectors of the
    tenant were seen instead of `nprobe` lists (the authors' MultiTenantIndexIVFFlatBF).
    """
    k, d_bits = out.ids.shape[1], 64 * files.filters.shape[1]
    order, numbers, near, results = out.keys[0], out.items[0], out.keys[2], out.items[2]
    shared = len(files.bounds) == 2
    data, head = files.lists.data, files.lists.head
    for q in range(len(tenants)):
        begun = nanoseconds(out.clock)
        tenant, tests, scanned = tenants[q], 0, 0
        low, high = files.bounds[0], files.bounds[1]
        if not shared:
            low, high = files.bounds[tenant], files.bounds[tenant + 1]
        if filtered:
            places_of(tenant, d_bits, places)
        size = 0
        for number in range(low, high):
            distance = squared_distance(queries, q, files.centroids, number)
            if not filtered or contains(files.filters, number, places):
                size = push(order, numbers, size, distance, number)
        best, probed = 0, 0
        while size > 0 and (scanned < budget if filtered else probed < nprobe):
            number = numbers[0]
            size = drop_first(order, numbers, size)
            probed += 1
            start = head[number, START]
            for i in range(start, start + head[number, SIZE]):
                v = int(data[i])
                if shared:
                    tests += 1
                    if not contains_sorted(files.access, v, tenant):
                        continue
                scanned += 1
                distance = squared_distance(queries, q, files.codes, i)
                best = keep_nearest(near, results, best, k, distance, v)
        write_nearest(out, q, best)
        out.touched[q, 0], out.touched[q, 1], out.touched[q, 2] = high - low, tests, scanned
        out.times[q] = nanoseconds(out.clock) - begun


class InvertedFiles:
    """MF-IVF or PT-IVF, with vectors stored list by list as in faiss."""

    def __init__(
        self,
        centroids: np.ndarray,
        bounds: np.ndarray,
        capacity: int,
        filter_capacity: int = 0,
        false_positives: float = 0.001,
    ) -> None:
        """centroids float32 (lists, d); bounds: a tenant's lists, [0, lists] for one shared file of `capacity` ids."""
        shared = len(bounds) == 2
        filters, self._places = np.zeros((0, 1), dtype=np.uint64), np.zeros(1, dtype=np.int64)
        if filter_capacity:
            filters, self._places = bloom.empty_filters(len(centroids), filter_capacity, false_positives)
        self.filtered = bool(filter_capacity)
        self.insert_seconds = 0.0  # spent on inserting, but for enlarging arrays
        d = centroids.shape[1]
        self.files = Files(
            np.ascontiguousarray(centroids, dtype=np.float32),
            np.asarray(bounds, dtype=np.int64),
            empty_lists(len(centroids), 0, used=len(centroids)),
            np.zeros((0, d), dtype=np.float32),
            empty_lists(capacity if shared else 0, 0, used=capacity if shared else 0),
            filters,
        )

    @classmethod
    def shared(
        cls, vectors: np.ndarray, lists: int, seed: int = 0, filter_capacity: int = 0, capacity: int = 0
    ) -> "InvertedFiles":
        """Trained on vectors float32 (n, d), empty; for ids below `capacity` (n by default)."""
        centroids, _ = k_means(vectors, min(lists, len(vectors)), seed)
        return cls(centroids, np.array([0, len(centroids)]), capacity or len(vectors), filter_capacity)

    @classmethod
    def per_tenant(
        cls,
        vectors: np.ndarray,
        owned: list[np.ndarray],
        vectors_a_list: float,
        lists_each: int = 0,
        seed: int = 0,
    ) -> "InvertedFiles":
        """One file a tenant, trained on its vectors vectors[owned[t]], a list for every so many of them; empty.

        lists_each: as many lists for every tenant instead (at most one a vector), as in the authors' runs.
        """
        parts, bounds = [], [0]
        for tenant, rows in enumerate(owned):
            lists = max(1, min(lists_each, len(rows)) if lists_each else round(len(rows) / vectors_a_list))
            if len(rows) == 0:
                parts.append(np.zeros((1, vectors.shape[1]), dtype=np.float32))
            elif lists == 1:
                parts.append(vectors[rows].mean(axis=0, keepdims=True))
            else:
                parts.append(k_means(vectors[rows], lists, seed + tenant)[0])
            bounds.append(bounds[-1] + lists)
        return cls(np.concatenate(parts), np.array(bounds), 0)

    def insert(self, ids: np.ndarray, vectors: np.ndarray, offsets: np.ndarray, tenants: np.ndarray) -> None:
        """Add vectors float32 (n, d) under new ids, each for its tenants tenants[offsets[i]:offsets[i + 1]]."""
        done, most = 0, int(np.diff(offsets).max(initial=1))
        while done < len(ids):
            self._make_room(len(ids) - done, int(offsets[-1] - offsets[done]), most)
            begun = time.perf_counter()
            done = add_many(self.files, ids, vectors, offsets, tenants, done, self._places)
            self.insert_seconds += time.perf_counter() - begun

    def _make_room(self, vectors: int, grants: int, most: int) -> None:
        """Room for at least one more vector with `most` grants, and for most of what is still to come."""
        files = self.files
        shared = len(files.bounds) == 2
        largest = 4 * (int(files.lists.head[:, SIZE].max(initial=0)) + 2) * (1 if shared else most)
        lists = room(files.lists, 3 * (vectors if shared else grants) + largest, 0)
        codes = files.codes
        if len(lists.data) > len(codes):
            codes = touched((len(lists.data), codes.shape[1]), np.float32)
            codes[: len(files.codes)] = files.codes
        access = room(files.access, 4 * grants, 0) if shared else files.access
        self.files = files._replace(lists=lists, codes=codes, access=access)

    def search(
        self, queries: np.ndarray, tenants: np.ndarray, k: int = 10, nprobe: int = 8, budget: int = 0
    ) -> Found:
        """The k nearest of what tenant i may see to query i, from `nprobe` lists (`budget` vectors with filters)."""
        out = prepare(len(queries), k, max(len(self.files.centroids), k) + 1)
        search_lists(
            self.files, np.ascontiguousarray(queries, dtype=np.float32), np.asarray(tenants, dtype=np.int64),
            nprobe, budget, self.filtered, self._places, out,
        )  # fmt: skip
        return found(out)

    @property
    def wide_rows(self) -> int:
        """Rows of d floats: vectors and centroids."""
        return int(self.files.lists.head[:, SIZE].sum()) + len(self.files.centroids)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of every part, lists without the room they have to grow (the authors' shrink_to_fit)."""
        files = self.files
        entries = int(files.lists.head[:, SIZE].sum())
        d = files.codes.shape[1]
        ids = (
            entries if len(files.bounds) > 2 else 3 * entries
        )  # a shared file finds an id's list and place again
        return {
            "vectors": entries * 4 * d,
            "access": bytes_of(trimmed(files.access)) if len(files.bounds) == 2 else 0,
            "tree": files.centroids.nbytes,
            "members": 4 * ids + files.lists.head.nbytes,
            "filters": files.filters.nbytes,
        }
