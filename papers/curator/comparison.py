"""Five indexes and the ablation ladder on one workload: built, tuned to one recall, counted, timed, weighed."""

from collections.abc import Callable, Collection, Iterable
from functools import cache

import numpy as np

from papers.curator.config import Config
from papers.curator.graph import HnswGraphs
from papers.curator.index import Curator
from papers.curator.inverted_file import InvertedFiles
from papers.curator.search import Found
from papers.curator.storage import Lists, trimmed
from papers.curator.tree import Tree, train
from papers.curator.tuning import Tuned, cheapest, seconds
from papers.curator.workload import NEIGHBOURS, Workload, clustered, nearest

MOST_SCANNED = 400  # gamma2 is tuned up to here


def compile_kernels(part: str = "all") -> None:
    """Compile (or load) the kernels, so that no measurement includes it. part: trees, others or all."""
    _compile(part)


@cache
def _compile(part: str) -> None:
    rng = np.random.default_rng(0)
    load = clustered(rng, 64, 8, 2, 1.5, 2)
    rows = np.arange(64)
    if part in ("trees", "all"):
        tree = Curator(train(load.vectors, 4), 64)
        tree.state.vectors[:] = load.vectors
        tree.insert_grants(np.repeat(rows, np.diff(load.offsets)), load.tenants)
        tree.search(load.queries, load.asking)
    if part in ("others", "all"):
        files = InvertedFiles.shared(load.vectors, 4)
        files.insert(rows, load.vectors, load.offsets, load.tenants)
        files.search(load.queries, load.asking)
        HnswGraphs.per_tenant(load.vectors, load.owned, 4, 8).search(load.queries, load.asking)


def drawn(config: Config, rng: np.random.Generator, vectors: int, tenants: int, sharing: float) -> Workload:
    """The synthetic workload of a config at other sizes."""
    return clustered(rng, vectors, config.width, tenants, sharing, config.queries, config.access)


def built_curator(config: Config, load: Workload, seed: int, tree: Tree | None = None) -> Curator:
    """Curator over a workload, vectors inserted one after another and granted to their tenants.

    Under `copies` each grant is a vector of its own: the same index, with nothing shared.
    """
    tree = tree or train(load.vectors, config.branching, seed)
    vectors, groups = load.vectors, np.split(load.tenants, load.offsets[1:-1])
    if config.copies:
        vectors = load.vectors[np.repeat(np.arange(len(load.vectors)), np.diff(load.offsets))]
        groups = list(load.tenants[:, None])
    index = Curator(tree, len(vectors), config.longest)
    index.insert(np.arange(len(vectors)), vectors, groups)
    index.shrink()
    return index


def curator_search(
    config: Config, index: Curator, load: Workload, best_first: bool
) -> Callable[[int], Found]:
    """Queries with a value of gamma2."""
    return lambda gamma2: index.search(
        load.queries,
        load.asking,
        NEIGHBOURS,
        config.gamma1,
        len(load.vectors) if config.scan_all else gamma2,
        config.filtered,
        best_first,
    )


