"""Infinite-LLM: the merge against one softmax, the books against over-commitment, loans against conservation."""

import json
from dataclasses import replace
from itertools import permutations, product

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from common.distributed.launch import launch
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.serving.engine import simulate
from common.serving.profiled import profiled_latency
from common.serving.workload import Lengths, Workload
from papers.infinite_llm.cluster import NETWORK, SHAPE, Setup, kv_tokens, lender, lending_over, longest_served
from papers.infinite_llm.cluster import run as serve
from papers.infinite_llm.comparison import MULTI, SINGLE, Case, decisive, pairs_of
from papers.infinite_llm.config import HELD_ALONE, Config
from papers.infinite_llm.decode_step import attention_seconds
from papers.infinite_llm.dist_attention import attend_part, cut, joined, merge, packed, unpacked
from papers.infinite_llm.experiment import run
from papers.infinite_llm.ledger import (
    GManager,
    Refused,
    RManager,
    audit,
    cancel_cycles,
    cycles,
    repay,
)
from papers.infinite_llm.planning import Exchange, LendingLatency, Rules, Wire
from papers.infinite_llm.processes import METHODS, Shape, attention_steps, lend_concurrently
from papers.infinite_llm.remote_cache import serve_shared
from papers.infinite_llm.traces import draw
from tests.lab.toy import REPOSITORY
from tests.papers.test_distserve import PLAIN

PROJECT = Project(REPOSITORY)
CHAT = Lengths(np.array([100, 300, 800]), np.array([50, 200, 400]))


def parts_of(keys, values, lengths):
    """The sequence cut into parts of these lengths."""
    places = np.cumsum([0, *lengths])
    return [(keys[:, a:b], values[:, a:b]) for a, b in zip(places, places[1:], strict=False)]


