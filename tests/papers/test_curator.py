"""Curator against exhaustive search under any order of changes, its parts against closed forms and faiss."""

import gc
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lab.runtime import Runtime

numba = pytest.importorskip("numba", reason="the kernels need numba")
faiss = pytest.importorskip("faiss", reason="k-means and graphs need faiss")

from papers.curator import bloom, compiled, heap, storage  # noqa: E402
from papers.curator.comparison import Comparison  # noqa: E402
from papers.curator.config import Config  # noqa: E402
from papers.curator.experiment import run  # noqa: E402
from papers.curator.graph import HnswGraphs  # noqa: E402
from papers.curator.growth import exponent  # noqa: E402
from papers.curator.index import Curator  # noqa: E402
from papers.curator.inverted_file import InvertedFiles  # noqa: E402
from papers.curator.sharing import NODE, REBUILD_EVERY  # noqa: E402
from papers.curator.tree import DEEPEST, Tree, train  # noqa: E402
from papers.curator.tuning import cheapest  # noqa: E402
from papers.curator.workload import Workload, clustered, films, nearest, recall  # noqa: E402

TENANTS, PLACES = 6, 40
TREE = train(np.random.default_rng(5).normal(size=(300, 4)).astype(np.float32), 4)
TINY = Config(
    vectors=600, width=8, tenants=20, sharing=3.0, queries=20, sizes=[300, 600], tenant_counts=[10, 20],
    rounds=1, films=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def load() -> Workload:
    return clustered(np.random.default_rng(0), 1500, 16, 40, 6.0, 60)


@pytest.fixture(scope="module")
def curator(load: Workload) -> Curator:
    index = Curator(train(load.vectors, 8), len(load.vectors), 16)
    index.state.vectors[:] = load.vectors
    index.insert_grants(np.repeat(np.arange(len(load.vectors)), np.diff(load.offsets)), load.tenants)
    return index


def lists_of(index: Curator) -> dict[tuple[int, int], list[int]]:
    """Every shortlist by node and tenant."""
    state, found = index.state, {}
    for slot in np.flatnonzero(state.shortlists.keys >= 0):
        key, number = int(state.shortlists.keys[slot]), int(state.shortlists.values[slot])
        start, size = state.short.head[number, :2]
        found[key >> NODE, key & ((1 << NODE) - 1)] = [int(v) for v in state.short.data[start : start + size]]
    return found


def below(tree: Tree, leaf: int) -> set[int]:
    """A leaf and the nodes above it."""
    nodes = set()
    while leaf >= 0:
        nodes.add(leaf)
        leaf = int(tree.parent[leaf])
    return nodes


def check(
    index: Curator, access: dict[int, set[int]], vectors: dict[int, np.ndarray], rng: np.random.Generator
) -> None:
    """What must hold after every change."""
    state, lists = index.state, lists_of(index)
    places = index._places
    for (node, _), ids in lists.items():
        assert 0 < len(ids) <= index.longest and len(set(ids)) == len(ids)
        assert all(node in below(state.tree, int(state.leaf[v])) for v in ids)
    for tenant in range(TENANTS):
        mine = {v for v, tenants in access.items() if tenant in tenants}
        listed = [v for (_, owner), ids in lists.items() if owner == tenant for v in ids]
        assert len(listed) == len(set(listed))  # at most one bucket holds a vector
        assert set(listed) <= mine
        bloom_places(tenant, state.filters.shape[1] * 64, places)
        for v in mine:  # every node down to the bucket admits the tenant
            path = below(state.tree, int(state.leaf[v]))
            ends = [node for node in path if v in lists.get((node, tenant), [])]
            stop = ends[0] if ends else int(state.leaf[v])
            for node in below(state.tree, stop):
                assert bloom_has(state.filters, node, places)
        query = rng.normal(size=(1, 4)).astype(np.float32)
        for k in (1, 5):
            found = index.search(query, np.array([tenant]), k, 2.0, 1e5)
            truth = sorted((float(((vectors[v] - query[0]) ** 2).sum()), v) for v in mine)[:k]
            assert [int(v) for v in found.ids[0] if v >= 0] == [v for _, v in truth]
            np.testing.assert_allclose(
                found.distances[0, : len(truth)], [d for d, _ in truth], rtol=1e-4, atol=1e-5
            )


@compiled.kernel
def bloom_places(tenant, bits, places):  # type: ignore[no-untyped-def]
    bloom.places_of(tenant, bits, places)


@compiled.kernel
def bloom_has(filters, node, places):  # type: ignore[no-untyped-def]
    return bloom.contains(filters, node, places)


@compiled.kernel
def bloom_insert(filters, node, places):  # type: ignore[no-untyped-def]
    bloom.insert(filters, node, places)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("iggrrd"), st.integers(0, PLACES - 1), st.integers(0, TENANTS - 1)),
        max_size=120,
    ),
    st.sampled_from([0, 1, 3, 8]),
    st.integers(0, 2**32 - 1),
)
def test_after_any_changes_every_tenant_finds_exactly_its_nearest(
    changes: list[tuple[str, int, int]], longest: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    index = Curator(TREE, PLACES, longest)
    index.state.stale[0] = 0
    access: dict[int, set[int]] = {}
    vectors: dict[int, np.ndarray] = {}
    for number, (change, v, tenant) in enumerate(changes):
        if v not in access:
            vectors[v] = rng.normal(size=4).astype(np.float32)
            group = sorted({tenant, int(rng.integers(TENANTS))})
            index.insert(np.array([v]), vectors[v][None], [group])
            access[v] = set(group)
        elif change == "d":
            index.delete(v)
            del access[v], vectors[v]
        elif change == "r" and len(access[v]) > 1:
            assert index.revoke(v, tenant) == (tenant in access[v])
            access[v].discard(tenant)
        else:
            assert index.grant(v, tenant) == (tenant not in access[v])
            access[v].add(tenant)
        if number % 10 == 9:
            index.rebuild()
    check(index, access, vectors, rng)
    index.rebuild()
    index.shrink()
    check(index, access, vectors, rng)


def test_filters_are_rebuilt_once_a_hundred_leaves_lost_a_tenant_and_forget_it() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(300, 4)).astype(np.float32)
    index = Curator(TREE, 300, 2)
    index.insert(np.arange(300), vectors, [[0, 1]] * 300)
    gone = 0
    while index.state.stale[0] < REBUILD_EVERY - 1 and gone < 300:
        index.revoke(gone, 1)
        gone += 1
    before = int(np.bitwise_count(index.state.filters).sum())
    for v in range(gone, 300):
        index.revoke(v, 1)
    index.rebuild()
    assert int(np.bitwise_count(index.state.filters).sum()) < before
    check(index, {v: {0} for v in range(300)}, dict(enumerate(vectors)), rng)
    bloom_places(1, 64 * index.state.filters.shape[1], index._places)
    assert not bloom_has(index.state.filters, 0, index._places)  # the root has forgotten tenant 1


