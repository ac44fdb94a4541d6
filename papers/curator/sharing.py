"""Inserting, granting, revoking, deleting: how each tenant's sub-tree grows and shrinks (Curator, Section 4).

A tenant's tree is written into the shared one: in a node's Bloom filter stands whether its sub-tree holds a vector of
the tenant, and where the tenant's tree ends, at a leaf or earlier, stands a shortlist of the vectors' ids. Two rules of
the authors' code are tightened here. A filter is rebuilt from all leaves in which a tenant disappeared, not from the
last one alone; and it counts the tenants that have a shortlist at the node itself: OR over the children alone loses a
tenant whose list lies higher than any child's filter knows of, and a later search would skip the sub-tree.
"""

from typing import Any, NamedTuple

import numpy as np

from papers.curator.bloom import contains, insert, places_of
from papers.curator.compiled import inner, kernel, squared_distance
from papers.curator.storage import (
    NUMBERS,
    SIZE,
    START,
    TOP,
    Lists,
    Table,
    append,
    clear_list,
    drop_list,
    erase,
    insert_sorted,
    look_up,
    new_list,
    remove,
    slot_of,
    store,
)
from papers.curator.tree import Tree

NODE = 20  # a key is node << 20 | tenant
REBUILD_EVERY = 100  # leaves that lost a tenant before filters are rebuilt (authors' BF_UPDATE_INTERVAL)


class State(NamedTuple):
    """Everything an index holds."""

    vectors: np.ndarray  # float32 (capacity, d): each vector once
    leaf: np.ndarray  # int32 (capacity,): leaf of each vector, -1 where the id is free
    tree: Tree
    filters: np.ndarray  # uint64 (nodes, words)
    access: Lists  # list v: the tenants of vector v, ascending
    members: Lists  # list n: the vectors in leaf n
    counts: Table  # (leaf, tenant) -> the tenant's vectors there
    shortlists: Table  # (node, tenant) -> number of a list
    short: Lists  # the shortlists
    stale: (
        np.ndarray
    )  # int32 (1 + REBUILD_EVERY,): leaves that lost a tenant since the last rebuild, after their number


@inner
def _leaf_of(state: State, v: int) -> int:
    """The leaf that a vector reaches by going to the nearest child."""
    tree, node = state.tree, 0
    while tree.children[node] > 0:
        best, nearest = np.float32(np.inf), 0
        for child in range(tree.first[node], tree.first[node] + tree.children[node]):
            distance = squared_distance(state.vectors, v, tree.centroids, child)
            if distance < best:
                best, nearest = distance, child
        node = nearest
    return node


@inner
def _child_towards(tree: Tree, node: int, leaf: int) -> int:
    """The child of a node on the way to a leaf below it."""
    while tree.parent[leaf] != node:
        leaf = tree.parent[leaf]
    return leaf


@inner
def _grant(state: State, v: int, tenant: int, longest: int, places: Any, stack: Any) -> None:
    """Give a tenant access to a vector, if it has none: put it into its shortlist, or where its tree should get one.

    A list that is too long is split among the children, whose lists may then be too long themselves: `stack` holds the
    pairs of node and vector that are still to be placed.
    """
    if not insert_sorted(state.access, v, tenant):
        return
    tree, short, lists = state.tree, state.shortlists, state.short
    key = (int(state.leaf[v]) << NODE) | tenant
    slot = slot_of(state.counts, key)
    if state.counts.keys[slot] >= 0:
        state.counts.values[slot] += 1
    else:
        store(state.counts, key, 1)
    places_of(tenant, 64 * state.filters.shape[1], places)
    stack[0, 0], stack[0, 1] = 0, v
    waiting = 1
    while waiting > 0:
        waiting -= 1
        node, v = int(stack[waiting, 0]), int(stack[waiting, 1])
        while True:
            key = (node << NODE) | tenant
            number = look_up(short, key)
            inside = tree.children[node] > 0
            if number < 0 and contains(state.filters, node, places):
                if not inside:
                    break  # the tenant's list was dropped here: the leaf itself is scanned
                node = _child_towards(tree, node, int(state.leaf[v]))
                continue
            if number < 0:  # the tenant's first vector below this node
                number = new_list(lists)
                store(short, key, number)
                insert(state.filters, node, places)
            append(lists, number, v)
            if lists.head[number, SIZE] > longest:  # too long: a leaf drops it, an inner node hands it down
                if inside:
                    start = lists.head[number, START]
                    for i in range(lists.head[number, SIZE] - 1, -1, -1):
                        u = int(lists.data[start + i])
                        stack[waiting, 0] = _child_towards(tree, node, int(state.leaf[u]))
                        stack[waiting, 1] = u
                        waiting += 1
                drop_list(lists, number)
                erase(short, key)
            break