def drawn(heads, groups, tokens, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    query = scale * torch.randn(heads, 16, generator=generator, dtype=torch.float64)
    keys, values = torch.randn(2, groups, tokens, 16, generator=generator, dtype=torch.float64)
    return query, keys, values


@pytest.mark.parametrize("groups", [8, 2, 1])
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_merged_parts_equal_attention_in_one_place(groups, lengths, seed):
    query, keys, values = drawn(8, groups, sum(lengths), seed)
    found = merge(attend_part(query, *part) for part in parts_of(keys, values, lengths))
    expected = F.scaled_dot_product_attention(query[None, :, None], keys[None], values[None], enable_gqa=True)
    torch.testing.assert_close(found, expected[0, :, 0])


def test_the_order_and_place_of_merging_do_not_matter():
    query, keys, values = drawn(4, 4, 40)
    results = [attend_part(query, *part) for part in parts_of(keys, values, [3, 17, 20])]
    whole = merge(results)
    for order in permutations(results):
        torch.testing.assert_close(merge(order), whole)
    torch.testing.assert_close(merge([results[0], joined(results[1], results[2])]), whole)


def test_scores_of_ten_thousand_neither_overflow_nor_vanish():
    keys = torch.tensor([[[1.0], [-1.0]]]) * 1e4
    values = torch.tensor([[[3.0], [5.0]]])
    for sign, expected in ((1.0, 3.0), (-1.0, 5.0)):
        query = torch.tensor([[sign]])
        found = merge([attend_part(query, keys[:, i : i + 1], values[:, i : i + 1]) for i in (0, 1)])
        assert found.item() == expected


def test_a_partial_result_survives_the_wire_and_needs_no_more_than_its_size():
    query, keys, values = drawn(4, 2, 10)
    part = attend_part(query, keys, values)
    assert packed(part).shape == (4, 16 + 2)
    for sent, kept in zip(unpacked(packed(part)), part, strict=True):
        torch.testing.assert_close(sent, kept)


def test_an_empty_part_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        attend_part(*drawn(4, 4, 0))


@given(tokens=st.integers(4, 10_000), parts=st.integers(1, 4))
def test_a_cut_covers_the_sequence(tokens, parts):
    assert sum(cut(tokens, parts)) == tokens and len(cut(tokens, parts)) == parts


def bytes_of(method, shape, world):
    """Bytes that all processes send in a step, in closed form."""
    size, wide = 4, 4  # float32, and partial results are no narrower
    kv_token = 2 * shape.kv_heads * shape.head_dim * size
    return {
        "dist": (world - 1) * shape.heads * (shape.head_dim * size + (shape.head_dim + 2) * wide),
        "ring": (world - 1) * shape.tokens * kv_token,  # every part makes world - 1 hops
        "fetch": sum(cut(shape.tokens, world)[1:]) * kv_token,
    }[method]


def test_processes_agree_send_what_is_counted_and_dist_does_not_depend_on_the_context():
    shapes = [Shape(4, 2, 16, tokens) for tokens in (64, 640)]
    (steps, *_) = launch(attention_steps, 3, (shapes, METHODS, 0), seconds=100)
    for shape, found in zip(shapes, steps, strict=True):
        for method, step in found.items():
            assert step.error < 1e-5 and step.sent == bytes_of(method, shape, 3), method
    assert steps[0]["dist"].sent == steps[1]["dist"].sent
    assert steps[1]["ring"].sent == 10 * steps[0]["ring"].sent


@pytest.mark.parametrize("merging,same", [(True, True), (False, False)])
def test_a_decoder_with_a_remote_cache_gives_the_same_tokens_only_with_the_merge(merging, same):
    served = launch(serve_shared, 3, (90, 12, 0.75, 0, merging), seconds=100)[0]
    assert served.moved == 68
    assert (served.local == served.remote) == same


def test_borrowers_at_once_are_never_promised_more_than_there_is():
    (most, granted, refused), *borrowers = launch(lend_concurrently, 4, (100, 40, 0), seconds=100)
    assert most <= 100 and granted and refused
    assert granted == sum(one[0] for one in borrowers) and refused == sum(one[1] for one in borrowers)


def borrow(managers, ledger, debtor, blocks):
    """Ask the proposed creditors in turn; the one that reserved the blocks, or None."""
    for creditor in ledger.propose(debtor, blocks):
        try:
            managers[creditor].lend(debtor, blocks)
        except Refused:
            continue
        managers[debtor].took(creditor, blocks)
        return creditor
    return None


moves = st.lists(
    st.tuples(
        st.sampled_from(["use", "free", "borrow", "repay", "cancel"]), st.integers(0, 3), st.integers(1, 60)
    ),
    max_size=80,
)


@given(moves=moves, stale=st.booleans())
@settings(max_examples=150, deadline=None)
def test_books_balance_under_any_order_of_events(moves, stale):
    managers = {name: RManager(name, 100, most_lent=0.7) for name in range(4)}
    ledger = GManager()
    for one in managers.values():
        ledger.hear(one)
    for kind, name, blocks in moves:
        one = managers[name]
        held = one.used + sum(one.borrowed.values())
        if kind == "use" and blocks <= one.free:
            one.used += blocks
        elif kind == "free":
            one.used -= min(blocks, one.used)
        elif kind == "borrow":
            borrow(managers, ledger, name, blocks)
        elif kind == "repay" and one.borrowed:
            creditor = min(one.borrowed)
            repay(managers, name, creditor, min(blocks, one.borrowed[creditor]))
        elif kind == "cancel":
            before = {each.name: each.used + sum(each.borrowed.values()) for each in managers.values()}
            free = [each.free for each in managers.values()]
            cancel_cycles(managers)
            assert before == {
                each.name: each.used + sum(each.borrowed.values()) for each in managers.values()
            }
            assert free == [each.free for each in managers.values()], (
                "a swap along a cycle needs no free block"
            )
        audit(managers.values())
        assert sum(one.lent.values()) <= 70 and held >= 0
        if not stale:
            for each in managers.values():
                ledger.hear(each)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)), max_size=20))
@settings(deadline=None)
def test_a_cycle_is_found_where_networkx_finds_one_and_none_is_left(edges):
    debts, graph = {}, nx.DiGraph()
    managers = {name: RManager(name, 1000) for name in range(6)}
    for debtor, creditor, blocks in edges:
        if debtor != creditor:
            managers[creditor].lend(debtor, blocks)
            managers[debtor].took(creditor, blocks)
            debts.setdefault(debtor, {})[creditor] = blocks
            graph.add_edge(debtor, creditor)
    acyclic = nx.is_directed_acyclic_graph(graph)
    assert (next(cycles(debts), None) is None) == acyclic
    cancel_cycles(managers)
    audit(managers.values())
    left = nx.DiGraph([(one.name, creditor) for one in managers.values() for creditor in one.borrowed])
    assert nx.is_directed_acyclic_graph(left)


