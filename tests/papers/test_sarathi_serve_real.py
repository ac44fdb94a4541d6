"""Chunked prefill on a real decoder is exact, and a real engine gives the same answers under every policy."""

import numpy as np
import pytest
import torch

from common.models.decoder import Decoder, DecoderConfig
from papers.sarathi_serve import mini_engine
from papers.sarathi_serve.chunking import SMALL, TINY, chunking_error, prefill
from papers.sarathi_serve.config import Config


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(TINY, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunk", [2, 17, 64, 199, 200, 1000])
def test_chunks_of_any_size_compute_the_same(model: Decoder, chunk: int) -> None:
    tokens = torch.randint(TINY.vocab, (200,), generator=torch.Generator().manual_seed(1))
    assert chunking_error(model, tokens, chunk) < 1e-4


def test_grouped_queries_too() -> None:
    config = DecoderConfig(
        vocab=128, hidden=64, layers=2, heads=4, intermediate=96, positions=256, kv_heads=2
    )
    grouped = Decoder(config, torch.Generator().manual_seed(2))
    assert chunking_error(grouped, torch.arange(120), 50) < 1e-4


def test_chunks_that_forget_the_past_compute_something_else(model: Decoder) -> None:
    tokens = torch.randint(TINY.vocab, (200,), generator=torch.Generator().manual_seed(1))
    assert chunking_error(model, tokens, 64, keeps_past=False) > 0.1
    assert chunking_error(model, tokens, 200, keeps_past=False) < 1e-4  # one chunk has nothing to forget


def test_prefill_stores_every_token_of_every_layer(model: Decoder) -> None:
    logits, stored = prefill(model, torch.arange(50), 16)
    assert logits.shape == (TINY.vocab,)
    assert stored.shape == (TINY.layers, 2, TINY.heads, 50, TINY.head_dim)
    assert float(stored.abs().sum(dim=(0, 1, 2, 4)).min()) > 0


@pytest.mark.parametrize(("shape", "chunk"), [((0,), 4), ((2, 3), 4), ((8,), 0)])
def test_prompts_and_chunks_of_nothing_are_refused(
    model: Decoder, shape: tuple[int, ...], chunk: int
) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        prefill(model, torch.zeros(shape, dtype=torch.int64), chunk)


def test_the_default_live_run_has_ten_gaps_beyond_its_99th_percentile() -> None:
    for seed in range(5):
        drawn = mini_engine.draw_requests(
            np.random.default_rng(seed), Config().live_requests, SMALL.vocab, 1.0
        )
        assert sum(drawn.outputs) - len(drawn.outputs) >= 1000


def test_every_policy_gives_the_same_answers(model: Decoder) -> None:
    requests = mini_engine.draw_requests(np.random.default_rng(0), 5, TINY.vocab, rate=50.0)
    runs = {policy: mini_engine.run_policy(model, requests, policy) for policy in mini_engine.POLICIES}
    assert all(run.tokens == runs["vllm"].tokens for run in runs.values())
    assert [len(answer) for answer in runs["sarathi"].tokens] == requests.outputs
    sarathi = runs["sarathi"].iterations
    assert max(sum(new for new, _ in one.chunks) + one.decodes for one in sarathi) <= mini_engine.BUDGET
    assert max(sum(new for new, _ in one.chunks) for one in runs["vllm"].iterations) > mini_engine.BUDGET
