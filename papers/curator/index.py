"""Curator: one shared clustering tree, each vector once, and a sub-tree of its own for every tenant."""

import time
from collections.abc import Sequence

import numpy as np

from papers.curator import bloom
from papers.curator.search import Found, found, prepare, search_tree
from papers.curator.sharing import (
    NODE,
    REBUILD_EVERY,
    State,
    insert_many,
    withdraw,
)
from papers.curator.storage import (
    bytes_of,
    empty_lists,
    empty_table,
    fitted,
    reserve,
    room,
    touched,
    trimmed,
)
from papers.curator.tree import DEEPEST, Tree


class Curator:
    """The index of the paper. Ids are the caller's, from 0 to capacity - 1; tenants from 0 to 2^20 - 1."""

    def __init__(
        self,
        tree: Tree,
        capacity: int,
        longest: int = 64,
        filter_capacity: int = 1000,
        false_positives: float = 0.001,
    ) -> None:
        """tree: trained. longest: of a shortlist (max_sl_size); 0 keeps none, so that every leaf is scanned.

        ValueError for a negative `longest` or no capacity.
        """
        if longest < 0 or capacity < 1:
            raise ValueError(
                f"longest must be 0 or more and capacity at least 1, not {longest} and {capacity}"
            )
        nodes, d = tree.centroids.shape
        filters, self._places = bloom.empty_filters(nodes, filter_capacity, false_positives)
        self.longest = longest
        self.insert_seconds = 0.0  # spent on inserting and granting, but for enlarging arrays
        self.state = State(
            touched((capacity, d), np.float32),
            np.full(capacity, -1, dtype=np.int32),
            tree,
            filters,
            empty_lists(capacity, 0, used=capacity),
            empty_lists(nodes, 0, used=nodes),
            empty_table(),
            empty_table(),
            empty_lists(0, 0),
            np.zeros(1 + REBUILD_EVERY, dtype=np.int32),
        )
        self._dirty = np.zeros(nodes, dtype=np.bool_)
        self._stack = np.zeros(((longest + 2) * (DEEPEST + 2), 2), dtype=np.int32)

    def insert(
        self, ids: np.ndarray, vectors: np.ndarray, tenants: Sequence[Sequence[int] | np.ndarray]
    ) -> None:
        """Add vectors float32 (n, d) under ids that are free, and grant each to its tenants.

        ValueError for an id that is taken or outside the capacity, for vectors of another width and for a tenant
        outside its range.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self.state.leaf)):
            raise ValueError(f"ids must be from 0 to {len(self.state.leaf) - 1}")
        if len(np.unique(ids)) != len(ids) or np.any(self.state.leaf[ids] >= 0):
            raise ValueError("an id is taken already")
        if vectors.shape != (len(ids), self.state.vectors.shape[1]) or len(tenants) != len(ids):
            raise ValueError(
                f"{len(ids)} ids need vectors of shape {(len(ids), self.state.vectors.shape[1])} and as many sets of "
                f"tenants, not {vectors.shape} and {len(tenants)}"
            )
        sizes = [len(group) for group in tenants]
        if 0 in sizes:
            raise ValueError("every vector needs a tenant")
        begun = time.perf_counter()
        self.state.vectors[ids] = vectors
        self.insert_seconds += time.perf_counter() - begun
        granted = np.concatenate([np.asarray(group, dtype=np.int64) for group in tenants] or [ids])
        self.insert_grants(np.repeat(ids, sizes), granted)

    def insert_grants(self, ids: np.ndarray, tenants: np.ndarray) -> None:
        """Grant vector ids[i] to tenants[i]; one that is in the store but not yet in the tree is put there."""
        if len(tenants) and not (tenants.min() >= 0 and tenants.max() < 1 << NODE):
            raise ValueError(f"tenants are from 0 to {(1 << NODE) - 1}")
        done = 0
        while done < len(ids):
            spare = self.make_room()
            begun = time.perf_counter()
            done = insert_many(self.state, ids, tenants, done, self.longest, spare, self._places, self._stack)
            self.insert_seconds += time.perf_counter() - begun

    def make_room(self, grants: int = 1) -> np.ndarray:
        """Enlarge what is nearly full; what so many grants may need at most, int64 (6,)."""
        state = self.state
        moved = (self.longest + 2) * DEEPEST * grants  # list entries that splits may hand down
        most = [int(lists.head[:, 1].max(initial=0)) for lists in (state.access, state.members)]
        spare = np.array(
            [2 * (most[0] + grants), 2 * (most[1] + grants), 4 * moved, moved, grants, moved], dtype=np.int64
        )
        reach = 1 + len(state.vectors) // 4  # grants until the next call, so that growing pays
        self.state = state._replace(
            access=room(state.access, 2 * int(spare[0]) + reach, 0),
            members=room(state.members, 2 * int(spare[1]) + reach, 0),
            short=room(state.short, int(spare[2]) + reach, int(spare[3]) + reach),
            counts=reserve(state.counts, int(spare[4]) + 1),
            shortlists=reserve(state.shortlists, int(spare[5]) + 1),
        )
        return spare

    def grant(self, v: int, tenant: int) -> bool:
        """Let a tenant see a vector; False where it does already. ValueError for an unknown vector or tenant."""
        self._check(v, tenant)
        before = self.state.access.head[v, 1]
        self.insert_grants(np.array([v]), np.array([tenant]))
        return bool(self.state.access.head[v, 1] > before)

    def revoke(self, v: int, tenant: int) -> bool:
        """Take a vector from a tenant; False where it had no access. ValueError for an unknown vector or tenant."""
        self._check(v, tenant)
        self.make_room(1)  # a merge writes a new list
        return bool(withdraw(self.state, v, tenant, self.longest, self._places, self._dirty))

    def delete(self, v: int) -> None:
        """Remove a vector for everybody; its id is free again. ValueError for an unknown vector."""
        self._check(v, 0)
        self.make_room(int(self.state.access.head[v, 1]))
        withdraw(self.state, v, -1, self.longest, self._places, self._dirty)
        self.state.vectors[v] = 0.0

    def rebuild(self) -> None:
        """Rebuild the filters that lost a tenant now; otherwise every hundredth time."""
        withdraw(self.state, -1, -1, self.longest, self._places, self._dirty)

    def _check(self, v: int, tenant: int) -> None:
        if not 0 <= v < len(self.state.leaf) or self.state.leaf[v] < 0:
            raise ValueError(f"no vector has the id {v}")
        if not 0 <= tenant < 1 << NODE:
            raise ValueError(f"tenants are from 0 to {(1 << NODE) - 1}, not {tenant}")

    def search(
        self,
        queries: np.ndarray,
        tenants: np.ndarray,
        k: int = 10,
        gamma1: float = 2.0,
        gamma2: float = 32.0,
        filtered: bool = True,
        best_first: bool = True,
    ) -> Found:
        """The k nearest vectors of query i, float32 (n, d), that tenant i may see.

        gamma2 * k vectors are scanned at most (one bucket at least); the descent collects gamma1 times as many.
        filtered: False descends into sub-trees that hold nothing of the tenant; best_first: False sorts all buckets.
        """
        if gamma1 < 1 or gamma2 <= 0:
            raise ValueError(f"gamma1 must be at least 1 and gamma2 positive, not {gamma1} and {gamma2}")
        out = prepare(len(queries), k, len(self.state.tree.parent) + k + 1)
        search_tree(
            self.state,
            np.ascontiguousarray(queries, dtype=np.float32),
            np.asarray(tenants, dtype=np.int64),
            round(gamma1 * gamma2 * k),
            round(gamma2 * k),
            filtered,
            best_first,
            self._places,
            out,
        )
        return found(out)

    def shrink(self) -> None:
        """Give back what was reserved for growth (the authors' shrink_to_fit); blocks and tables keep powers of two."""
        state = self.state
        self.state = state._replace(
            access=trimmed(state.access),
            members=trimmed(state.members),
            short=trimmed(state.short),
            counts=fitted(state.counts),
            shortlists=fitted(state.shortlists),
        )

    @property
    def descent_distances(self) -> int:
        """Distances to centroids that it took to bring all vectors that are here to their leaves."""
        tree = self.state.tree
        below = np.zeros(len(tree.parent), dtype=np.int64)  # of the way from the root to each node
        for node in range(1, len(below)):
            below[node] = below[tree.parent[node]] + tree.children[tree.parent[node]]
        return int(below[self.state.leaf[self.state.leaf >= 0]].sum())

    @property
    def wide_rows(self) -> int:
        """Rows of d floats: vectors and centroids."""
        return len(self.state.vectors) + len(self.state.tree.centroids)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of every part; their sum is the index."""
        state = self.state
        return {
            "vectors": state.vectors.nbytes,
            "access": bytes_of(state.access),
            "tree": bytes_of(state.tree),
            "members": bytes_of(state.members, state.leaf),
            "filters": state.filters.nbytes,
            "counts": bytes_of(state.counts),
            "shortlists": bytes_of(state.shortlists, state.short),
        }
