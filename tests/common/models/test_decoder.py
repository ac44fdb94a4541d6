"""The cached, packed model computes what the whole forward pass computes."""

import pytest
import torch

from common.models.decoder import Decoder, DecoderConfig, KVCache, attend
from common.models.paged import BlockPool

CONFIG = DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, intermediate=48, positions=64)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, torch.Generator().manual_seed(0))


def whole(model, tokens):
    """Logits after every prefix, computed from nothing each time."""
    return torch.cat([model([tokens[:n]], [KVCache(CONFIG, 64)]) for n in range(1, len(tokens) + 1)])


def test_decoding_token_by_token_equals_the_whole_pass(model):
    tokens = torch.randint(64, (20,), generator=torch.Generator().manual_seed(1))
    expected = whole(model, tokens)
    cache = KVCache(CONFIG, 64)
    steps = [model([tokens[:8]], [cache])] + [model([tokens[i : i + 1]], [cache]) for i in range(8, 20)]
    torch.testing.assert_close(torch.cat(steps), expected[7:], rtol=1e-4, atol=1e-4)


def test_prefill_in_chunks_equals_prefill_at_once(model):
    tokens = torch.randint(64, (30,), generator=torch.Generator().manual_seed(2))
    once, chunked = KVCache(CONFIG, 64), KVCache(CONFIG, 64)
    expected = model([tokens], [once])
    for piece in tokens.split(7):
        logits = model([piece], [chunked])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chunked.stored(), once.stored(), rtol=1e-4, atol=1e-4)


def test_a_ragged_batch_of_prompts_and_decodes_equals_each_alone(model):
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(64, (n,), generator=generator) for n in (3, 11, 7)]
    alone = torch.cat([model([prompt], [KVCache(CONFIG, 64)]) for prompt in prompts])
    caches = [KVCache(CONFIG, 64) for _ in prompts]
    torch.testing.assert_close(model(prompts, caches), alone, rtol=1e-4, atol=1e-4)


def test_a_cache_that_was_moved_decodes_the_same_token(model):
    prompt = torch.arange(10)
    cache = KVCache(CONFIG, 64)
    token = model([prompt], [cache]).argmax(-1)
    moved = KVCache.received(CONFIG, cache.stored(), 64)
    assert torch.equal(model([token], [moved]), model([token], [cache]))


def test_position_matters(model):
    assert not torch.allclose(
        whole(model, torch.tensor([5, 5, 5]))[0], whole(model, torch.tensor([5, 5, 5]))[2]
    )


def test_a_full_cache_is_refused(model):
    with pytest.raises(ValueError, match="do not fit behind 0 in a cache of 4"):
        model([torch.arange(5)], [KVCache(CONFIG, 4)])


def test_grouped_queries_equal_heads_with_repeated_keys_and_values():
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(6, 5, 8, generator=generator)
    keys, values = torch.randn(2, 2, 9, 8, generator=generator)
    repeated = [each.repeat_interleave(3, dim=0) for each in (keys, values)]
    torch.testing.assert_close(attend(queries, keys, values), attend(queries, *repeated))
    one = queries[:, -1:]
    torch.testing.assert_close(attend(one, keys, values), attend(queries, keys, values)[:, -1:])


def test_attention_of_a_chunk_is_softmax_over_its_past():
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(2, 3, 4, generator=generator)
    keys, values = torch.randn(2, 2, 7, 4, generator=generator)
    for row in range(3):
        seen = 7 - 3 + row + 1
        weights = torch.softmax(torch.einsum("hd,hkd->hk", queries[:, row], keys[:, :seen]) / 4**0.5, dim=-1)
        expected = torch.einsum("hk,hkd->hd", weights, values[:, :seen])
        torch.testing.assert_close(attend(queries, keys, values)[:, row], expected)


def test_a_paged_cache_gives_the_logits_of_a_contiguous_one_wherever_its_blocks_lie():
    config = DecoderConfig(vocab=64, hidden=32, layers=2, heads=4, kv_heads=2, intermediate=48, positions=64)
    model = Decoder(config, torch.Generator().manual_seed(0))
    pool = BlockPool(config, 9, block_tokens=4)
    left, right = pool.new(20), pool.new(16)
    plain = KVCache(config, 20), KVCache(config, 16)
    generator = torch.Generator().manual_seed(6)
    for lengths in [(5, 3), (1, 6), (7, 1), (1, 1)]:  # the two take blocks in turn
        new = [torch.randint(64, (n,), generator=generator) for n in lengths]
        torch.testing.assert_close(model(new, [left, right]), model(new, plain))
    assert len(left.table) == 4 and len(right.table) == 3 and len(pool.free) == 2
    with pytest.raises(RuntimeError, match="no free KV block"):
        model([torch.arange(12)], [pool.new(12)])
    left.release()
    assert len(pool.free) == 4 and left.length == 0  # the one that did not fit still holds two
