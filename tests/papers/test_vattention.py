"""The allocator against its rules and invariants, real pages, and the simulations against closed forms."""

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Observations, Runtime
from common.models.decoder import Decoder, DecoderConfig
from common.serving.profiled import profiled_latency
from common.serving.workload import Lengths
from papers.vattention import fragmentation, virtual_memory
from papers.vattention.allocator import Allocator, Counted, Layout, OutOfPages, allocator
from papers.vattention.block_tables import build_seconds, padded_in_numpy, padded_in_python
from papers.vattention.config import Config
from papers.vattention.deployments import DEPLOYMENTS
from papers.vattention.driver_calls import call_seconds, gathering_ratio, published
from papers.vattention.experiment import run
from papers.vattention.fragmentation import chat_lengths, occupancy
from papers.vattention.kv_cache import KVTensors, VirtualCache
from papers.vattention.live_engine import differing_share, random_requests
from papers.vattention.live_engine import serve as serve_virtual
from papers.vattention.long_prompts import long_lengths, serve
from papers.vattention.overlap import (
    SLOTS,
    decode_series,
    overlap_at_scale,
    overlap_lengths,
    prefill_ratio,
    prefills_at_scale,
)
from papers.vattention.paged_attention import Paged, blocked_attention, gathered_attention, in_turn
from papers.vattention.virtual_memory import PagePool, Reservation, process_memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mmap and memfd of Linux")
# four tokens a page, at most eight pages a slot, two tensors
SMALL = Layout(layers=1, slots=4, longest=32, kv_heads=1, head_dim=4, element_bytes=4, page_bytes=64)


class Pages(Counted):
    """A backing that refuses to map twice or to unmap what is not mapped, and to share a block."""

    def __init__(self, layout: Layout = SMALL) -> None:
        super().__init__(layout)
        self.where: dict[tuple[int, int], int] = {}

    def map(self, slot: int, index: int, block: int) -> None:
        super().map(slot, index, block)
        assert (slot, index) not in self.where
        assert block not in self.where.values()
        self.where[slot, index] = block

    def unmap(self, slot: int, index: int) -> None:
        super().unmap(slot, index)
        del self.where[slot, index]


def test_the_papers_example_of_yi_34b_takes_twelve_terabytes_of_addresses() -> None:
    layout = DEPLOYMENTS["yi-34b"].layout(500, 200_000, 2 << 20)
    assert layout.tensors == 120
    assert layout.slot_bytes == pytest.approx(200e6, rel=0.05)  # 200,000 tokens of 4 heads, 128 wide, 2 bytes
    assert layout.virtual_bytes == pytest.approx(12e12, rel=0.05)


@pytest.mark.parametrize(
    ("heads", "page", "tokens"), [(4, 64, 64), (4, 2048, 2048), (8, 64, 32), (8, 2048, 1024)]
)
def test_tokens_of_a_page_follow_from_heads_and_page_size(heads: int, page: int, tokens: int) -> None:
    layout = Layout(32, 8, 4096, heads, 128, 2, page << 10)
    assert layout.tokens_per_page == tokens
    assert Layout(32, 8, 4096, heads, 128, 2, page << 10, sliced=True).tokens_per_page == tokens // 32


def test_a_request_gets_the_inactive_slot_with_fewest_pages_that_suffice() -> None:
    with allocator(SMALL, 32, Pages()) as memory:
        memory.step([30, 9, 5, 17])  # 8, 3, 2 and 5 pages
        for slot in (0, 1, 3):
            memory.free_reqid(slot)
        assert memory.alloc_reqid(10) == 1
        assert memory.alloc_reqid(10) == 3
        memory.free_reqid(1)
        memory.free_reqid(3)
        memory.step([0, 0, 5, 0], eager_reclaim=True)
        assert memory.alloc_reqid(10) == 0  # none suffices: the first
        memory.alloc_reqid(1)
        memory.alloc_reqid(1)
        with pytest.raises(RuntimeError, match="active"):
            memory.alloc_reqid(1)


def test_reclaiming_begins_at_the_highest_slot_and_leaves_what_is_needed() -> None:
    backing = Pages()
    with allocator(SMALL, 8, backing) as memory:
        memory.step([8, 8, 8, 8])  # two pages each
        memory.step([4, 0, 0, 4])  # surplus: 1, 2, 2, 1
        memory.step([12, 0, 0, 4])  # slot 0 needs one more: slot 3's surplus suffices
        assert [memory.mapped(slot) for slot in range(4)] == [3, 2, 2, 1]
        memory.step([20, 0, 0, 4])  # two more: all of slot 2
        assert [memory.mapped(slot) for slot in range(4)] == [5, 2, 0, 1]
        with pytest.raises(OutOfPages, match="slot 0"):
            memory.step([32, 8, 0, 4])


