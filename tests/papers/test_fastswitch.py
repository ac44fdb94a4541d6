"""The server of FastSwitch against the step-by-step engine, real contents of its blocks, and cases done by hand."""

from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.hardware.copies import CopyCost, h100
from common.lab.runtime import Runtime
from common.serving.engine import simulate
from common.serving.latency import FittedLatency
from common.serving.loop import ARRIVAL
from common.serving.workload import Lengths, Workload
from papers.fastswitch import async_swaps
from papers.fastswitch.async_swaps import AdaptiveChoice, InFlight, KVLayout, Stream, Transfer, measured_cost
from papers.fastswitch.block_groups import BLOCK_TOKENS, BlockGroups, Piece, Run
from papers.fastswitch.config import Config, check
from papers.fastswitch.conversations import Conversations, draw_conversations
from papers.fastswitch.deployments import SYSTEMS, Setup
from papers.fastswitch.evaluation import Job, switch_gain, tail
from papers.fastswitch.experiment import run
from papers.fastswitch.kv_reuse import HostCopies
from papers.fastswitch.ledger import Swap, granularity, saving
from papers.fastswitch.live_server import LiveRun, RealTransfer
from papers.fastswitch.priorities import PATTERNS, markov_priorities, random_priorities
from papers.fastswitch.priority_switching import PrioritySwitching
from papers.fastswitch.server import SwitchingInstance, TabledGroup
from tests.common.serving.reference import SteppedGroup
from tests.common.serving.test_engine import assert_same
from tests.papers.test_fastswitch_blocks import audit

# an iteration of decode takes one second, a prompt two seconds and one a token; no host work
PLAIN = FittedLatency((2.0, 1.0, 0.0), (1.0, 0.0, 0.0), (1.0, 0.0, 0.0), 10**9, 1, 0.0, 0.0, 0.0)
UNEVEN = FittedLatency((0.31, 0.013, 1e-5), (0.11, 1e-4, 0.003), (0.11, 1e-4, 0.003), 10**9, 1, 0.0, 0.0, 0.0)
SETUP = Setup(
    kv_blocks=14,
    host_blocks=60,
    layout=KVLayout(1, 1024),
    to_host=CopyCost(16384.0, 0.0, 0.05, 0.01),
    to_device=CopyCost(16384.0, 0.02, 0.04, 0.01),
    memory_bandwidth=1e6,
    target=4,
)


class SteppedTabledGroup(SteppedGroup):
    """Takes each block when its member's own count says so."""

    def __init__(self, block_tokens, take):
        super().__init__(block_tokens, grows=True)
        self.take = take

    def advance(self, steps):
        assert steps == 1
        for member in list(self.members):
            if member.context % self.block_tokens == 0:
                self.take(member)
        return super().advance(1)


class SteppedSwitching(SwitchingInstance):
    """Never coalesces."""

    def new_group(self):
        return SteppedTabledGroup(BLOCK_TOKENS, self.grow)

    def _coalesces(self, slot, plan):
        return False


