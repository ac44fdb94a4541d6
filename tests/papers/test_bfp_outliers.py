"""K-sort, its rotation, packed rows and the statistics of keys, against closed forms and independent libraries."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.models.llama import new_llama
from common.quant.packing import pack, unpack
from common.quant.shared_exponent import decode, encode
from papers.bfp_outliers import ksort
from papers.bfp_outliers.attention_error import errors, over_queries, queries_and_keys
from papers.bfp_outliers.channel_outliers import (
    cached_keys,
    planted_factors,
    rank_correlation,
    shuffle_channels,
    variance_shares,
)
from papers.bfp_outliers.exactness import differing_codes, differing_logits, differing_scores
from papers.bfp_outliers.packed_rows import BlockRows, pack_rows, unpack_rows
from papers.bfp_outliers.settings import Setting
from papers.bfp_outliers.sorted_attention import keeps_halves

TOKENS = torch.randint(48, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model():
    """Four query heads on two KV heads of 16 channels, three layers."""
    made = new_llama(
        torch.Generator().manual_seed(0), vocab=48, hidden=64, layers=3, heads=4, kv_heads=2, spread=0.2
    )
    return made.eval().requires_grad_(False)


def orders(model):
    norms = ksort.row_norms(model)
    generator = torch.Generator().manual_seed(3)
    return {
        "original": ksort.original(norms),
        "interleaved": ksort.interleaved(norms),
        "ksort": ksort.ksort(norms),
        "pairs": ksort.pair_sort(norms),
        "adjacent": ksort.pair_sort(norms, adjacent=True),
        "random": ksort.shuffled(norms, generator),
    }


# The order ----------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_rows_with_the_bias_folded_in(model):
    weight = model.model.layers[1].self_attn.k_proj.weight.numpy()
    assert ksort.row_norms(model)[1].flatten().numpy() == pytest.approx(
        np.linalg.norm(weight, axis=1), rel=1e-6
    )
    biased = ksort.copy_of_keys_and_queries(model)
    linear = biased.model.layers[1].self_attn.k_proj
    linear.bias = torch.nn.Parameter(torch.arange(32.0), requires_grad=False)
    whole = np.concatenate([weight, np.arange(32.0)[:, None]], axis=1)
    assert ksort.row_norms(biased)[1].flatten().numpy() == pytest.approx(
        np.linalg.norm(whole, axis=1), rel=1e-6
    )


def test_sorted_rows_have_ascending_norms_and_stay_in_their_head(model):
    norms = ksort.row_norms(model)
    folded = ksort.fold(model, ksort.ksort(norms))
    found = ksort.row_norms(folded)
    assert bool((found[..., 1:] >= found[..., :-1] - 1e-3 * found[..., -1:]).all())
    assert torch.equal(found.sort(dim=-1).values, norms.sort(dim=-1).values)


def test_equal_norms_keep_their_order():
    assert ksort.ksort(torch.full((1, 1, 8), 0.3)).tolist() == [[list(range(8))]]
    assert ksort.ksort(0.3 + 1e-7 * torch.rand(1, 1, 8)).tolist() == [[list(range(8))]]


def test_pairs_stay_pairs_and_are_sorted_by_their_common_norm():
    norms = torch.tensor([[[3.0, 1.0, 0.0, 4.0, 1.0, 2.0, 5.0, 0.0]]])  # pairs: 10, 5, 25, 16
    assert ksort.pair_sort(norms).tolist() == [[[1, 0, 3, 2, 5, 4, 7, 6]]]
    assert ksort.pair_sort(norms, adjacent=True).tolist() == [[[1, 5, 0, 4, 3, 7, 2, 6]]]
    assert keeps_halves(ksort.pair_sort(norms))
    assert not keeps_halves(ksort.ksort(norms))


def test_pairs_half_a_head_apart_never_leave_a_block_of_half_a_head():
    keys = torch.randn(3, 2, 10, 16, generator=torch.Generator().manual_seed(0))
    order = ksort.pair_sort(torch.rand(3, 2, 16))
    assert differing_codes(keys, order, 4, 8) == 0.0
    assert differing_codes(keys, order, 4, 4) > 0.0


def test_sorting_minimises_the_sum_of_the_blocks_largest_over_all_orders():
    """Exhaustive: of all ways to put six magnitudes into three blocks none has smaller steps than the sorted one."""
    magnitudes = [0.1, 0.7, 0.2, 5.0, 0.8, 4.0]

    def cost(order):
        return sum(max(magnitudes[c] for c in order[i : i + 2]) for i in range(0, 6, 2))

    ours = ksort.ksort(torch.tensor([[magnitudes]]))[0, 0].tolist()
    assert cost(ours) == pytest.approx(min(cost(order) for order in itertools.permutations(range(6))))


@pytest.mark.parametrize("bad", [torch.zeros(3, 2, 16, dtype=torch.int64), torch.arange(16).expand(3, 1, 16)])
def test_what_is_no_order_is_refused(model, bad):
    with pytest.raises(ValueError, match="each head's channels once"):
        ksort.fold(model, bad)


# The same model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["original", "interleaved", "ksort", "pairs", "adjacent", "random"])
def test_a_rearranged_model_has_the_scores_and_logits_of_the_original(model, name):
    rearranged = ksort.fold(model, orders(model)[name])
    share, largest = differing_scores(model, rearranged, TOKENS)
    assert (share, largest) == (0.0, pytest.approx(0, abs=1e-5))
    assert differing_logits(model, rearranged, TOKENS) == (0.0, pytest.approx(0, abs=1e-4))


def test_queries_that_are_not_rearranged_break_it(model):
    broken = ksort.fold(model, orders(model)["ksort"], queries=False)
    assert differing_scores(model, broken, TOKENS)[0] > 0.5
    assert differing_logits(model, broken, TOKENS)[0] > 0.5


def test_cached_keys_are_the_originals_in_the_new_order(model):
    order = orders(model)["ksort"]
    keys, found = cached_keys(model, TOKENS), cached_keys(ksort.fold(model, order), TOKENS)
    places = order[:, :, None].expand(keys.shape)
    torch.testing.assert_close(found, keys.gather(-1, places), atol=1e-5, rtol=1e-5)


def test_a_rearranged_model_shares_what_it_does_not_change_and_leaves_the_original_alone(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    rearranged = ksort.fold(model, orders(model)["ksort"])
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert rearranged.lm_head.weight is model.lm_head.weight
    assert (
        rearranged.model.layers[0].self_attn.k_proj.weight
        is not model.model.layers[0].self_attn.k_proj.weight
    )


def test_planted_and_equal_pairs_change_keys_and_no_logit(model):
    factors = planted_factors(ksort.row_norms(model), 64.0, 1 / 4, torch.Generator().manual_seed(0))
    assert factors.unique().tolist() == [1.0, 64.0]
    assert (factors == 64).sum(dim=-1).unique().tolist() == [2]  # of eight pairs
    planted = ksort.scale_pairs(model, factors)
    assert cached_keys(planted, TOKENS).abs().max() > 10 * cached_keys(model, TOKENS).abs().max()
    assert differing_logits(model, planted, TOKENS)[0] == 0.0
    equal = ksort.scale_pairs(model, ksort.equal_pairs(model))
    assert differing_logits(model, equal, TOKENS)[0] == 0.0
    assert torch.equal(ksort.pair_sort(ksort.row_norms(equal)), ksort.original(ksort.row_norms(model)))


# Packed rows --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_packed_rows_are_the_bytes_of_the_shared_packing(bits, rows, eights, seed):
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (rows, 8 * eights), generator=generator).to(torch.int8)
    packed = pack_rows(codes, bits)
    assert packed.shape == (rows, bits * eights)
    assert torch.equal(packed.flatten(), pack(codes.long() % 2**bits, bits))
    assert torch.equal(unpack_rows(packed, bits), codes)
    assert torch.equal(unpack(packed.flatten(), bits, codes.numel()), codes.long().flatten() % 2**bits)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("clips", [True, False])
def test_stored_rows_decode_to_what_the_block_format_stands_for(bits, clips):
    rows = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)) * 10
    rows[0, 0] = 0
    for block in (64, 32, 16, 8):
        code = BlockRows(bits, block, clips)
        stored = code.encode(rows)
        assert torch.equal(code.decode(stored), decode(encode(rows, bits, block, clips)))
        assert sum(part.nbytes for part in stored) * 8 == rows.numel() * (bits + 8 / block)


def test_one_outlier_zeroes_its_block_and_no_other():
    row = torch.full((1, 16), 0.1)
    row[0, 3] = 6.4
    found = BlockRows(4, 8).decode(BlockRows(4, 8).encode(row))
    assert found[0, :8].tolist() == [0, 0, 0, pytest.approx(6.4, abs=0.5), 0, 0, 0, 0]
    assert found[0, 8:].tolist() == pytest.approx([0.1] * 8, rel=0.07)


@pytest.mark.parametrize(("codes", "bits"), [(torch.zeros(2, 12), 3), (torch.zeros(2, 8), 1)])
def test_rows_that_do_not_fill_bytes_are_refused(codes, bits):
    with pytest.raises(ValueError, match="eight codes at a time"):
        pack_rows(codes, bits)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([3, 4, 8]))
def test_a_block_of_a_whole_head_is_the_same_in_any_order(seed, bits):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, 2, 6, 16, generator=generator) * torch.randn(16, generator=generator).exp()
    order = ksort.shuffled(torch.empty(1, 2, 16), generator)
    assert differing_codes(keys, order, bits, 16) == 0.0


# The statistics of keys ---------------------------------------------------------------------------------------------


def test_variance_lies_where_it_was_put():
    channels = torch.tensor([1.0, 3.0, 9.0]).expand(4, 3)
    assert variance_shares(channels) == pytest.approx((1, 0, 0))
    assert variance_shares(channels.T) == pytest.approx((0, 1, 0))
    both = torch.tensor([[1.0, 4.0], [2.0, 8.0]])  # logs: channels 2 ln 2 apart, tokens ln 2: squares 4 to 1
    assert variance_shares(both) == pytest.approx((0.8, 0.2, 0), abs=1e-9)
    neither = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert variance_shares(neither) == pytest.approx((0, 0, 1))


def test_shuffled_channels_leave_nothing_between_channels():
    sizes = torch.linspace(-3, 3, 64).exp()
    keys = sizes * torch.ones(500, 64)
    generator = torch.Generator().manual_seed(0)
    shuffled = shuffle_channels(keys, generator)
    assert torch.equal(shuffled.sort(dim=-1).values, keys)
    assert variance_shares(keys).channel == pytest.approx(1)
    assert variance_shares(shuffled).channel < 0.01


def test_turned_keys_are_those_that_a_cache_holds(model):
    queries, keys = queries_and_keys(model, TOKENS)
    assert queries.shape == (3, 2, 4, 24, 16)
    torch.testing.assert_close(keys.transpose(1, 2).flatten(2, 3), cached_keys(model, TOKENS))
    groups = (
        queries[1, :, 2:].abs().mean(dim=(0, 1, 2))
    )  # the second KV head serves query heads two and three
    expected = keys[1, :, 1].abs().mean(dim=(0, 1)) / groups
    torch.testing.assert_close(over_queries(queries, keys)[1, 1], expected)


def test_attention_diverges_with_coarse_keys_and_not_with_order_where_a_block_is_a_head(model):
    queries, keys = queries_and_keys(model, TOKENS)
    found = {
        (name, block): errors(queries, keys, order, BlockRows(4, block))
        for name, order in orders(model).items()
        for block in (16, 8)
    }
    assert found["ksort", 16] == pytest.approx(found["original", 16], rel=1e-5)
    assert found["ksort", 8].keys != pytest.approx(found["original", 8].keys, rel=1e-5)
    fine = errors(queries, keys, orders(model)["original"], BlockRows(8, 16))
    assert 0 <= fine.attention < found["original", 16].attention
    assert fine.keys < found["original", 16].keys / 100  # four bits more: a step sixteen times as small


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    a, b = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    found = rank_correlation(a, a + b)
    for row in range(3):
        assert float(found[row]) == pytest.approx(spearmanr(a[row], (a + b)[row]).statistic, abs=1e-12)


def test_an_unknown_order_or_format_is_named():
    with pytest.raises(ValueError, match="ksort"):
        Setting(order="qsort")
    with pytest.raises(ValueError, match="hadamard"):
        Setting(keys="int4")
    assert Setting(bits=4, block=32).bits_an_element == 4.25
    assert math.isclose(Setting(bits=8, block=32).bits_an_element / 4.25, 1.9411764705882353)