def test_a_rebuild_keeps_a_tenant_whose_list_lies_above_the_leaves() -> None:
    """OR over the children alone would lose it: no leaf's filter knows of a tenant whose list is at an inner node."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    index = Curator(TREE, 60, 4)
    index.insert(np.arange(60), vectors, [[0]] * 60)
    inner = {node for node, _ in lists_of(index) if TREE.children[node] > 0}
    index.insert_grants(np.array([7]), np.array([3]))  # tenant 3 has one vector: its list is at the root
    assert (0, 3) in lists_of(index)
    index.insert_grants(np.array([8, 9, 10, 11]), np.array([3, 3, 3, 3]))  # five: handed down
    high = [node for node, tenant in lists_of(index) if tenant == 3]
    assert any(TREE.children[node] > 0 for node in high) or not inner
    for v in range(0, 7):
        index.revoke(v, 0)
        index.rebuild()
    access = {v: {0} if v > 6 else set() for v in range(60)}
    for v in (7, 8, 9, 10, 11):
        access[v] = access[v] | {3}
    check(index, access, dict(enumerate(vectors)), rng)


def test_a_full_list_is_split_among_the_children_and_short_ones_are_merged_again() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    index = Curator(TREE, 30, longest=20)
    index.insert(np.arange(20), vectors[:20], [[0]] * 20)
    assert list(lists_of(index)) == [(0, 0)]  # twenty fit into the root's list
    index.insert(np.arange(20, 30), vectors[20:], [[0]] * 10)
    children = range(int(TREE.first[0]), int(TREE.first[0] + TREE.children[0]))
    assert set(lists_of(index)) == {(child, 0) for child in children}
    for (child, _), ids in lists_of(index).items():  # each where its vectors lie
        assert all(child in below(TREE, int(index.state.leaf[v])) for v in ids)
    spare = [v for ids in lists_of(index).values() for v in ids[1:]]  # each child keeps a vector
    for v in spare[:9]:
        index.revoke(v, 0)
    assert len(lists_of(index)) == len(children)  # 21 are too many
    index.revoke(spare[9], 0)
    assert set(lists_of(index)) == {(0, 0)} and len(lists_of(index)[0, 0]) == 20


def test_a_vector_is_stored_once_whoever_sees_it(load: Workload, curator: Curator) -> None:
    alone = Curator(curator.state.tree, len(load.vectors), 16)
    alone.insert(np.arange(len(load.vectors)), load.vectors, [[0]] * len(load.vectors))
    assert curator.bytes["vectors"] == alone.bytes["vectors"] == load.vectors.nbytes
    assert curator.bytes["tree"] == alone.bytes["tree"]
    assert curator.state.short.data.dtype == np.int32  # grants store ids


def grown_and_counted() -> tuple[int, int]:
    """Bytes by which this process grows with eight copies of an index, and what is counted for them."""
    import psutil

    index = Curator(train(np.random.default_rng(0).normal(size=(4000, 32)).astype(np.float32), 8), 60_000)
    index.state.vectors[:] = 1.0
    index.insert_grants(np.arange(4000), np.zeros(4000, dtype=np.int64))
    index.shrink()
    gc.collect()
    before = psutil.Process().memory_info().rss
    copies = [
        [part.copy() if isinstance(part, np.ndarray) else [p.copy() for p in part] for part in index.state]
        for _ in range(8)
    ]
    grown = psutil.Process().memory_info().rss - before
    assert len(copies) == 8
    return grown, 8 * sum(index.bytes.values())


def test_counted_bytes_are_what_a_fresh_process_grows_by() -> None:
    code = "from tests.papers.test_curator import grown_and_counted as f; print(*f())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    grown, counted = map(int, told.split())
    assert grown == pytest.approx(counted, rel=0.1)


def test_small_tenants_get_all_their_vectors(load: Workload, curator: Curator) -> None:
    index = Curator(curator.state.tree, 30, 16)
    index.insert(np.arange(30), load.vectors[:30], [[0]] * 27 + [[1]] * 3)
    found = index.search(load.queries[:5], np.ones(5, dtype=np.int64), 10, 1.0, 1.0)
    assert all(set(row[row >= 0]) == {27, 28, 29} for row in found.ids)
    assert np.isinf(found.distances[:, 3:]).all()
    nobody = index.search(load.queries[:1], np.array([5]), 10)
    assert (nobody.ids == -1).all()


def test_with_the_whole_budget_all_indexes_are_exact(load: Workload, curator: Curator) -> None:
    truth = nearest(load)
    rows = np.arange(len(load.vectors))
    shared = InvertedFiles.shared(load.vectors, 24)
    shared.insert(rows, load.vectors, load.offsets, load.tenants)
    filtered = InvertedFiles.shared(load.vectors, 24, filter_capacity=40)
    filtered.insert(rows, load.vectors, load.offsets, load.tenants)
    own = InvertedFiles.per_tenant(load.vectors, load.owned, 20)
    own.insert(rows, load.vectors, load.offsets, load.tenants)
    graphs = HnswGraphs.shared(load.vectors, shared.files.access)
    answers = {
        "curator": curator.search(load.queries, load.asking, 10, 2.0, 1500.0),
        "flat": curator.search(load.queries, load.asking, 10, 2.0, 1500.0, best_first=False),
        "no filters": curator.search(load.queries, load.asking, 10, 2.0, 1500.0, filtered=False),
        "mf_ivf": shared.search(load.queries, load.asking, 10, 24),
        "mf_ivf_bf": filtered.search(load.queries, load.asking, 10, 0, 1500),
        "pt_ivf": own.search(load.queries, load.asking, 10, 1000),
        "mf_hnsw": graphs.search(load.queries, load.asking, 10, 1500),
    }
    for name, found in answers.items():
        least = 0.999 if name == "mf_hnsw" else 1.0  # a graph may not reach every vector
        assert recall(found.ids, truth) >= least, name
        assert np.all(np.diff(found.distances, axis=1)[:, :3] >= 0), name
    assert (answers["mf_ivf"].tests == len(load.vectors)).all()  # every vector met the access test
    assert (answers["pt_ivf"].tests == 0).all()


def test_inserting_one_by_one_gives_the_same_indexes_as_all_at_once(load: Workload) -> None:
    n = 300
    whole = Workload(
        load.vectors[:n],
        load.offsets[: n + 1],
        load.tenants[: load.offsets[n]],
        load.queries,
        load.asking,
        40,
    )
    tree = train(whole.vectors, 4)

    def answers(step: int) -> list[np.ndarray]:
        trees = Curator(tree, n, 4)
        shared = InvertedFiles.shared(whole.vectors, 5)
        own = InvertedFiles.per_tenant(whole.vectors, whole.owned, 20)
        for i in range(0, n, step):
            rows = np.arange(i, min(i + step, n))
            offsets = whole.offsets[i : rows[-1] + 2]
            group = whole.tenants[offsets[0] : offsets[-1]]
            trees.insert(rows, whole.vectors[rows], np.split(group, offsets[1:-1] - offsets[0]))
            for files in (shared, own):
                files.insert(rows, whole.vectors[rows], offsets - offsets[0], group)
        asked = (load.queries, load.asking, 10)
        found = (trees.search(*asked, 2.0, 4.0), shared.search(*asked, 2), own.search(*asked, 2))
        return [part for answer in found for part in (answer.ids, answer.touched)]

    for one, bulk in zip(answers(1), answers(n), strict=True):
        np.testing.assert_array_equal(one, bulk)


def test_inverted_file_finds_what_faiss_finds_with_an_id_selector(load: Workload) -> None:
    shared = InvertedFiles.shared(load.vectors, 24)
    shared.insert(np.arange(len(load.vectors)), load.vectors, load.offsets, load.tenants)
    quantizer = faiss.IndexFlatL2(16)
    quantizer.add(shared.files.centroids)
    index = faiss.IndexIVFFlat(quantizer, 16, len(shared.files.centroids))
    index.add(load.vectors)
    for nprobe in (1, 3, 8):
        found = shared.search(load.queries, load.asking, 10, nprobe)
        for q in range(20):
            selector = faiss.IDSelectorBatch(load.owned[load.asking[q]])
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
            _, ids = index.search(load.queries[q : q + 1], 10, params=parameters)
            assert list(found.ids[q]) == list(ids[0])


def test_graph_search_finds_what_faiss_finds_on_the_same_graph(load: Workload) -> None:
    graphs = HnswGraphs.shared(load.vectors, storage.empty_lists(0, 0), 16, 40)
    own = HnswGraphs.per_tenant(load.vectors, load.owned, 8, 40)
    everyone = storage.empty_lists(len(load.vectors), 0, used=len(load.vectors))
    index = faiss.IndexHNSWFlat(16, 16)
    index.hnsw.efConstruction = 40
    index.add(load.vectors)
    index.hnsw.efSearch = 32
    _, theirs = index.search(load.queries, 10)
    exact = np.argsort(((load.queries[:, None] - load.vectors[None]) ** 2).sum(axis=2), axis=1)[:, :10]
    all_access = clustered(np.random.default_rng(0), 1500, 16, 2, 1.0, 60, access="everyone")
    shared = InvertedFiles.shared(load.vectors, 4)
    shared.insert(np.arange(1500), load.vectors, all_access.offsets, all_access.tenants)
    graphs = HnswGraphs.shared(load.vectors, shared.files.access, 16, 40)
    found = graphs.search(load.queries, np.zeros(60, dtype=np.int64), 10, 32)
    assert recall(found.ids, exact) == pytest.approx(recall(theirs, exact), abs=0.02)
    assert recall(own.search(load.queries, load.asking, 10, 64).ids, nearest(load)) > 0.98
    assert len(everyone.head) == 1500


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(0, 99)), max_size=60), st.integers(1, 9)
)
def test_the_heap_keeps_the_k_nearest(offers: list[tuple[float, int]], k: int) -> None:
    keys, items = np.zeros(64, dtype=np.float32), np.zeros(64, dtype=np.int32)
    size = 0
    for distance, item in offers:
        size = offer(keys, items, size, k, np.float32(distance), item)
    assert sorted(-keys[:size]) == sorted(distance for distance, _ in offers)[:k]


@compiled.kernel
def offer(keys, items, size, k, distance, item):  # type: ignore[no-untyped-def]
    return heap.keep_nearest(keys, items, size, k, distance, item)


@compiled.kernel
def table_step(table, key, value):  # type: ignore[no-untyped-def]
    if value < 0:
        if storage.look_up(table, key) >= 0:
            storage.erase(table, key)
    else:
        storage.store(table, key, value)
    return storage.look_up(table, key)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-1, 5)), max_size=150))
def test_the_table_is_a_dictionary(steps: list[tuple[int, int]]) -> None:
    table, truth = storage.empty_table(64), {}
    for key, value in steps:
        spread = (key << 20) | (key % 3)
        table_step(table, spread, value)
        truth[spread] = value
        truth = {k: v for k, v in truth.items() if v >= 0}
        table = storage.reserve(table, 1)
    held = {int(k): int(v) for k, v in zip(table.keys, table.values, strict=True) if k >= 0}
    assert held == truth and int(table.state[0]) == len(truth)
    assert {int(k) for k in storage.fitted(table).keys if k >= 0} == set(truth)


def test_a_bloom_filter_never_forgets_and_errs_as_rarely_as_it_promises() -> None:
    filters, places = bloom.empty_filters(1, 1000, 0.001)
    bits = 64 * filters.shape[1]
    assert bits == 64 * math.ceil(1000 * math.log(1000) / math.log(2) ** 2 / 64) and len(places) == 10
    for tenant in range(1000):
        bloom_places(tenant, bits, places)
        bloom_insert(filters, 0, places)
    wrong = 0
    for tenant in range(101_000):
        bloom_places(tenant, bits, places)
        known = bloom_has(filters, 0, places)
        assert known or tenant >= 1000
        wrong += known and tenant >= 1000
    assert wrong / 100_000 < 0.002


def test_the_tree_obeys_the_authors_constants() -> None:
    vectors = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    tree = train(vectors, 16)
    fan_out = {
        int(level): set(tree.children[(tree.level == level) & (tree.children > 0)])
        for level in set(tree.level)
    }
    assert (
        fan_out[0] == {16}
        and fan_out[1] <= {8}
        and all(fan <= {4} for level, fan in fan_out.items() if level > 1)
    )
    assert tree.level.max() <= DEEPEST
    for node in range(1, len(tree.parent)):  # siblings lie side by side behind their parent
        parent = int(tree.parent[node])
        assert parent < node and 0 <= node - tree.first[parent] < tree.children[parent]
    assert len(train(vectors[:30], 4).parent) == 1  # fewer than eight a child


def test_a_larger_gamma_scans_more_and_never_beyond_its_budget(load: Workload, curator: Curator) -> None:
    before = 0.0
    for gamma in (1.0, 2.0, 4.0, 8.0, 16.0):
        found = curator.search(load.queries, load.asking, 10, 2.0, gamma)
        assert (found.vectors <= max(16, 10 * gamma)).all()
        assert found.touched.mean() >= before
        before = found.touched.mean()


def test_without_filters_or_best_first_the_same_vectors_are_scanned_for_more_centroids(
    load: Workload, curator: Curator
) -> None:
    with_filters = curator.search(load.queries, load.asking, 10, 2.0, 8.0)
    without = curator.search(load.queries, load.asking, 10, 2.0, 8.0, filtered=False)
    assert (without.centroids >= with_filters.centroids).all()
    assert (without.vectors == with_filters.vectors).all()  # false positives aside
    assert (without.ids == with_filters.ids).all()


def test_the_workload_is_as_asked() -> None:
    load = clustered(np.random.default_rng(1), 5000, 8, 400, 10.0, 50)
    assert load.sharing == pytest.approx(10.0, rel=0.1)
    assert np.diff(load.offsets).min() >= 1
    assert sum(map(len, load.owned)) == len(load.tenants)
    assert clustered(np.random.default_rng(1), 300, 8, 10, 5.0, 5, access="one").sharing == 1.0
    assert clustered(np.random.default_rng(1), 300, 8, 10, 5.0, 5, access="everyone").sharing == 10.0
    sizes = [len(o) for o in clustered(np.random.default_rng(1), 3000, 8, 10, 2.0, 5, access="random").owned]
    assert min(sizes) > 300
    with pytest.raises(ValueError, match="sideways"):
        clustered(np.random.default_rng(0), 10, 2, 3, 1.0, 1, access="sideways")


def test_films_come_from_the_ratings(tmp_path: Path) -> None:
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += [
        f"{u}\t{i}\t{(u * i) % 5 + 1}\t0" for u in range(1, 13) for i in range(1, 21) if (u + i) % 3 or u == 1
    ]
    path = tmp_path / "ratings"
    path.write_text("\n".join(lines))
    load = films(np.random.default_rng(0), path, 10, width=4)
    assert load.vectors.shape == (20, 4) and load.count == 12
    ratings = np.zeros((20, 12))
    for line in lines[1:]:
        u, i, stars, _ = line.split("\t")
        ratings[int(i) - 1, int(u) - 1] = float(stars)
    left, values, _ = np.linalg.svd(ratings, full_matrices=False)
    np.testing.assert_allclose(np.abs(load.vectors), np.abs(left[:, :4] * values[:4]), atol=1e-3)
    for item in range(20):
        assert set(load.tenants[load.offsets[item] : load.offsets[item + 1]]) == set(
            np.flatnonzero(ratings[item])
        )


def test_tuning_finds_the_smallest_knob_that_reaches_the_recall(load: Workload, curator: Curator) -> None:
    truth = nearest(load)

    def search(gamma: int):  # type: ignore[no-untyped-def]
        return curator.search(load.queries, load.asking, 10, 2.0, gamma)

    found = cheapest(search, truth, 2, 200, 0.9)
    assert found.recall >= 0.9 and recall(search(found.knob - 1).ids, truth) < 0.9
    assert cheapest(search, truth, 2, 3, 0.999).knob == 3


def test_an_exponent_is_the_slope_on_logarithmic_axes() -> None:
    assert exponent([10, 100, 1000], [2.0, 2e1, 2e2]) == pytest.approx(1.0)
    assert exponent([10, 40], [1.0, 2.0]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two"):
        exponent([10], [1.0])


def test_weighing_at_another_width_is_what_padded_vectors_weigh() -> None:
    load = clustered(np.random.default_rng(2), 400, 8, 10, 3.0, 5)
    padded = np.zeros((400, 24), dtype=np.float32)
    padded[:, :8] = load.vectors
    wide = Workload(padded, load.offsets, load.tenants, load.queries, load.asking, 10)
    names = ["curator", "mf_ivf", "pt_ivf"]
    assert Comparison(TINY, load, names, 0).weighed(24) == Comparison(TINY, wide, names, 0).weighed()


def test_two_runs_observe_the_same_but_for_times() -> None:
    def counted() -> list[tuple[str, float]]:
        seen = run(TINY, Runtime([0], workers=1))
        timed = ("_wall", "_us", "_us_p99")
        return [(row.metric, row.value) for row in seen if not row.metric.endswith(timed)]

    first = counted()
    assert first == counted()
    assert {
        "mf_ivf_gain_touched",
        "memory_growth",
        "growth_gap_touched",
        "growth_gap_tuned_touched",
        "pt_ivf_insert_touched",
    } <= {m for m, _ in first}


def test_under_controls_the_mechanism_is_off() -> None:
    plain = {row.metric: row.value for row in run(TINY, Runtime([0], workers=1)) if not row.at}

    def under(metric: str, **changes: object) -> float:
        config = Config(**{**TINY.__dict__, **changes})
        (row,) = run(config, Runtime([0], workers=1, wanted=[metric])).rows(metric)
        return row.value

    assert under("best_first_gain_touched", best_first=False) == 1.0
    assert under("pt_ivf_memory", access="one") < 1.0
    assert under("memory_over_mf_ivf", copies=True) > plain["memory_over_mf_ivf"]
    assert under("shortlist_gain_touched", longest=0) < plain["shortlist_gain_touched"]
    sizes = {"sizes": [1000, 4000]}
    assert under("growth_touched", scan_all=True, **sizes) > under("growth_touched", **sizes)
    assert under("mf_ivf_gain_touched", access="everyone", tenants=4) < plain["mf_ivf_gain_touched"]


def test_bad_input_is_refused() -> None:
    vectors = np.zeros((2, 4), dtype=np.float32)
    index = Curator(TREE, 2)
    with pytest.raises(ValueError, match="longest"):
        Curator(TREE, 2, -1)
    with pytest.raises(ValueError, match="branching"):
        train(vectors, 1)
    with pytest.raises(ValueError, match="shape"):
        index.insert(np.array([0]), vectors, [[0]])
    with pytest.raises(ValueError, match="tenant"):
        index.insert(np.array([0]), vectors[:1], [[]])
    with pytest.raises(ValueError, match="from 0 to 1"):
        index.insert(np.array([2]), vectors[:1], [[0]])
    index.insert(np.array([0]), vectors[:1], [[0]])
    with pytest.raises(ValueError, match="taken"):
        index.insert(np.array([0]), vectors[:1], [[0]])
    with pytest.raises(ValueError, match="id 1"):
        index.revoke(1, 0)
    with pytest.raises(ValueError, match="tenants are"):
        index.grant(0, 1 << NODE)
    with pytest.raises(ValueError, match="gamma1"):
        index.search(vectors, np.zeros(2, dtype=np.int64), 10, 0.5)
    with pytest.raises(ValueError, match="k must"):
        index.search(vectors, np.zeros(2, dtype=np.int64), 0)
    with pytest.raises(ValueError, match="filter"):
        bloom.filter_bits(10, 1.5)
