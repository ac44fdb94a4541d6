"""The layer that profile cuda times, on the CPU: nano-batches against the layer at once, and what is observed."""

from functools import partial

import pytest
import torch

from common.lab.errors import LabError
from common.lab.runtime import Observations, Runtime
from papers.nanoflow import gpu_streams
from papers.nanoflow.config import Config
from papers.nanoflow.experiment import run
from papers.nanoflow.gpu_streams import forward
from papers.nanoflow.numerics import RealLayer

SMALL = partial(RealLayer, heads=4, kv_heads=2, head_dim=8, inner=48)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_nano_batches_are_the_layer_at_once(parts: int) -> None:
    layer = SMALL(torch.Generator().manual_seed(0), 10, 6)
    whole = forward(layer, 1)
    torch.testing.assert_close(forward(layer, parts), whole, rtol=1e-4, atol=1e-5)
    layer.cache[:, -1] = 0  # the last sequence's cache is read by its own nano-batch alone
    changed = forward(layer, parts)
    torch.testing.assert_close(changed[:-1], whole[:-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[-1], whole[-1], atol=1e-3)


def test_the_gain_of_every_seed_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_streams, "WARM_UP", 0)
    monkeypatch.setattr(gpu_streams, "REPEATS", 1)
    seen = Observations()
    gpu_streams.observe_layer(SMALL(torch.Generator().manual_seed(0), 16, 8), seen, 0)
    assert set(seen.metrics) == {"gpu_difference", "gpu_overlap_gain"}
    assert max(seen.values("gpu_difference")) < 1e-4
    assert min(seen.values("gpu_overlap_gain")) > 0


def test_a_gpus_streams_are_not_timed_on_a_cpu() -> None:
    with pytest.raises(LabError, match="gpu_batch"):
        run(Config(gpu_batch=16), Runtime([0]))
