"""Vectors, tenants and queries: clustered Gaussians with tenants of different interests, or films and their raters."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

NEIGHBOURS = 10  # k of all searches


@dataclass(frozen=True)
class Workload:
    """Who may see which vector, in the order of vectors, and held-out queries."""

    vectors: np.ndarray  # float32 (n, d)
    offsets: np.ndarray  # int64 (n + 1,)
    tenants: np.ndarray  # int64: those of vector i are tenants[offsets[i]:offsets[i + 1]], ascending
    queries: np.ndarray  # float32 (queries, d)
    asking: np.ndarray  # int64 (queries,): the tenant of each query
    count: int  # tenants

    @property
    def owned(self) -> list[np.ndarray]:
        """The vectors of each tenant, ascending."""
        rows = np.repeat(np.arange(len(self.vectors)), np.diff(self.offsets))
        order = np.argsort(self.tenants, kind="stable")
        return np.split(rows[order], np.searchsorted(self.tenants[order], np.arange(1, self.count)))

    @property
    def sharing(self) -> float:
        """Mean number of tenants of a vector."""
        return len(self.tenants) / len(self.vectors)


def workload_of(
    rng: np.random.Generator,
    vectors: np.ndarray,
    offsets: np.ndarray,
    tenants: np.ndarray,
    count: int,
    queries: int,
    spread: float,
) -> Workload:
    """Add queries: vectors of tenants drawn uniformly among those that see any, moved by N(0, spread) a dimension.

    ValueError where a vector has no tenant.
    """
    if np.any(np.diff(offsets) < 1):
        raise ValueError("every vector needs a tenant")
    load = Workload(vectors, offsets, tenants, vectors[:0], tenants[:0], count)
    owned = load.owned
    asking = rng.choice(np.flatnonzero([len(rows) for rows in owned]), queries).astype(np.int64)
    sources = np.array([rng.choice(owned[tenant]) for tenant in asking], dtype=np.int64)
    points = vectors[sources] + rng.normal(0.0, spread, (queries, vectors.shape[1]))
    return Workload(vectors, offsets, tenants, points.astype(np.float32), asking, count)


def clustered(
    rng: np.random.Generator,
    n: int,
    d: int,
    tenants: int,
    sharing: float,
    queries: int,
    access: str = "interests",
    clusters: int = 100,
) -> Workload:
    """Gaussian clusters: centres N(0, 1), deviation 1.5 within (overlapping), sizes Zipf 0.8.

    access "interests": a tenant likes 1 to 8 clusters and has the activity rank^-0.3; it sees a vector of such a
    cluster with probability proportional to its activity (at most 0.9), scaled so that a vector has `sharing` tenants
    on average, at least one. "random": any tenant sees any vector alike. "one": each vector has one interested tenant.
    "everyone": all tenants see all vectors. ValueError for another name or no tenants.
    """
    if tenants < 1 or access not in ("interests", "random", "one", "everyone"):
        raise ValueError(f"{tenants} tenants and access {access!r} make no workload")
    sizes = np.arange(1, clusters + 1) ** -0.8
    label = rng.choice(clusters, n, p=sizes / sizes.sum())
    centres = rng.normal(size=(clusters, d))
    vectors = (centres[label] + 1.5 * rng.normal(size=(n, d))).astype(np.float32)
    activity = (1.0 + rng.permutation(tenants)) ** -0.3
    likes = np.zeros((clusters, tenants))
    for tenant in range(tenants):
        likes[rng.choice(clusters, rng.integers(1, 9), replace=False), tenant] = activity[tenant]
    if access == "everyone":
        offsets, seen_by = np.arange(n + 1) * tenants, np.tile(np.arange(tenants), n)
        return workload_of(rng, vectors, offsets, seen_by, tenants, queries, 0.75)
    if access == "random":
        likes[:] = activity
    scale = _scale(likes, np.bincount(label, minlength=clusters) / n, sharing)
    chance = np.minimum(0.9, scale * likes) if access != "one" else np.zeros_like(likes)
    liked = likes + 1e-9 * activity  # somebody sees what nobody likes
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for cluster in range(clusters):
        rows, fans = np.flatnonzero(label == cluster), np.flatnonzero(chance[cluster])
        seen = rng.random((len(rows), len(fans)), dtype=np.float32) < chance[cluster, fans]
        seeing = np.nonzero(seen)
        alone = rows[~seen.any(axis=1)]
        pairs.append((rows[seeing[0]], fans[seeing[1]]))
        pairs.append((alone, rng.choice(tenants, len(alone), p=liked[cluster] / liked[cluster].sum())))
    vector, seen_by = (np.concatenate(part) for part in zip(*pairs, strict=True))
    order = np.lexsort((seen_by, vector))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(vector, minlength=n))]).astype(np.int64)
    return workload_of(rng, vectors, offsets, seen_by[order].astype(np.int64), tenants, queries, 0.75)


def _scale(likes: np.ndarray, share: np.ndarray, sharing: float) -> float:
    """The factor with which min(0.9, factor x likes) gives a vector `sharing` tenants on average."""
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        if (np.minimum(0.9, middle * likes).sum(axis=1) * share).sum() < sharing:
            low = middle
        else:
            high = middle
    return high


def nearest(load: Workload, k: int = NEIGHBOURS) -> np.ndarray:
    """The k nearest vectors that each query's tenant may see, int64 (queries, k), exact; -1 where it sees fewer."""
    owned = load.owned
    truth = np.full((len(load.queries), k), -1, dtype=np.int64)
    for q, tenant in enumerate(load.asking):
        rows = owned[tenant]
        distance = ((load.vectors[rows] - load.queries[q]) ** 2).sum(axis=1)
        order = np.argsort(distance, kind="stable")[:k]
        truth[q, : len(order)] = rows[order]
    return truth


def recall(ids: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true neighbours that were found, over all queries."""
    hits = (ids[:, :, None] == truth[:, None, :]) & (truth[:, None, :] >= 0)
    return int(hits.sum()) / int((truth >= 0).sum())


def films(
    rng: np.random.Generator, path: Path, queries: int, width: int = 32, access: str = "interests"
) -> Workload:
    """MovieLens 100K: a vector is a film (truncated SVD of the ratings), a tenant a user, who sees what it rated.

    path: ml-100k.inter, tab separated with a header. access "one": each film has one of its raters; "everyone": all.
    """
    users, items, stars = np.loadtxt(path, skiprows=1, usecols=(0, 1, 2), unpack=True)
    user, item = users.astype(int) - 1, items.astype(int) - 1
    ratings = np.zeros((item.max() + 1, user.max() + 1))
    ratings[item, user] = stars
    _, right = np.linalg.eigh(ratings.T @ ratings)  # right singular vectors, the largest last
    vectors = (ratings @ right[:, : -width - 1 : -1]).astype(np.float32)
    allowed = ratings > 0
    if access == "everyone":
        allowed[:] = True
    elif access == "one":
        chosen = (rng.random(allowed.shape) * allowed).argmax(axis=1)
        allowed = np.zeros_like(allowed)
        allowed[np.arange(len(allowed)), chosen] = True
    offsets = np.concatenate([[0], np.cumsum(allowed.sum(axis=1))]).astype(np.int64)
    tenants = np.nonzero(allowed)[1].astype(np.int64)
    spread = 0.25 * float(vectors.std())
    return workload_of(rng, vectors, offsets, tenants, allowed.shape[1], queries, spread)