def test_the_thread_looks_nine_steps_ahead_and_stops_after_two_blocks() -> None:
    with allocator(SMALL, 32, Pages()) as memory:
        memory.step_async([3, 0, 0, 0])  # up to 12 tokens: pages two and three
        memory.wait()
        assert (memory.mapped(0), memory.critical_blocks, memory.background_blocks) == (3, 1, 2)
    with allocator(SMALL, 32, Pages()) as memory:
        memory.step_async(
            [4, 4, 4, 4]
        )  # the next step needs a page each: beyond the limit, but not beyond need
        memory.wait()
        assert [memory.mapped(slot) for slot in range(4)] == [2, 2, 2, 2]
    with allocator(SMALL, 32, Pages()) as memory:
        memory.step_async([2, 2, 2, 2])  # three steps ahead each needs one more: two get it
        memory.wait()
        assert sum(memory.mapped(slot) for slot in range(4)) == 4 + 2


def test_without_deferral_one_page_an_iteration_goes_back_but_never_the_next_slots() -> None:
    with allocator(SMALL, 32, Pages(), deferred=False) as memory:
        memory.step([4, 8, 8, 8])
        memory.step([0, 0, 0, 0])
        for expected in (
            [1, 2, 2, 1],
            [1, 2, 2, 0],
            [1, 2, 1, 0],
            [1, 2, 0, 0],
            [1, 1, 0, 0],
            [1, 0, 0, 0],
            [1, 0, 0, 0],
        ):
            memory.step_async([0, 0, 0, 0])
            memory.wait()
            assert [memory.mapped(slot) for slot in range(4)] == expected


def test_mapping_runs_while_the_caller_computes_and_the_next_step_waits_for_it() -> None:
    entered, go = threading.Event(), threading.Event()

    class Slow(Pages):
        def map(self, slot: int, index: int, block: int) -> None:
            if threading.current_thread() is not threading.main_thread():
                entered.set()
                assert go.wait(10)
            super().map(slot, index, block)

    with allocator(SMALL, 32, Slow()) as memory:
        memory.step_async([4, 0, 0, 0])
        assert entered.wait(10)  # the thread is inside a call, and the caller is here
        assert memory.mapped(0) == 1
        go.set()
        memory.step_async([5, 0, 0, 0])
        assert memory.mapped(0) >= 2
        assert memory.critical_blocks == 1


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_pages_are_conserved_and_every_step_maps_what_it_needs(data: st.DataObject) -> None:
    blocks = data.draw(st.integers(8, 24))
    backing = Pages()
    memory = Allocator(SMALL, blocks, backing, deferred=data.draw(st.booleans()))
    lengths = [0] * SMALL.slots
    try:
        for _ in range(data.draw(st.integers(1, 25))):
            action = data.draw(st.sampled_from(["admit", "free", "step"]))
            if action == "admit" and 0 in lengths:
                tokens = data.draw(st.integers(1, 31))
                if memory.free_blocks() >= SMALL.pages(tokens):
                    lengths[memory.alloc_reqid(tokens)] = tokens
            elif action == "free":
                slot = data.draw(st.integers(0, SMALL.slots - 1))
                if lengths[slot]:
                    memory.free_reqid(slot)
                lengths[slot] = 0
            else:
                grown = [min(length + 1, SMALL.longest) if length else 0 for length in lengths]
                if sum(map(SMALL.pages, grown)) <= blocks:
                    lengths = grown
                memory.step_async(lengths)
            memory.wait()
            held = [block for row in memory.held for block in row]
            assert sorted(held + memory.pool) == list(range(blocks))
            assert backing.where == {
                (slot, index): block
                for slot, row in enumerate(memory.held)
                for index, block in enumerate(row)
            }
            if action == "step":
                assert all(memory.mapped(slot) >= SMALL.pages(length) for slot, length in enumerate(lengths))
            assert all(memory.mapped(slot) <= SMALL.pages_per_slot for slot in range(SMALL.slots))
    finally:
        memory.close()
    assert len(memory.pool) == blocks
    assert backing.maps == backing.unmaps