def test_a_creditor_without_room_refuses_and_does_not_borrow_on():
    managers = {name: RManager(name, 10) for name in range(3)}
    ledger = GManager()
    for one in managers.values():
        ledger.hear(one)
    managers[1].used = 8
    with pytest.raises(Refused, match="lends no 5"):
        managers[1].lend(0, 5)
    assert ledger.propose(0, 5) == [1, 2], "the ledger is old"
    assert borrow(managers, ledger, 0, 5) == 2 and not managers[1].borrowed


def test_creditors_of_the_same_node_come_first():
    ledger = GManager(node_of={0: 0, 1: 0, 2: 1})
    for name, used in ((0, 0), (1, 5), (2, 0)):
        one = RManager(name, 10)
        one.used = used
        ledger.hear(one)
    assert ledger.propose(0, 3) == [1, 2]


EXCHANGE = Exchange(4, 1e4, 1e6, Wire(1e9, 1e-6), Wire(1e7, 1e-4))


def test_an_exchange_takes_its_slowest_wire_and_shares_the_one_between_nodes():
    assert EXCHANGE.seconds(0, 0) == 0.0
    assert EXCHANGE.seconds(3, 0) == pytest.approx(4 * (2e-6 + 3e-5))
    assert EXCHANGE.seconds(3, 2) == pytest.approx(4 * (2e-4 + 2e-3))
    assert EXCHANGE.seconds(3, 2, sharing=5) == pytest.approx(4 * (2e-4 + 1e-2))


def test_lending_slows_the_creditor_and_speeds_the_debtor():
    times = LendingLatency(PLAIN, prefills=True)
    plain = times.iteration([], 4, 1000)[0]
    intercept, slope, _ = PLAIN.decode_line(4, 1000)
    times.hosted = 300
    assert times.iteration([], 4, 1000)[0] == pytest.approx(plain + 300 * slope)
    times.hosted, times.remote, times.exchange_seconds = 0, 400, 0.25
    assert times.iteration([], 4, 1000)[0] == pytest.approx(plain - 400 * slope + 0.25)
    assert times.iteration([], 4, 100)[0] == pytest.approx(intercept + 0.25), "no less than nothing is local"


def test_a_debtor_waits_for_a_creditor_that_attends_to_more_than_itself():
    times = LendingLatency(PLAIN, prefills=True)
    intercept, slope, _ = PLAIN.decode_line(4, 1000)
    times.remote = times.largest_part = 800
    assert times.iteration([], 4, 1000)[0] == pytest.approx(intercept + 800 * slope)
    assert times.decode_line(4, 1000).until == 1600, "from there on its own part takes longer"
    assert times.iteration([], 4, 2000)[0] == pytest.approx(intercept + 1200 * slope)


SMALL = Setup(gpus=8)


def long_trace(longest, n=60, seed=0):
    return draw(np.random.default_rng(seed), n, CHAT, longest, long_share=0.4)


@pytest.mark.parametrize("longest", [60_000, 100_000, 200_000])
def test_every_request_is_served_and_every_block_comes_back(longest):
    outcome = serve(long_trace(longest), "infinite", SMALL)
    assert outcome.served == 1.0 and outcome.exact and outcome.loans > 0
    assert np.all(outcome.trace.finish > 0)


def test_without_lending_only_what_fits_an_instance_is_served():
    outcome = serve(long_trace(200_000), "vllm-multi", SMALL)
    assert outcome.served < 1 and outcome.loans == 0


def test_equal_requests_on_idle_instances_gain_nothing_from_lending():
    equal = Workload(np.zeros(8), np.full(8, 1000), np.full(8, 50))
    with_loans, without = (serve(equal, system, SMALL) for system in ("infinite", "vllm-multi"))
    assert with_loans.throughput == without.throughput


