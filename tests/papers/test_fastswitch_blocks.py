"""Block tables: conservation, no overlap, coalescing, best fit, and copies that move what they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.fastswitch.allocator_history import CAPACITY, operations
from papers.fastswitch.block_groups import BlockGroups, FreeRuns, Piece, Run, SingleBlocks, pieces
from papers.fastswitch.deployments import ALL_TOKENS
from papers.fastswitch.kv_reuse import HostCopies

owners = st.integers(0, 7)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), owners, st.integers(1, 40)),
        st.tuples(st.just("free"), owners, st.just(0)),
        st.tuples(st.just("detach"), owners, st.just(0)),
        st.tuples(st.just("give back"), owners, st.just(0)),
        st.tuples(st.just("truncate"), owners, st.integers(0, 30)),
    ),
    max_size=60,
)
kinds = st.sampled_from([
    lambda: BlockGroups(100, 8), lambda: BlockGroups(100, 60), lambda: BlockGroups(100, 8, 1),
    lambda: SingleBlocks(100), lambda: BlockGroups(100, 1, 5),
])  # fmt: skip


def blocks(runs):
    return [block for start, length in runs for block in range(start, start + length)]


def audit(tables):
    """Every block is in exactly one place, free runs are maximal, counts are right. Give detached ones back first."""
    if isinstance(tables, SingleBlocks):
        everything = tables._stack + [run for held in tables._blocks.values() for run in held]
        assert sorted(everything) == [Run(block, 1) for block in range(tables.capacity)]
        return
    groups = [group for held in tables._groups.values() for group in held]
    free = list(tables._unused)
    covered = sorted([*(Run(group.start, group.length) for group in groups), *free])
    assert all(run.length > 0 for run in covered)
    assert all(a.start + a.length <= b.start for a, b in zip(covered, covered[1:], strict=False)), "overlap"
    assert sum(run.length for run in covered) == tables.capacity, "lost blocks"
    assert all(a.start + a.length < b.start for a, b in zip(free, free[1:], strict=False)), "not merged"
    assert tables.free == tables.capacity - sum(group.used for group in groups)
    assert all(g.used == g.length for held in tables._groups.values() for g in held[:-1])


@given(make=kinds, work=steps)
@settings(max_examples=100, deadline=None)
def test_every_block_is_in_one_place_whatever_is_done(make, work):
    tables = make()
    held = {}  # the truth: how many blocks each owner uses
    leaving = []
    for what, owner, n in work:
        before = blocks(tables.runs(owner))
        if what == "allocate":
            if n > tables.free:
                with pytest.raises(MemoryError):
                    tables.allocate(owner, n)
            else:
                tables.allocate(owner, n)
                held[owner] = held.get(owner, 0) + n
                assert blocks(tables.runs(owner))[: len(before)] == before, "what is stored stays where it is"
        elif what == "free":
            tables.give_back(tables.detach(owner))
            held[owner] = 0
        elif what == "detach":
            leaving += tables.detach(owner)
            held[owner] = 0
        elif what == "give back":
            tables.give_back(leaving)
            leaving = []
        elif n < held.get(owner, 0):
            tables.truncate(owner, n)
            held[owner] = n
            assert blocks(tables.runs(owner)) == before[:n]
        used = [block for who in held for block in blocks(tables.runs(who))]
        everything = used + blocks(leaving)
        assert len(set(everything)) == len(everything), "two hold the same block"
        assert all(tables.used(who) == n for who, n in held.items())
        assert tables.free == 100 - len(everything)
    tables.give_back(leaving)
    audit(tables)
    for owner in list(held):
        tables.give_back(tables.detach(owner))
    audit(tables)
    assert tables.free == 100


@given(work=st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_free_runs_find_the_best_fit_of_a_linear_search(work):
    free, truth = FreeRuns(120), [True] * 120
    taken = []

    def runs_of_truth():
        edges = np.flatnonzero(np.diff([0, *map(int, truth), 0]))
        return [Run(int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    for takes, n in work:
        if takes and any(truth):
            found = runs_of_truth()
            enough = [run for run in found if run.length >= n]
            wanted = (
                min(enough, key=lambda r: (r.length, r.start))
                if enough
                else max(found, key=lambda r: r.length)
            )
            run = free.take(n)
            assert run.length == min(n, wanted.length)
            assert run.start in [r.start for r in found if r.length == wanted.length]
            truth[run.start : run.start + run.length] = [False] * run.length
            taken.append(run)
        elif taken:
            run = taken.pop(n % len(taken))
            free.add(*run)
            truth[run.start : run.start + run.length] = [True] * run.length
        assert list(free) == runs_of_truth(), "neighbours must merge"


def test_a_request_alone_grows_in_one_run_and_blocks_of_many_interleave():
    groups, single = BlockGroups(1000, 16), SingleBlocks(1000)
    for _ in range(50):
        for owner in range(5):
            groups.allocate(owner, 1)
            single.allocate(owner, 1)
    # with reserves of 16 and more, five requests that grow in turns lie in few runs; vLLM's lie in 50 each
    assert all(len(groups.runs(owner)) <= 3 for owner in range(5))
    assert all(len(single.runs(owner)) == 50 for owner in range(5))


def test_reserves_are_given_up_before_anybody_is_refused():
    groups = BlockGroups(64, 32)
    groups.allocate("a", 1)
    groups.allocate("b", 1)
    assert groups.free == 62
    groups.allocate("c", 62)
    assert groups.free == 0 and groups.used("c") == 62
    assert groups.runs("a") == [Run(0, 1)] and groups.runs("b")[0].length == 1
    audit(groups)


def test_groups_get_shorter_where_blocks_are_scarce_and_longer_where_they_are_plenty():
    groups = BlockGroups(1000, 60)
    groups.allocate("first", 1)
    assert groups.target == 120
    groups.allocate("most", 940)
    before = groups.target
    groups.allocate("last", 40)
    assert groups.target < before


@given(
    left=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    right=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    first=st.integers(0, 20),
    limit=st.one_of(st.none(), st.integers(0, 40)),
)
def test_pieces_move_each_block_to_its_place_and_are_as_few_as_the_runs_allow(left, right, first, limit):
    rng = np.random.default_rng(0)

    def place(lengths):
        starts = np.cumsum([0, *[n + 1 for n in lengths]])[:-1]  # a gap behind every run
        order = rng.permutation(len(lengths))
        return [Run(int(starts[i]), lengths[i]) for i in order]

    source, target = place(left), place(right)
    found = pieces(source, target, first, limit)
    pairs = list(zip(blocks(source), blocks(target), strict=False))[:limit]
    moved = [(a + i, b + i) for a, b, n in found for i in range(n)]
    assert moved == pairs[first:]
    breaks = sum(
        b != a + 1 or d != c + 1 for (a, c), (b, d) in zip(pairs[first:], pairs[first + 1 :], strict=False)
    )
    assert len(found) == (breaks + 1 if moved else 0)


@pytest.mark.parametrize("make", [BlockGroups, SingleBlocks])
def test_blocks_below_none_and_blocks_given_back_twice_are_refused_and_change_nothing(make):
    tables = make(20)
    tables.allocate("a", 5)
    for odd in (lambda: tables.allocate("a", -1), lambda: tables.truncate("a", -1)):
        with pytest.raises(ValueError, match="fewer than none"):
            odd()
    with pytest.raises(MemoryError):
        tables.allocate("b", 16)
    away = tables.detach("a")
    tables.give_back(away)
    with pytest.raises(ValueError, match="given back"):
        tables.give_back(away)
    assert tables.free == 20 and tables.used("b") == 0
    audit(tables)


def test_a_call_never_crosses_the_border_of_neighbouring_groups():
    assert pieces([Run(0, 1), Run(1, 1)], [Run(5, 2)]) == [Piece(0, 5, 1), Piece(1, 6, 1)]


def host(kept_tokens=ALL_TOKENS):
    return HostCopies(SingleBlocks(10), lambda key: key, kept_tokens)


def test_a_second_copy_out_begins_with_the_last_partly_filled_block():
    copies = host()
    assert copies.make_room(1, 40) == 0
    copies.written(1, 40, needed=True)
    copies.read(1)
    assert copies.make_room(1, 70) == 2, "blocks 0 and 1 are whole; block 2 holds 8 of 16 tokens"
    assert copies.tables.used(1) == 5


def test_without_reuse_everything_is_copied_again():
    copies = host(kept_tokens=0)
    copies.make_room(1, 40)
    copies.written(1, 40, needed=True)
    copies.read(1)
    assert copies.tables.free == 10 and copies.valid(1) == 0 and copies.make_room(1, 70) == 0


def test_pressure_takes_the_ends_of_the_least_important_copies_first():
    copies = host()
    for key in (1, 2, 3):
        copies.make_room(key, 48)
        copies.written(key, 48, needed=key == 1)
    assert (
        copies.make_room(4, 48) == 0
    )  # 3 blocks of 1 free: two are taken from conversation 2, for 1 is needed
    assert [copies.valid(key) for key in (1, 2, 3)] == [48, 16, 48]
    assert copies.evicted_blocks == 2
    copies.written(4, 48, needed=True)
    assert copies.make_room(5, 200) is None, "needed copies are never taken"


def test_a_copy_under_way_is_neither_evicted_nor_dropped():
    copies = host()
    copies.make_room(1, 160)
    copies.written(1, 160, needed=False)
    copies.begin(1)
    assert copies.make_room(2, 16) is None
    with pytest.raises(ValueError, match="being read"):
        copies.drop(1)


@pytest.mark.parametrize("make, least", [(BlockGroups, 4), (SingleBlocks, 1)])
def test_a_long_history_leaks_nothing(make, least):
    tables, alive = make(CAPACITY), set()
    for owner, n in operations(np.random.default_rng(0), 10_000):
        if n:
            tables.allocate(owner, n)
            alive.add(owner)
        else:
            tables.give_back(tables.detach(owner))
            alive.remove(owner)
    runs = [run.length for owner in alive for run in tables.runs(owner)]
    assert np.mean(runs) > least if least > 1 else set(runs) == {1}
    audit(tables)
    for owner in alive:
        tables.give_back(tables.detach(owner))
    assert tables.free == CAPACITY
    audit(tables)
