"""Real caches, kernels and engines against dense ones and torch's own attention."""

import sys

import pytest
import torch

from common.models.decoder import Decoder, DecoderConfig, KVCache, attend
from papers.vattention.allocator import allocator
from papers.vattention.block_tables import padded_in_numpy, padded_in_python
from papers.vattention.kv_cache import KVTensors, VirtualCache, layout_of
from papers.vattention.live_engine import Served, differing_share, random_requests, serve
from papers.vattention.live_overlap import excess, measured_prefill_step, measured_steps
from papers.vattention.paged_attention import Paged, blocked_attention, gathered_attention

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mmap and memfd of Linux")
CONFIG = DecoderConfig(vocab=128, hidden=128, layers=2, heads=4, intermediate=128, positions=256, kv_heads=2)


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.set_num_threads(1)
    return Decoder(CONFIG, torch.Generator().manual_seed(0))


def served(model: Decoder, **options: bool | float) -> tuple[float, Served]:
    requests = random_requests(torch.Generator().manual_seed(1), CONFIG.vocab, 9, 150, 30)
    got = serve(model, *requests, slots=3, longest=256, page_bytes=4096, budget=64, **options)  # type: ignore[arg-type]
    return differing_share(model, *requests, got), got


@pytest.mark.parametrize("sliced", [False, True])
def test_greedy_tokens_equal_those_of_dense_caches(model: Decoder, sliced: bool) -> None:
    differing, got = served(model, sliced=sliced, share=0.8)
    assert differing == 0.0
    assert not got.moved
    assert got.background_blocks > 0


def test_two_requests_on_one_physical_page_corrupt_each_other(model: Decoder) -> None:
    assert served(model, alias=True)[0] > 0.1


def test_a_finished_requests_pages_serve_the_next(model: Decoder) -> None:
    assert served(model)[1].reused > 0


@pytest.mark.parametrize("sliced", [False, True])
def test_logits_equal_a_dense_caches_to_the_last_bit_and_views_never_move(
    model: Decoder, sliced: bool
) -> None:
    layout = layout_of(CONFIG, 3, 256, 4096, sliced=sliced)
    tensors = KVTensors(layout, 3 * layout.pages_per_slot)
    with allocator(layout, 3 * layout.pages_per_slot, tensors) as memory:
        memory.alloc_reqid(5)
        slot = memory.alloc_reqid(40)
        ours, dense = VirtualCache(tensors, memory, slot), KVCache(CONFIG, 100)
        tokens = torch.arange(40)
        address = tensors.keys(1).data_ptr()
        for _ in range(30):
            lengths = [0, 0, 0]
            lengths[slot] = ours.length + len(tokens)
            memory.step_async(lengths)
            mine, theirs = model([tokens], [ours]), model([tokens], [dense])
            assert torch.equal(mine, theirs)
            tokens = mine.argmax(-1)
        assert tensors.keys(1).data_ptr() == address
        keys = tensors.keys(1)
        assert keys.shape == (3, 256, 2, 32)
        assert torch.equal(keys[slot, : ours.length].transpose(0, 1), dense.data[1, 0, :, : ours.length])


@pytest.mark.parametrize(("new", "block"), [(1, 16), (1, 256), (150, 16), (512, 64), (200, 512)])
def test_paged_attention_equals_torchs_own(new: int, block: int) -> None:
    generator = torch.Generator().manual_seed(2)
    keys, values = (torch.randn(512, 2, 32, generator=generator) for _ in range(2))
    queries = torch.randn(2, new, 32, generator=generator)
    truth = attend(queries, keys.transpose(0, 1), values.transpose(0, 1))
    paged = Paged.scatter(keys, values, block, generator)
    assert torch.equal(gathered_attention(queries, paged), truth)
    torch.testing.assert_close(blocked_attention(queries, 512, paged.tile), truth, atol=1e-5, rtol=1e-4)


def test_one_block_of_full_length_is_read_where_it_lies() -> None:
    keys = torch.randn(512, 2, 32)
    paged = Paged.scatter(keys, keys, 512, torch.Generator().manual_seed(0))
    assert paged.gather()[0].data_ptr() == paged.keys.data_ptr()
    assert paged.tile(256, 512)[0].data_ptr() == paged.keys[0, 256:].data_ptr()


def test_both_ways_to_build_a_block_table_agree() -> None:
    tables = [[5, 6, 7], [1], [], [2, 3]]
    assert torch.equal(padded_in_python(tables), padded_in_numpy(tables))
    assert padded_in_numpy(tables).tolist()[3] == [2, 3, 0]


def test_measured_runs_map_pages_and_a_kept_slot_maps_none(model: Decoder) -> None:
    prompts = [torch.arange(10), torch.arange(20)]
    steps = measured_steps(model, prompts, 40, 4096, "sync")
    assert 0 < steps.mapped.sum() < 40
    assert excess(steps) > 0
    # 25 pages of 4 KB in four tensors are mapped again where nothing was kept: a hundred calls against none
    kept, mapped = (measured_prefill_step(model, 100, 4096, deferred, rounds=5) for deferred in (True, False))
    assert 0 < kept < mapped / 2
