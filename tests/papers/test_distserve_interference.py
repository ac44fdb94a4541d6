"""The layers that the GPU profile times, on a CPU and tiny."""

from dataclasses import replace

import torch

from common.serving.models import model
from papers.distserve.interference import Batch, Layers, slowdown

TINY = replace(
    model("llama-3-8b"), name="tiny", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96
)


def layers():
    return Layers(TINY, 2, torch.Generator().manual_seed(0))


def test_a_prompt_in_the_batch_changes_no_decoding_sequence():
    ours = layers()
    x = ours._random(3 + 20, 64)
    caches = [ours._random(2, 3, 2, 10, 16) for _ in range(2)]
    together = ours._iterate(x, caches, Batch(3, 10, 20))
    alone = ours._iterate(x[:3], caches, Batch(3, 10, 0))
    torch.testing.assert_close(together[:3], alone, rtol=1e-4, atol=1e-4)


def test_a_prompt_token_sees_no_later_one():
    ours = layers()
    x = ours._random(1 + 20, 64)
    caches = [ours._random(2, 1, 2, 10, 16) for _ in range(2)]
    whole = ours._iterate(x, caches, Batch(1, 10, 20))
    cut = ours._iterate(x[: 1 + 8], caches, Batch(1, 10, 8))
    torch.testing.assert_close(whole[1:9], cut[1:], rtol=1e-4, atol=1e-4)


def test_a_long_prompt_slows_an_iteration_down():
    assert slowdown(layers(), 2, 16, 3000) > 1.5
