"""The shared clustering tree (the paper's GCT): hierarchical k-means over all vectors, whoever may see them."""

from typing import Any, NamedTuple

import numpy as np

LEAST_BRANCHING = 4  # constants of the authors' MultiTenantIndexIVFHierarchical.h
DEEPEST = 8
POINTS_PER_CENTROID = 8


class Tree(NamedTuple):
    """Nodes in order of breadth, so that a parent comes before its children and siblings lie side by side."""

    parent: np.ndarray  # int32 (nodes,), -1 at the root
    first: np.ndarray  # int32 (nodes,): the first child
    children: np.ndarray  # int32 (nodes,): how many, 0 at a leaf
    level: np.ndarray  # int32 (nodes,)
    centroids: np.ndarray  # float32 (nodes, d); the root's is zero and never read


def k_means(vectors: np.ndarray, clusters: int, seed: int, rounds: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Centroids float32 (clusters, d) and the cluster of each vector; Lloyd's algorithm of faiss."""
    import faiss

    training: Any = faiss.Kmeans(
        vectors.shape[1], clusters, niter=rounds, seed=seed, min_points_per_centroid=1, verbose=False
    )
    training.train(np.ascontiguousarray(vectors, dtype=np.float32))
    return training.centroids, training.index.search(vectors, 1)[1][:, 0]


def train(vectors: np.ndarray, branching: int, seed: int = 0) -> Tree:
    """Cluster recursively: `branching` children at the root, half as many a level further down, but at least four.

    A node with fewer than eight vectors a child, or on level eight, stays a leaf. vectors: float32 (n, d).
    ValueError for a branching below two or for no vectors.
    """
    if branching < 2 or len(vectors) == 0:
        raise ValueError(
            f"a tree needs a branching of at least 2 and vectors, not {branching}, {len(vectors)}"
        )
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    parent, level, centroids = [-1], [0], [np.zeros(vectors.shape[1], dtype=np.float32)]
    first, children = [0], [0]
    members: list[Any] = [np.arange(len(vectors))]
    fan_out = [branching]
    node = 0
    while node < len(parent):
        rows = members[node]
        if len(rows) >= fan_out[node] * POINTS_PER_CENTROID and level[node] < DEEPEST:
            means, cluster = k_means(vectors[rows], fan_out[node], seed + node)
            first[node], children[node] = len(parent), fan_out[node]
            for i in range(fan_out[node]):
                parent.append(node)
                level.append(level[node] + 1)
                centroids.append(means[i])
                first.append(0)
                children.append(0)
                members.append(rows[cluster == i])
                fan_out.append(max(fan_out[node] // 2, LEAST_BRANCHING))
        members[node] = None
        node += 1
    parents, firsts, counts, levels = (
        np.array(column, dtype=np.int32) for column in (parent, first, children, level)
    )
    return Tree(parents, firsts, counts, levels, np.stack(centroids).astype(np.float32))