@kernel
def insert_many(
    state: State, ids: Any, tenants: Any, begin: int, longest: int, spare: Any, places: Any, stack: Any
) -> int:
    """Grant the vector ids[i], which is in the store, to tenants[i], for each i from `begin` on.

    A vector that has no leaf yet is put into the tree first. Stops where one more grant might not find `spare` room
    (places of access, members, short; numbers of short; entries of counts, shortlists), and returns how far it came.
    """
    largest = spare[1]
    for i in range(begin, len(ids)):
        v = ids[i]
        if (
            state.access.state[TOP] + 2 * (state.access.head[v, SIZE] + 1) > len(state.access.data)
            or state.members.state[TOP] + largest > len(state.members.data)
            or state.short.state[TOP] + spare[2] > len(state.short.data)
            or state.short.state[NUMBERS] + spare[3] > len(state.short.head)
            or state.counts.state[0] + spare[4] > 0.7 * len(state.counts.keys)
            or state.shortlists.state[0] + spare[5] > 0.7 * len(state.shortlists.keys)
        ):
            return i
        if state.leaf[v] < 0:
            leaf = _leaf_of(state, v)
            state.leaf[v] = leaf
            append(state.members, leaf, v)
            largest = max(largest, 2 * (state.members.head[leaf, SIZE] + 1))  # the block that it may move to
        _grant(state, v, tenants[i], longest, places, stack)
    return len(ids)


@inner
def _merge_upwards(state: State, node: int, tenant: int, longest: int) -> None:
    """While all siblings have a list of the tenant and together these are short enough, move them to the parent."""
    tree, short, lists = state.tree, state.shortlists, state.short
    while node > 0:
        parent = int(tree.parent[node])
        first, total = int(tree.first[parent]), 0
        for sibling in range(first, first + tree.children[parent]):
            number = look_up(short, (sibling << NODE) | tenant)
            if number < 0:
                return
            total += lists.head[number, SIZE]
        if total > longest:
            return
        joined = new_list(lists)
        for sibling in range(first, first + tree.children[parent]):
            key = (sibling << NODE) | tenant
            number = look_up(short, key)
            for i in range(lists.head[number, SIZE]):
                append(lists, joined, int(lists.data[lists.head[number, START] + i]))
            drop_list(lists, number)
            erase(short, key)
        store(short, (parent << NODE) | tenant, joined)
        node = parent


@inner
def _revoke(state: State, v: int, tenant: int, longest: int) -> bool:
    """Take a vector from a tenant: out of its access set, the leaf's count and the shortlist that holds it."""
    if not remove(state.access, v, tenant, True):
        return False
    node = int(state.leaf[v])
    slot = slot_of(state.counts, (node << NODE) | tenant)
    state.counts.values[slot] -= 1
    if state.counts.values[slot] == 0:
        erase(state.counts, (node << NODE) | tenant)
        state.stale[0] += 1
        state.stale[state.stale[0]] = node
    while node >= 0:
        key = (node << NODE) | tenant
        number = look_up(state.shortlists, key)
        if number >= 0 and remove(state.short, number, v, False):
            if state.short.head[number, SIZE] == 0:
                drop_list(state.short, number)
                erase(state.shortlists, key)
            else:
                _merge_upwards(state, node, tenant, longest)
            break
        node = int(state.tree.parent[node])
    return True


@inner
def _rebuild(state: State, places: Any, dirty: Any) -> None:
    """Filters of the stale leaves from the access sets of their vectors, and all those above them."""
    tree, filters, stale = state.tree, state.filters, state.stale
    bits = 64 * filters.shape[1]
    dirty[:] = False
    for i in range(1, stale[0] + 1):
        node = int(stale[i])
        while node >= 0 and not dirty[node]:
            dirty[node] = True
            node = int(tree.parent[node])
    for node in range(len(dirty)):
        if dirty[node]:
            for word in range(filters.shape[1]):
                filters[node, word] = 0
            if tree.children[node] == 0:
                for i in range(state.members.head[node, SIZE]):
                    u = state.members.data[state.members.head[node, START] + i]
                    for j in range(state.access.head[u, SIZE]):
                        places_of(int(state.access.data[state.access.head[u, START] + j]), bits, places)
                        insert(filters, node, places)
    for slot in range(len(state.shortlists.keys)):
        key = state.shortlists.keys[slot]
        if key >= 0 and dirty[key >> NODE]:
            places_of(key & ((1 << NODE) - 1), bits, places)
            insert(filters, key >> NODE, places)
    for node in range(len(dirty) - 1, 0, -1):  # children have higher numbers than their parent
        if dirty[tree.parent[node]]:
            for word in range(filters.shape[1]):
                filters[tree.parent[node], word] |= filters[node, word]
    stale[0] = 0


@kernel
def withdraw(state: State, v: int, tenant: int, longest: int, places: Any, dirty: Any) -> int:
    """Revoke a tenant's access to a vector; without a tenant (-1) everybody's, and delete the vector.

    Without a vector (-1) rebuild the filters at once, otherwise when a hundred leaves lost a tenant. The number of
    revocations.
    """
    if v < 0:
        _rebuild(state, places, dirty)
        return 0
    revoked = 0
    while True:
        of = tenant
        if tenant < 0:
            if state.access.head[v, SIZE] == 0:
                break
            of = int(state.access.data[state.access.head[v, START] + state.access.head[v, SIZE] - 1])
        revoked += _revoke(state, v, of, longest)
        if state.stale[0] == REBUILD_EVERY:
            _rebuild(state, places, dirty)
        if tenant >= 0:
            return revoked
    clear_list(state.access, v)
    remove(state.members, int(state.leaf[v]), v, False)
    state.leaf[v] = -1
    return revoked