def test_one_long_request_beside_idle_instances_is_faster_in_parts_but_no_faster_than_the_largest_of_them():
    lone = Workload(np.zeros(1), np.array([100_000]), np.array([600]))
    alone = serve(lone, "vllm-multi", SMALL).throughput
    rates = [
        serve(lone, "infinite", replace(SMALL, rules=Rules(moved_per_step=tokens))).throughput
        for tokens in (0, 1024, 8192)
    ]
    base = profiled_latency("llama-2-7b", "a100", 1, network=NETWORK)
    intercept, slope, _ = base.decode_line(1, 100_000)
    evenly = 1 / (intercept + slope * 100_000 / 8)
    assert rates[0] == alone and 1.2 * alone < min(rates[1:]) and max(rates[1:]) < evenly
    at_one = serve(lone, "infinite", replace(SMALL, gpus=2, rules=Rules(moved_per_step=4096))).throughput
    assert 1.2 * alone < at_one < 1 / (intercept + slope * 50_000), "of two the larger half counts"


def test_attention_over_a_ring_takes_longer_the_longer_the_context():
    ratios = [attention_seconds("ring", n) / attention_seconds("dist", n) for n in (4096, 65_536, 262_144)]
    assert 1 < ratios[0] < ratios[1] < ratios[2]


def test_the_spread_of_lengths_shrinks_around_their_mean():
    drawn = [draw(np.random.default_rng(0), 4000, CHAT, 60_000, spread) for spread in (0.0, 0.5, 1.0)]
    deviations = [np.log(one.prompt).std() for one in drawn]
    assert deviations[0] < 1e-12 and deviations[1] == pytest.approx(deviations[2] / 2, rel=0.01)
    for one in drawn:
        assert one.prompt.mean() == pytest.approx(drawn[2].prompt.mean(), rel=0.01)
        assert one.output.mean() == pytest.approx(drawn[2].output.mean(), rel=0.01)


def test_the_longest_request_is_what_all_may_lend_and_one_block_more_is_refused():
    for gpus in (1, 2, 8):
        setup = Setup(gpus=gpus)
        assert 0.97 * setup.longest < longest_served(setup, "infinite") <= setup.longest
    assert longest_served(Setup(gpus=1), "infinite") == longest_served(Setup(gpus=8), "vllm-multi")


def test_same_config_and_seeds_give_the_same_bytes():
    config = Config(gpus=8, requests=60, short=[60_000], long=[200_000], instances=[32])
    metrics = ["gain_end_to_end", "served_share", "gain_equal_lengths", "longest_context_gain"]
    runs = [run(config, Runtime((0, 1), wanted=metrics)) for _ in range(2)]
    assert runs[0].to_json() == runs[1].to_json()


def test_more_cancelling_rules_do_not_change_what_is_served():
    for cancels in (True, False):
        outcome = serve(long_trace(100_000, 80), "infinite", Setup(gpus=8, rules=Rules(cancels=cancels)))
        assert outcome.exact and outcome.served == 1.0