class Comparison:
    """The indexes of one workload that are asked for, each built once.

    names: of mf_ivf, mf_hnsw, pt_ivf, pt_hnsw, curator, flat (Curator that sorts all buckets), mf_ivf_bf (lists with
    Bloom filters), pt_ivf_equal (as many lists for every tenant).
    """

    def __init__(self, config: Config, load: Workload, names: Collection[str], seed: int) -> None:
        self.config, self.load = config, load
        self.indexes: dict[str, Curator | InvertedFiles | HnswGraphs] = {}
        self.insert_seconds: dict[str, float] = {}
        n, owned = len(load.vectors), load.owned
        lists = max(1, round(config.lists_over_root * n**0.5))
        if {"curator", "flat"} & set(names):
            curator = built_curator(config, load, seed)
            self.indexes["curator"], self.insert_seconds["curator"] = curator, curator.insert_seconds
        files: dict[str, Callable[[], InvertedFiles]] = {
            "mf_ivf": lambda: InvertedFiles.shared(load.vectors, lists, seed),
            "mf_ivf_bf": lambda: InvertedFiles.shared(load.vectors, lists, seed, filter_capacity=1000),
            "pt_ivf": lambda: InvertedFiles.per_tenant(load.vectors, owned, config.vectors_a_list, 0, seed),
            "pt_ivf_equal": lambda: InvertedFiles.per_tenant(
                load.vectors,
                owned,
                0.0,
                max(1, round(len(load.tenants) / load.count / config.vectors_a_list)),
                seed,
            ),
        }
        for name in files.keys() & set(names):
            index = files[name]()
            index.insert(np.arange(n), load.vectors, load.offsets, load.tenants)
            self.indexes[name], self.insert_seconds[name] = index, index.insert_seconds
        if "mf_hnsw" in names:
            access = trimmed(self._access(seed))
            self.indexes["mf_hnsw"] = HnswGraphs.shared(load.vectors, access, config.links, config.effort)
        if "pt_hnsw" in names:
            self.indexes["pt_hnsw"] = HnswGraphs.per_tenant(
                load.vectors, owned, config.tenant_links, config.effort
            )

    def _access(self, seed: int) -> Lists:
        """The access sets that a shared index holds already."""
        shared = self.indexes.get("mf_ivf")
        if not isinstance(shared, InvertedFiles):
            shared = InvertedFiles.shared(self.load.vectors, 1, seed)
            load = self.load
            shared.insert(np.arange(len(load.vectors)), load.vectors, load.offsets, load.tenants)
        return shared.files.access

    def search(self, name: str) -> tuple[Callable[[int], Found], int, int]:
        """The search of an index by its knob, and the knob's least and largest value."""
        load = self.load
        index = self.indexes["curator" if name == "flat" else name]
        if isinstance(index, Curator):
            best_first = self.config.best_first and name == "curator"
            return curator_search(self.config, index, load, best_first), 4, MOST_SCANNED
        if isinstance(index, HnswGraphs):
            return (lambda ef: index.search(load.queries, load.asking, NEIGHBOURS, ef)), NEIGHBOURS, 400
        if index.filtered:
            return (
                (lambda gamma: index.search(load.queries, load.asking, NEIGHBOURS, 0, gamma * NEIGHBOURS)),
                4,
                MOST_SCANNED,
            )
        most = int(np.diff(index.files.bounds).max())
        return (lambda nprobe: index.search(load.queries, load.asking, NEIGHBOURS, nprobe)), 1, most

    def tuned(self, names: Iterable[str]) -> dict[str, Tuned]:
        """Each index at its cheapest setting that reaches the recall."""
        truth = nearest(self.load)
        found = {}
        for name in names:
            search, least, most = self.search(name)
            found[name] = cheapest(search, truth, least, max(least, most), self.config.recall)
        return found

    def timed(self, tuned: dict[str, Tuned]) -> dict[str, np.ndarray]:
        """Seconds of each query at these settings."""
        calls = {name: _bound(self.search(name)[0], setting.knob) for name, setting in tuned.items()}
        return seconds(calls, self.config.rounds)

    def weighed(self, width: int | None = None) -> dict[str, int]:
        """Bytes of each index; width: as if vectors were padded with zeros to so many dimensions."""
        more = 0 if width is None else width - self.load.vectors.shape[1]
        return {
            name: sum(index.bytes.values()) + 4 * more * index.wide_rows
            for name, index in self.indexes.items()
        }

    def insert_distances(self, name: str) -> float:
        """Distances to centroids that inserting a vector for all its tenants takes, on average."""
        index, n = self.indexes[name], len(self.load.vectors)
        if isinstance(index, Curator):
            return index.descent_distances / n
        assert isinstance(index, InvertedFiles)
        lists = np.diff(index.files.bounds)
        return float(lists[0] if len(lists) == 1 else lists[self.load.tenants].sum() / n)


def _bound(search: Callable[[int], Found], knob: int) -> Callable[[], Found]:
    return lambda: search(knob)
