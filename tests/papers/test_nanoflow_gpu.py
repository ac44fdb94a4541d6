"""The layer that profile cuda times, on the CPU: nano-batches against the layer at once, and what is observed."""

from functools import partial

import pytest
import torch

from common.lab.errors import LabError
from common.lab.runtime import Observations, Runtime
from papers.nanoflow import gpu_streams
from papers.nanoflow.config import Config
from papers.nanoflow.experiment import run
from papers.nanoflow.gpu_streams import StreamedLayer

SMALL = partial(StreamedLayer, heads=4, kv_heads=2, head_dim=8, inner=48)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_nano_batches_are_the_layer_at_once(parts: int) -> None:
    layer = SMALL(torch.Generator().manual_seed(0), 10, 6)
    whole = layer.forward(1, False)
    torch.testing.assert_close(layer.forward(parts, True), whole, rtol=1e-4, atol=1e-5)
    layer.past[:, -1] = 0  # the last sequence's cache is read by its own nano-batch alone
    changed = layer.forward(parts, True)
    torch.testing.assert_close(changed[:-1], whole[:-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[-1], whole[-1], atol=1e-3)


def test_shares_and_gains_of_every_seed_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_streams, "WARM_UP", 0)
    monkeypatch.setattr(gpu_streams, "REPEATS", 1)
    seen = Observations()
    gpu_streams.observe_layer(SMALL(torch.Generator().manual_seed(0), 16, 8), seen, 0, True)
    assert set(seen.metrics) == {"gpu_difference", "gpu_gain_by_parts", "gpu_overlap_gain", "gpu_share"}
    assert max(seen.values("gpu_difference")) < 1e-4
    assert all(row.value > 0 for row in seen.rows("gpu_share"))


def test_a_gpus_streams_are_not_timed_on_a_cpu() -> None:
    with pytest.raises(LabError, match="gpu_batch"):
        run(Config(gpu_batch=16), Runtime([0]))