class Audited(SwitchingInstance):
    """Carries real contents: every token of a conversation is a number of its own, and moves when a copy ends."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gpu = np.full((self.setup.kv_blocks, BLOCK_TOKENS), -1)
        self.cpu = np.full((self.setup.host_blocks, BLOCK_TOKENS), -1)
        self.brought = {}  # conversation: its first tokens that came from the host
        self.cpu_then = {}  # what a synchronous copy read
        self.checked = 0

    def truth(self, key, tokens):
        return 10**6 * key + np.arange(tokens)

    def settle(self, slot, now):
        super().settle(slot, now)
        if now == self.loop.now:
            assert self.memory.free == self.tables.free, "engine and tables disagree"
            if not self.copying and isinstance(self.setup.groups, bool) and self.setup.groups:
                audit(self.tables)
                audit(self.host.tables)

    def bring_in(self, slot, sequence):
        self.brought[self.key(sequence)] = 0
        super().bring_in(slot, sequence)
        key, tokens = self.key(sequence), sequence.context
        self.brought[key] = tokens
        if tokens:
            moved, place = (
                self.last_moved,
                [b for run in self.tables.runs(key) for b in range(run.start, run.start + run.length)],
            )
            waits = self.loop.now + slot.copy_seconds if self.setup.asynchronous else None
            self.after(
                getattr(self.arriving.get(sequence), "end", waits),
                lambda _: self.arrive(key, tokens, moved, place),
            )

    def arrive(self, key, tokens, moved, place):
        for source, target, length in moved:
            self.gpu[target : target + length] = (
                self.cpu_then[key][source : source + length]
                if key in self.cpu_then
                else self.cpu[source : source + length]
            )
        self.cpu_then.pop(key, None)
        found = self.gpu[place].ravel()[:tokens]
        np.testing.assert_array_equal(found, self.truth(key, tokens), "stale KV came back")
        self.checked += 1

    def copied(self, key, moved, out):
        self.last_moved = moved
        if not out:
            if not self.setup.asynchronous:  # read at once: the host's blocks are free when this call returns
                self.cpu_then[key] = self.cpu.copy()
            return
        self.compute(key)
        if not self.setup.asynchronous:
            self.leave(moved)

    def _copy_out(self, slot, key, tokens, turn_ended):
        before = {id(one) for one in self.leaving._leaving}
        self.last_moved = []
        done = super()._copy_out(slot, key, tokens, turn_ended)
        if done and self.setup.asynchronous:
            for one in self.leaving._leaving:  # each group is read as late as its own copy ends
                if id(one) not in before:
                    start, length = one.run
                    moved = [p for p in self.last_moved if start <= p.source < start + length]
                    self.after(one.transfer.end, lambda _, moved=moved: self.leave(moved))
        return done

    def leave(self, moved):
        for source, target, length in moved:
            self.cpu[target : target + length] = self.gpu[source : source + length]

    def compute(self, key):
        """Write what the model computed since the conversation's KV was brought in."""
        place = [b for run in self.tables.runs(key) for b in range(run.start, run.start + run.length)]
        flat = self.gpu[place].reshape(-1)
        known = self.brought.get(key, 0)
        flat[known:] = self.truth(key, len(flat))[known:]
        self.gpu[place] = flat.reshape(-1, BLOCK_TOKENS)

    def after(self, end, call):
        if end is None or end <= self.loop.now:
            call(None)
        else:
            self.loop.at(end, ARRIVAL, call)


def conversations(seed, count=10, rate=0.3, mean_turns=3.0, longest=120, think=8.0):
    rng = np.random.default_rng(seed)
    turns = Lengths(rng.integers(1, 40, 400), rng.integers(1, 40, 400))
    return draw_conversations(rng, count, rate, turns, longest, mean_turns, think)


def serve(instance_type, setup, talks, frequency=0.2, pattern="random", latency=UNEVEN, seed=0):
    built = []

    def build(loop):
        policy = PrioritySwitching(PATTERNS[pattern](np.random.default_rng(seed), talks.count), frequency)
        built.append(instance_type(loop, latency, setup, talks, policy))
        return built[0]

    trace = simulate(talks.workload, build, talks.clients())
    return trace, built[0]


def with_system(name, **changes):
    return replace(SETUP, **SYSTEMS[name], **changes)


@pytest.mark.parametrize("system", [*SYSTEMS, "wait for all"])
@given(
    seed=st.integers(0, 10**6),
    frequency=st.sampled_from([0.0, 0.1, 0.34, 1.0]),
    pattern=st.sampled_from(list(PATTERNS)),
    host_blocks=st.sampled_from([8, 20, 60]),
)
@settings(max_examples=20, deadline=None)
def test_coalesced_serving_equals_stepped_serving(system, seed, frequency, pattern, host_blocks):
    setup = with_system("FastSwitch", wait_for_all=True) if system == "wait for all" else with_system(system)
    setup = replace(setup, host_blocks=host_blocks)
    talks = conversations(seed)
    one, first = serve(SwitchingInstance, setup, talks, frequency, pattern)
    other, second = serve(SteppedSwitching, setup, talks, frequency, pattern)
    assert_same(one, other)
    assert first.ledger.swaps == second.ledger.swaps, "the block tables differ"
    assert first.iterations == second.iterations
    for instance in (first, second):
        assert instance.memory.free == instance.memory.capacity == instance.tables.free
        assert instance.host.tables.free == instance.setup.host_blocks
        assert not instance.copying


@pytest.mark.parametrize("system", SYSTEMS)
@given(
    seed=st.integers(0, 10**6),
    frequency=st.sampled_from([0.1, 0.5]),
    host_blocks=st.sampled_from([8, 16, 60]),
)
@settings(max_examples=15, deadline=None)
def test_no_swap_ever_brings_stale_kv_back(system, seed, frequency, host_blocks):
    serve(Audited, replace(with_system(system), host_blocks=host_blocks), conversations(seed), frequency)