@pytest.mark.parametrize("tokens", [0, -1, 33, 200])
def test_a_request_that_a_slot_cannot_hold_gets_none(tokens: int) -> None:
    with allocator(SMALL, 32, Pages()) as memory:
        with pytest.raises(ValueError, match="1 to 32 tokens"):
            memory.alloc_reqid(tokens)
        assert memory.lengths == [0, 0, 0, 0] and len(memory.pool) == 32


def test_lengths_that_are_none_are_refused_before_anything_is_mapped() -> None:
    with allocator(SMALL, 32, Pages()) as memory:
        for lengths in ([-1, 0, 0, 0], [0, 0, 0], [0, 0, 0, 33], []):
            for step in (memory.step, memory.step_async):
                with pytest.raises(ValueError, match="4 slots"):
                    step(lengths)
        assert [memory.mapped(slot) for slot in range(4)] == [0, 0, 0, 0]


def test_only_a_request_that_runs_can_end() -> None:
    with allocator(SMALL, 32, Pages()) as memory:
        slot = memory.alloc_reqid(3)
        memory.free_reqid(slot)
        for other in (slot, 7, -1):
            with pytest.raises(ValueError, match="no request"):
                memory.free_reqid(other)


@pytest.mark.parametrize("ahead", [False, True], ids=["critical", "background"])
def test_a_mapping_that_fails_loses_no_block_and_leaves_no_thread(ahead: bool) -> None:
    class Failing(Pages):
        def map(self, slot: int, index: int, block: int) -> None:
            if self.maps >= (4 if ahead else 2):  # the second page, or the third
                raise OSError("no more mappings")
            super().map(slot, index, block)

    backing = Failing()
    memory = Allocator(SMALL, 32, backing)
    if ahead:
        memory.step_async([8, 0, 0, 0])  # two pages at once, a third in the background
    else:
        with pytest.raises(OSError, match="no more mappings"):
            memory.step([8, 0, 0, 0])
        assert memory.mapped(0) == 1 and len(memory.pool) == 31
    if ahead:
        with pytest.raises(OSError, match="no more mappings"):
            memory.close()
    else:
        memory.close()
    assert sorted(memory.pool) == list(range(32)) and backing.where == {}
    assert not any(
        thread.name.startswith("kv-mapper") for thread in memory._thread._threads if thread.is_alive()
    )


def test_a_page_that_holds_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no token"):
        Layout(1, 1, 32, 8, 128, 2, 1024)
    with pytest.raises(ValueError, match="one at least"):
        Layout(1, 0, 32, 1, 4, 4, 64)


# Real pages ---------------------------------------------------------------------------------------------------------


@linux
def test_terabytes_are_reserved_and_next_to_nothing_is_resident() -> None:
    before = process_memory()
    held = [Reservation(1 << 40) for _ in range(4)]
    after = process_memory()
    assert after[0] - before[0] >= 4 << 40
    assert after[1] - before[1] < 50 << 20
    assert len(held) == 4