@pytest.mark.parametrize(
    "field,value",
    [
        ("processes", 1),
        ("gpus", 12),
        ("gpus", 1),
        ("short", []),
        ("short", [5000]),
        ("remote", 0.0),
        ("model", "llama-2-13b"),
        ("lends", False),
        ("spread", -1.0),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(field, value):
    text = json.dumps(value)
    with pytest.raises(LabError) as refused:
        compose(PROJECT, "infinite_llm", "smoke", [f"paper.{field}={text}", "paper.creditors=random"])
    assert "\n" not in str(refused.value) and field in str(refused.value)


def test_keys_and_values_that_come_home_cost_more_than_a_query_that_goes_out():
    workload = long_trace(100_000)
    query, fetch = (serve(workload, "infinite", replace(SMALL, fetches=fetches)) for fetches in (False, True))
    assert query.exact and fetch.exact and query.loans > 0 and fetch.loans > 0
    assert attention_seconds("fetch", 65_536) > attention_seconds("dist", 65_536)
    assert fetch.throughput < query.throughput


def test_creditors_drawn_at_random_keep_the_books_and_depend_on_the_seed_alone():
    runs = [
        serve(long_trace(100_000), "infinite", replace(SMALL, rules=Rules(drawn=seed))) for seed in (1, 1, 2)
    ]
    assert all(one.exact and one.served == 1.0 for one in runs)
    assert runs[0].throughput == runs[1].throughput


def test_a_request_cut_in_two_is_as_long_as_two_instances_hold():
    setup = Setup(gpus=8, rules=Rules(most_parts=1))
    assert longest_served(setup, "infinite") == longest_served(Setup(gpus=2), "infinite")


def test_the_gain_is_over_rivals_that_serve_everything_on_traces_that_both_serve():
    config = Config()
    for metric in ("gain_end_to_end", "gain_decode_only", "by_tokens_end_to_end"):
        for ours, rivals in pairs_of(config)[metric]:
            assert ours.longest <= HELD_ALONE and {one.system for one in rivals} == {MULTI, SINGLE}
            assert all(replace(one, system=ours.system) == ours for one in rivals), "all else is the same"


def test_requests_served_counts_those_that_came_to_their_end():
    config = Config(gpus=8, requests=60, most_parts=1, instances=[32])
    seen = run(config, Runtime((0, 1, 2), wanted=["served_share"]))
    for seed in (0, 1, 2):
        shares = [row.value for row in seen.rows("served", system="infinite") if row.seed == seed]
        (finished,) = (row.value for row in seen.rows("requests_served") if row.seed == seed)
        assert finished == round(60 * min(shares))


@pytest.mark.parametrize("field,value", [("busy", 0.7), ("lends", False), ("period", 1.0), ("batch", 32)])
def test_what_decides_a_run_is_part_of_what_it_is_remembered_by(field, value):
    ours = Case(60_000)
    assert decisive(Config(), ours) != decisive(replace(Config(), **{field: value}), ours)
    rival = replace(ours, system=MULTI)
    assert decisive(Config(), rival) == decisive(replace(Config(), **{field: value}), rival)


def test_a_request_that_has_its_room_is_not_planned_for_again():
    """A prompt of 90,000 tokens takes a hundred rounds; what waits behind it is reserved for once."""
    workload = Workload(np.zeros(4), np.array([90_000, 1000, 60_000, 1000]), np.full(4, 20))
    setup = Setup(gpus=2, rules=Rules(batch=256, busy=1.0), prefills=True)
    outcome = serve(workload, "infinite", setup)
    assert outcome.exact and outcome.served == 1.0 and outcome.placed_blocks > 0
    assert outcome.dropped <= outcome.loans


def test_blocks_move_while_they_decode():
    assert serve(long_trace(100_000), "infinite", SMALL).moved_blocks > 0


def test_an_instance_that_lends_nothing_serves_what_it_serves_alone():
    config = Config(gpus=8, requests=60, lends=False, short=[60_000], instances=[32])
    seen = run(config, Runtime((0, 1), wanted=["served_share", "gain_over_refusing", "longest_context_gain"]))
    assert set(seen.values("gain_over_refusing")) == {1.0} == set(seen.values("longest_context_gain"))
    assert seen.values("served_share") == seen.values("served", system="vllm-multi", longest=200_000)
    assert min(seen.values("served_share")) < 1 and set(seen.values("loans")) == {0}


def test_a_prompt_is_written_beyond_the_node_no_faster_than_the_wire_carries_it():
    """Two instances of two nodes: a prompt of 150,000 tokens leaves what its own does not hold over 125 MB/s."""
    alone = kv_tokens(1)
    workload = Workload(np.zeros(1), np.array([150_000]), np.array([2]))
    setup = Setup(gpus=9, rules=Rules(most_parts=1), prefills=True)
    seconds = {}
    for dispatched_to, network in product((0, 8), (125e6, 1e12)):
        loop_of = replace(setup, between_nodes=network)
        seconds[dispatched_to, network] = served_alone(workload, loop_of, dispatched_to)
    least = (150_000 - alone) * SHAPE.kv_bytes_per_token() / 125e6
    assert seconds[0, 125e6] == seconds[0, 1e12], "the node has room, and NVLink keeps up"
    assert seconds[8, 1e12] < 60 < least < seconds[8, 125e6] < 1.2 * least


def served_alone(workload, setup, instance):
    """Seconds of one request at one instance of an idle cluster that lends."""

    def build(loop):
        lenders = [lender(loop, name, setup) for name in range(setup.gpus)]
        lending_over(loop, lenders, SHAPE, 1, setup.rules, setup.between_nodes)
        return lenders[instance]

    return float(simulate(workload, build).finish[0])