def test_the_contents_are_really_checked_and_a_wrong_increment_is_noticed(monkeypatch):
    _, audited = serve(Audited, with_system("FastSwitch"), conversations(1))
    assert audited.checked > 5
    honest = HostCopies.make_room

    def too_little(self, key, tokens):
        first = honest(self, key, tokens)
        return first + 1 if first else first

    monkeypatch.setattr(HostCopies, "make_room", too_little)
    with pytest.raises(AssertionError, match="stale"):
        for seed in range(20):
            serve(Audited, with_system("FastSwitch"), conversations(seed))


def test_blocks_under_copy_are_nobodys_until_their_own_copy_ends():
    flight = InFlight()
    for end, run_ in ((1.0, Run(8, 2)), (2.0, Run(20, 5)), (3.0, Run(0, 4))):
        flight.add(Transfer(end), run_)
    assert flight.blocks == 11
    ends = {blocks: flight.until(blocks).end for blocks in (2, 3, 11)}
    assert ends == {2: 1.0, 3: 2.0, 11: 3.0}
    assert flight.until(12) is None
    assert flight.ended(0.5) == [] and flight.ended(2.0) == [Run(8, 2), Run(20, 5)]
    assert flight.blocks == 4 and flight.until(4).end == 3.0


def test_a_stream_carries_one_swap_after_another_and_its_groups_in_order():
    stream = Stream(CopyCost(100.0, 0.0, 1.0, 0.5), KVLayout(1, 50))
    # 2 calls and 100 bytes a block: 1 s of wire, 2 s of calls, 0.5 s once a swap
    assert stream.send(10.0, [[Piece(0, 0, 1)], [Piece(5, 1, 1)]]) == [13.5, 16.5]
    assert stream.send(11.0, [[Piece(0, 0, 1)]]) == [20.0]


def test_swap_ins_are_waited_for_where_few_run_and_run_beside_many():
    assert not AdaptiveChoice().beside(0, 1.0, 0.03)
    assert not AdaptiveChoice().beside(1, 0.02, 0.03), (
        "waiting costs one request less than joining late costs one"
    )
    assert AdaptiveChoice().beside(20, 0.02, 0.03)
    after_small = AdaptiveChoice()
    for _ in range(8):
        after_small.note(0, 0.001)
    assert not after_small.beside(3, 0.001, 0.03), "the history of idle batches still counts"


def one_request(prompt, output):
    return Conversations(
        Workload(np.array([0.0]), np.array([prompt]), np.array([output])),
        np.array([0]), np.array([0]), np.array([0.0]),
    )  # fmt: skip


def test_one_request_alone_takes_what_its_iterations_take():
    trace, instance = serve(SwitchingInstance, SETUP, one_request(20, 5), latency=PLAIN)
    assert trace.first_token.tolist() == [2 + 20]
    assert trace.finish.tolist() == [2 + 20 + 4]
    assert instance.ledger.swaps == [], "its only turn is its last: nobody needs its KV"
    seconds, stall = instance.ledger.iterations()
    assert sorted(seconds.tolist()) == [1, 1, 1, 1, 22] and stall.sum() == 0


def test_a_synchronous_swap_stops_everybody_for_as_long_as_its_copies_take():
    talks = Conversations(
        Workload(np.array([0.0, 0.0, 0.0]), np.array([32, 16, 16]), np.array([1, 2, 30])),
        np.array([0, 0, 1]),
        np.array([0, 33, 0]),
        np.array([0.0, 1000.0, 0.0]),
    )
    setup = replace(with_system("vLLM"), to_host=CopyCost(1e12, 0.0, 0.25, 0.0))
    trace, instance = serve(SwitchingInstance, setup, talks, frequency=0.0, latency=PLAIN)
    # a prompt of 2 + 32 s; its answer leaves: 2 blocks x 2 calls x 0.25 s; then a prompt of 2 + 16 s, then decoding
    assert trace.first_token[0] == 34
    assert trace.token_times[2][:3] == pytest.approx([34 + 1 + 18, 34 + 1 + 19, 34 + 1 + 20])
    seconds, stall = instance.ledger.iterations()
    assert stall.max() == pytest.approx(1.0) and seconds[stall.argmax()] == pytest.approx(19.0)
    assert [(swap.out, swap.blocks, swap.pieces) for swap in instance.ledger.swaps][:1] == [(True, 2, 2)]


def test_with_reuse_an_undisturbed_copy_is_copied_out_once():
    talks = conversations(3, count=8)
    _, fresh = serve(SwitchingInstance, with_system("+DBG", host_blocks=200), talks)
    _, kept = serve(SwitchingInstance, with_system("+DBG+Reuse", host_blocks=200), talks)
    assert saving(fresh.ledger.swaps) == 0
    assert saving(kept.ledger.swaps) > 0.2
    assert all(swap.blocks <= swap.held for swap in kept.ledger.swaps)