@linux
def test_an_access_beyond_the_mapped_part_faults() -> None:
    program = (
        "from papers.vattention.virtual_memory import PagePool, Reservation\n"
        "pool, reserved = PagePool(1, 65536), Reservation(1 << 30)\n"
        "reserved.map(0, pool, 0)\n"
        "t = reserved.tensor()\n"
        "t[:16384] = 1.0\n"
        "print(float(t[16383]), flush=True)\n"
        "print(float(t[16384]), flush=True)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGSEGV
    assert child.stdout == "1.0\n"


@linux
def test_a_page_keeps_its_contents_wherever_it_is_mapped() -> None:
    pool, reserved = PagePool(2, 65536), Reservation(4 * 65536)
    flat = reserved.tensor()
    address = flat.data_ptr()
    reserved.map(0, pool, 1)
    flat[:10] = 7.0
    reserved.unmap(0, 65536)
    reserved.map(3 * 65536, pool, 1)
    assert flat[3 * 16384 : 3 * 16384 + 10].tolist() == [7.0] * 10
    assert flat.data_ptr() == address
    with pytest.raises(ValueError, match="outside"):
        reserved.map(4 * 65536, pool, 0)


@linux
def test_what_lies_outside_is_refused_and_not_mapped() -> None:
    pool, reserved = PagePool(2, 65536), Reservation(4 * 65536)
    for odd in (lambda: Reservation(0), lambda: PagePool(-1, 65536), lambda: PagePool(1, 0)):
        with pytest.raises(ValueError):
            odd()
    for offset, page in ((1, 0), (-65536, 0), (4 * 65536, 0), (0, 2), (0, -1)):
        with pytest.raises(ValueError, match="outside"):
            reserved.map(offset, pool, page)
    for offset, size in ((0, 0), (0, -65536), (1, 4096), (0, 8 * 65536)):
        with pytest.raises(ValueError, match="outside"):
            reserved.unmap(offset, size)
    layout = Layout(1, 2, 64, 1, 64, 4, 16384)  # 64 tokens a page, one page a slot
    tensors = KVTensors(layout, 2)
    for slot, index in ((0, 1), (2, 0), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="2 slots of 1 pages"):
            tensors.map(slot, index, 0)
        with pytest.raises(ValueError, match="2 slots of 1 pages"):
            tensors.unmap(slot, index)
    with allocator(layout, 2, tensors) as memory:
        cache = VirtualCache(tensors, memory, memory.alloc_reqid(3))
        with pytest.raises(ValueError, match="no pages for 3 tokens"):  # and not a fault of the process
            cache.append(0, torch.ones(1, 3, 64), torch.ones(1, 3, 64))


@linux
def test_continuous_batching_on_virtual_tensors_computes_the_dense_caches_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Decoder(DecoderConfig(layers=2, positions=512), generator)
    requests = random_requests(generator, model.config.vocab, 5, 100, 12)
    served = serve_virtual(model, *requests, slots=2, longest=512, page_bytes=64 << 10, share=0.5)
    assert differing_share(model, *requests, served) == 0.0
    assert served.physical_bytes < served.virtual_bytes and not served.moved
    aliased = serve_virtual(
        model, *requests, slots=2, longest=512, page_bytes=64 << 10, share=0.5, alias=True
    )
    assert differing_share(model, *requests, aliased) > 0.0


def test_another_system_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_memory.sys, "platform", "darwin")
    with pytest.raises(OSError, match=r"^vattention maps memory with Linux's .* this is darwin$"):
        Reservation(1 << 20)


def test_of_two_calls_that_are_timed_neither_is_always_the_second() -> None:
    said: list[str] = []
    in_turn(lambda: said.append("a"), lambda: said.append("b"), 4)
    assert "".join(said) == "ba" + "ab" + "ba" + "ab" + "ba"
    with pytest.raises(ValueError, match="1 rounds"):
        in_turn(list, list, 1)
    # the control of the two kernel ratios: one block of the whole context leaves the same work on both sides
    keys = torch.randn(64, 2, 8)
    paged = Paged.scatter(keys, keys, 64, torch.Generator())
    assert paged.tile(16, 32)[0].data_ptr() == paged.keys[0, 16:].data_ptr()
    assert paged.gather()[0].data_ptr() == paged.keys.data_ptr()


def test_attention_over_blocks_is_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(512, 2, 16, generator=generator) for _ in range(2))
    queries = torch.randn(2, 200, 16, generator=generator)
    seen = torch.arange(512) <= torch.arange(312, 512)[:, None]
    truth = torch.nn.functional.scaled_dot_product_attention(
        queries, keys.transpose(0, 1), values.transpose(0, 1), attn_mask=seen
    )
    for block in (16, 128, 512):
        paged = Paged.scatter(keys, values, block, generator)
        torch.testing.assert_close(gathered_attention(queries, paged), truth, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(blocked_attention(queries, 512, paged.tile), truth, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="not the last"):
        blocked_attention(queries, 100, paged.tile)
    with pytest.raises(ValueError, match="whole number"):
        Paged.scatter(keys, values, 0, generator)


def test_padded_tables_are_the_same_in_python_and_numpy() -> None:
    for tables in ([[1, 2, 3], [4], []], [[7]], []):
        assert padded_in_numpy(tables).numel() == padded_in_python(tables).numel()
    assert (
        padded_in_numpy([[1, 2], [3]]).tolist()
        == padded_in_python([[1, 2], [3]]).tolist()
        == [[1, 2], [3, 0]]
    )
    with pytest.raises(ValueError, match="0 sequences"):
        build_seconds(0, 8, 16, 1)


# Simulations --------------------------------------------------------------------------------------------------------


def test_calls_cost_what_was_measured_on_the_h100() -> None:
    # map 2.538 us and set_access 31.032 us of tables/h100/virtual_memory.csv at 2 MB
    assert call_seconds(2 << 20) == pytest.approx((2.538 + 31.032) * 1e-6, rel=1e-3)


def test_inputs_are_the_papers_and_the_h100s() -> None:
    assert call_seconds(64 << 10) == 65536 / published("patched_driver_bandwidth")
    with pytest.raises(KeyError):
        published("luck")
    # 2,048 queries over 65,536 tokens: 3.594 ms gathered from blocks of 256, 3.171 ms contiguous
    assert gathering_ratio(2048, 65536) == pytest.approx(3.59376 / 3.17117, rel=1e-5)
    assert Config().kernel_ratio == pytest.approx(gathering_ratio(2048, 65536), abs=0.005)
    assert gathering_ratio(2048, 65536, 0) == 1.0


def test_synchronous_spikes_are_pages_times_calls_and_overlap_hides_them() -> None:
    layout = DEPLOYMENTS["llama-3-8b"].layout(4, 8192, 2 << 20)
    lengths = Lengths(np.array([2000, 2000, 2030, 1990]), np.full(4, 100))
    latency = profiled_latency("llama-3-8b", "a100", 2)
    added = {
        mode: decode_series(layout, 40, lengths, latency, 1e-5, 80, mode).added
        for mode in ("sync", "async", "wait")
    }
    # requests cross 2,048 tokens after 49, 49, 19 and 59 decodes: spikes of 64 tensors x 1, 2 and 1 blocks x 10 us
    expected = np.zeros(80)
    expected[[18, 58]] = 64e-5
    expected[48] = 128e-5
    assert added["sync"] == pytest.approx(expected)
    assert added["async"].max() == 0.0
    assert added["wait"].sum() == pytest.approx(added["sync"].sum())


def test_the_highest_spike_is_the_number_of_prompts_of_one_length() -> None:
    # below 2,048 tokens and with answers that pass it, requests of one length cross the page together, all others alone
    layout = DEPLOYMENTS["llama-3-8b"].layout(SLOTS, 32768, 2 << 20)
    rng = np.random.default_rng(4)
    lengths = overlap_lengths(rng, None, SLOTS)
    together = np.unique(lengths.prompt, return_counts=True)[1].max()
    latency = profiled_latency("llama-3-8b", "a100", 2)
    added = decode_series(layout, 516, lengths, latency, 1e-5, 460, "sync").added
    assert added.max() == pytest.approx(together * layout.tensors * 1e-5)


def test_a_call_costs_what_the_configuration_says_and_else_what_the_h100_took() -> None:
    found = {}
    for call_us in (0.0, 40.0):
        seen = Observations()
        overlap_at_scale(Config(requests=160, iterations=420, series=1, call_us=call_us), Runtime((0,)), seen)
        found[call_us] = seen.values("highest_spike_ms")[0] / seen.values("call_us")[0]
    assert seen.values("call_us") == [40.0]
    assert found[0.0] == pytest.approx(found[40.0])
    assert found[0.0] == pytest.approx(round(found[0.0] / 64e-3) * 64e-3)  # whole blocks of 64 tensors


def test_deferred_pages_cost_a_prefill_nothing() -> None:
    layout = DEPLOYMENTS["llama-3-8b"].layout(2, 8192, 64 << 10)
    latency = profiled_latency("llama-3-8b", "a100", 2)
    assert prefill_ratio(layout, 256, 4096, latency, 1e-5, deferred=True) == 1.0
    mapping = 4096 / 64 * 64 * 1e-5  # 64 tokens a page, 64 tensors
    compute = latency.iteration([(4096, 0)], 0, 0)[0]
    assert prefill_ratio(layout, 256, 4096, latency, 1e-5, deferred=False) == pytest.approx(
        1 + mapping / compute
    )


def test_what_deferral_saves_falls_with_the_prompt_and_only_the_claims_prompt_is_judged() -> None:
    seen = Observations()
    prefills_at_scale(Config(prefill=8192, prefills=[2048, 65536]), seen)
    short, judged, long = (
        seen.values("prefill_over_unmapped", system="eager", prompt=prompt)[0]
        for prompt in (2048, 8192, 65536)
    )
    assert short > judged > long
    assert seen.values("prefill_gain_64kb") == [judged]


def test_the_batch_is_what_whole_pages_allow() -> None:
    layout = Layout(1, 64, 4096, 1, 128, 2, 2 << 10)  # 8 tokens a page, 2 tensors
    lengths = Lengths(np.full(200, 16), np.full(200, 1))  # 17 tokens when they end: but 16 when admitted
    # 104 blocks: two a request at admission, one of 104 kept free -> 51, of which 34 can grow into a third
    assert occupancy(layout, 104 * layout.block_bytes, lengths, 1).largest == 34
    full = Lengths(np.full(200, 15), np.full(200, 1))  # ends exactly at a page
    assert occupancy(layout, 104 * layout.block_bytes, full, 1).largest == 51
    assert occupancy(layout, 104 * layout.block_bytes, full, 1).waste == 0.0


def test_a_batch_that_slots_or_requests_limit_says_nothing_of_pages() -> None:
    layout = Layout(1, 8, 4096, 1, 128, 2, 2 << 10)
    lengths = Lengths(np.full(200, 15), np.full(200, 1))
    with pytest.raises(ValueError, match="8 requests at once leave memory free"):
        occupancy(layout, 104 * layout.block_bytes, lengths, 1)
    wide = Layout(1, 64, 4096, 1, 128, 2, 2 << 10)
    with pytest.raises(ValueError, match="20 requests at once leave memory free"):
        occupancy(wide, 104 * layout.block_bytes, Lengths(lengths.prompt[:20], lengths.output[:20]), 1)
    # the shortest requests and the fewest that a configuration may ask for
    least = Config(requests=160, length_scale=0.75)
    drawn = chat_lengths(np.random.default_rng(0), 4 * least.requests, scale=least.length_scale)
    for model in ("yi-6b", "llama-3-8b"):
        deployment = DEPLOYMENTS[model]
        layout = deployment.layout(fragmentation.SLOTS, 32768, 64 << 10)
        assert occupancy(layout, deployment.kv_bytes(), drawn, 1).largest < fragmentation.SLOTS


def test_equal_kernels_serve_equally_and_a_slower_one_serves_less() -> None:
    latency = profiled_latency("llama-3-8b", "a100", 2)
    lengths = Lengths(np.full(6, 60_000), np.full(6, 50))
    same, slower = (serve(latency, ratio, 1_000_000, lengths, np.zeros(6)) for ratio in (1.0, 1.3))
    assert serve(latency, 1.0, 1_000_000, lengths, np.zeros(6)) == same
    assert 1.0 < same[0] / slower[0] < 1.3
    assert slower[1] > same[1]


@pytest.mark.parametrize(("name", "prompts", "outputs"), [("offline", 87_426, 428), ("online", 29_567, 363)])
def test_a_stand_in_is_as_long_as_the_authors_trace(
    name: str, prompts: int, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Runtime((0,))
    monkeypatch.setattr(lab, "data", lambda name: None)
    lengths = long_lengths(lab, np.random.default_rng(0), f"vattention-arxiv-{name}", 20_000)
    assert lengths.prompt.mean() == pytest.approx(prompts, rel=0.02)  # means of the traces' SOURCE.md
    assert lengths.output.mean() == pytest.approx(outputs, rel=0.05)


def test_simulated_evidence_repeats_byte_for_byte() -> None:
    config = Config(requests=160, iterations=60, long_requests=10, models=["llama-3-8b"], layers=0)
    assert run(config, Runtime((0, 1))).to_json() == run(config, Runtime((0, 1))).to_json()


@pytest.mark.parametrize(
    "odd",
    [
        "pages=[65536]",
        "iterations=0",
        "models=[]",
        "models=[yi-6b,yi-6b]",
        "models=[gpt5]",
        "prefills=[]",
        "prefills=[0]",
        "block_tokens=3",
        "kernel_ratio=9",
        "kernel_ratio=.nan",
        "length_scale=0",
        "length_scale=0.25",
        "requests=100",
        "prefill=100",
        "series=0",
        "online_load=2",
        "long_requests=1",
        "layers=-1",
        "live_iterations=1",
        "context=7",
        "rounds=0",
    ],
)
def test_an_odd_value_is_refused_in_one_line(odd: str) -> None:
    with pytest.raises(LabError) as error:
        compose(Project.current(), "vattention", "smoke", [f"paper.{odd}"])
    assert "\n" not in str(error.value) and odd.partition("=")[0] in str(error.value)


def test_a_block_that_holds_the_whole_context_is_refused() -> None:
    with pytest.raises(LabError, match="block_tokens=256 holds the whole context"):
        compose(Project.current(), "vattention", "smoke", ["paper.block_tokens=256", "paper.context=256"])