def test_without_updates_and_later_turns_nothing_is_copied_where_memory_lasts():
    talks = conversations(4, mean_turns=1.0, rate=0.05)
    for system in SYSTEMS:
        trace, instance = serve(SwitchingInstance, with_system(system, kv_blocks=500), talks, 0.0)
        assert instance.ledger.swaps == [] and not trace.preemptions.any()


def test_groups_of_one_block_copy_a_block_at_a_time():
    talks = conversations(5)
    _, instance = serve(SwitchingInstance, with_system("FastSwitch", longest_group=1), talks)
    assert granularity(instance.ledger.swaps) == 1
    assert switch_gain(instance.ledger.swaps, 32 << 10) == 1


def test_a_conversation_too_long_for_the_gpu_is_refused():
    with pytest.raises(ValueError, match="never fits"):
        serve(SwitchingInstance, SETUP, one_request(200, 100))


def test_the_gain_of_fewer_calls_is_that_of_the_measured_copies():
    # tables/h100/copies.csv: 64 MiB in 2,048 calls 6.52 ms, in 64 calls 1.40 ms (to the device)
    swap = Swap(out=False, blocks=32, pieces=1, held=32)
    assert switch_gain([swap], 32 << 10) == pytest.approx(6.518 / 1.398, rel=0.03)
    assert switch_gain([], 32 << 10) == 1


def test_tail_is_an_order_statistic():
    values = np.arange(1.0, 1001.0)
    assert tail(values, 0.95) == 950 and tail(values, 0.999) == 999


def test_conversations_know_their_past_and_end_at_the_limit():
    talks = conversations(7, count=200, longest=100)
    tokens = talks.workload.prompt + talks.workload.output
    for session in range(0, talks.count, 17):
        mine = talks.session == session
        np.testing.assert_array_equal(talks.history[mine], np.cumsum(tokens[mine]) - tokens[mine])
        assert tokens[mine].sum() <= 100
    assert talks.last.sum() == len(set(talks.session.tolist()))
    single = conversations(7, count=300, mean_turns=1.0)
    assert not single.history.any() and single.last.all()


@pytest.mark.parametrize("odd", [
    {"rate": float("nan")}, {"rate": float("inf")}, {"rate": 0.0}, {"count": 0}, {"mean_turns": 0.5},
    {"think": float("nan")}, {"think": -1.0},
])  # fmt: skip
def test_conversations_that_cannot_be_are_refused(odd):
    with pytest.raises(ValueError, match="need one conversation"):
        conversations(0, **odd)


def test_random_priorities_are_drawn_anew_and_markov_ones_mostly_stay():
    drawn = random_priorities(np.random.default_rng(0), 5000)
    chain = markov_priorities(np.random.default_rng(0), 5000)
    assert np.mean(drawn(3) == drawn(4)) == 0
    # a fresh Zipf(2) draw repeats the value before with probability sum of p(k)^2 = zeta(4) / zeta(2)^2 = 0.4
    assert np.mean(chain(3) == chain(4)) == pytest.approx(0.8 + 0.2 * 0.4, abs=0.02)
    assert np.array_equal(chain(1), chain(1))
    again = markov_priorities(np.random.default_rng(0), 5000)
    assert np.array_equal(again(4), chain(4)), "an update must not depend on who asked before"


SMALL = Config(
    conversations=15, rate=1.0, patterns=["random"], sweep=[], copied_tokens=0, answered_turns=0,
    kv_tokens=8200,
)  # fmt: skip


def test_the_same_config_and_seeds_give_the_same_bytes():
    assert (
        run(SMALL, Runtime((0, 1), workers=1)).to_json() == run(SMALL, Runtime((0, 1), workers=1)).to_json()
    )


def test_a_control_runs_only_the_systems_that_its_claims_read():
    seen = run(SMALL, Runtime((0,), workers=1, wanted=["reuse_saving"]))
    assert {row.at["system"] for row in seen.rows("tail")} == {"+DBG+Reuse"}
    assert len(seen.values("reuse_saving")) == 1


@pytest.mark.parametrize(
    "switch, metric, nothing",
    [
        ({"longest_group": 1}, "switch_gain_32kib", 1.0),
        ({"longest_group": 1}, "granularity", 1.0),
        ({"keep_copies": False}, "reuse_saving", 0.0),
    ],
)
def test_a_switch_takes_all_of_its_effect_away(switch, metric, nothing):
    with_it = run(SMALL, Runtime((0,), workers=1, wanted=[metric])).values(metric)[0]
    without = run(replace(SMALL, **switch), Runtime((0,), workers=1, wanted=[metric])).values(metric)[0]
    assert without == nothing and with_it > nothing + 0.1


def test_the_ladder_counts_blocks_alike(seed=3):
    """All systems admit by the same count, so that the first preemption comes at the same moment in all."""
    talks = conversations(seed)
    assert isinstance(serve(SwitchingInstance, SETUP, talks)[1].slots[0].group, TabledGroup)
    free = [
        serve(SwitchingInstance, replace(SETUP, **system), talks)[1].tables.free
        for system in SYSTEMS.values()
    ]
    assert free == [SETUP.kv_blocks] * len(SYSTEMS)


@pytest.mark.parametrize(
    "field, odd",
    [
        ("frequency", {"frequency": 0.7}), ("sweep", {"sweep": [0.7]}), ("copied_tokens", {"copied_tokens": 1}),
        ("answered_turns", {"answered_turns": 0.5}), ("kv_tokens", {"kv_tokens": 100}),
        ("host_seconds", {"free_calls": True, "host_seconds": 1e-6}), ("trust_copies", {"trust_copies": True}),
        ("instant_copies", {"instant_copies": True}), ("copy_worker", {"copy_worker": False}),
        ("kept_tokens", {"keep_copies": False, "kept_tokens": 64}),
        ("kept_priority", {"kept_priority": 0.5}),
    ],
)  # fmt: skip
def test_what_cannot_run_or_would_be_ignored_is_refused_in_one_line_that_names_the_field(field, odd):
    check(SMALL)
    with pytest.raises(ValueError, match=f"^[^\\n]*{field}[^\\n]*$"):
        check(replace(SMALL, **odd))


def test_time_beside_is_what_copies_and_batches_have_in_common():
    copy = RealTransfer()
    copy.began, copy.ended = 1.5, 4.0  # half a second of the first batch, one of the second
    run_ = LiveRun(None, {}, [copy], [(0.0, 2.0), (3.0, 6.0)], [])
    assert run_.copied_beside == pytest.approx(1.5 / 5)
    assert LiveRun(None, {}, [], [], []).copied_beside == 0


def test_arms_share_a_run_exactly_where_nothing_that_decides_it_differs():
    def key(system, pattern="random", **changes):
        config = replace(SMALL, **changes)
        return Job(config, system, pattern, 0.04, 0, conversations(0), np.random.default_rng(0)).decided_by

    off = {"longest_group": 2, "kept_tokens": 0, "wait_for_all": True}
    assert key("vLLM", **off) == key("vLLM") and key("FastSwitch", **off) != key("FastSwitch")
    assert key("+DBG+Reuse", keep_copies=False) == key("+DBG"), "without kept copies nothing is left of reuse"
    assert key("vLLM", kept_priority=0.5) == key("vLLM"), "Markov's alone"
    assert key("vLLM", "markov", kept_priority=0.5) != key("vLLM", "markov")
    for changed in ({"rate": 0.7}, {"conversations": 20}, {"host_seconds": 1e-6}, {"free_calls": True}):
        assert key("vLLM", **changed) != key("vLLM")


@pytest.mark.parametrize("direction", ["d2h", "h2d"])
def test_the_cost_of_a_copy_holds_no_digit_that_depends_on_the_processor(direction, monkeypatch):
    """Least squares end in other bits with 256-bit than with 512-bit registers; both must give one cost."""
    cost = measured_cost(direction)
    for error in (-1e-14, 1e-14):
        other = CopyCost(*(one * (1 + error) for one in astuple(h100(direction))))
        monkeypatch.setattr(async_swaps, "h100", lambda _, other=other: other)
        assert measured_cost.__wrapped__(direction) == cost


def test_a_read_copy_stays_valid_up_to_its_limit():
    host = HostCopies(BlockGroups(100), lambda key: 0.0, kept_tokens=64)
    host.make_room("a", 200)
    host.written("a", 200, needed=True)
    host.read("a")
    assert host.valid("a") == 64


@pytest.mark.parametrize("kept, exponent", [(-0.1, 2.0), (1.1, 2.0), (0.5, 1.0), (0.5, float("nan"))])
def test_markov_refuses_what_is_no_chain(kept, exponent):
    with pytest.raises(ValueError):
        markov_priorities(np.random.default_rng(0), 3, kept, exponent)
