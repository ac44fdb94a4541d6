"""The layer that profile cuda times, on the CPU: chunks against one prefill, and what the experiment observes."""

from dataclasses import replace

import pytest
import torch

from common.lab.runtime import Runtime
from common.serving.models import MODELS, model
from papers.sarathi_serve import gpu_hybrid_batches
from papers.sarathi_serve.config import Config
from papers.sarathi_serve.experiment import run
from papers.sarathi_serve.gpu_hybrid_batches import Layer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little of everything, so that a CPU is done soon."""
    monkeypatch.setattr(gpu_hybrid_batches, "WARM_UP", 0)
    monkeypatch.setattr(gpu_hybrid_batches, "REPEATS", 1)
    monkeypatch.setitem(MODELS, "llama-2-7b", SMALL)
    monkeypatch.setattr("papers.sarathi_serve.experiment.GPU_CONTEXT", 8)


SMALL = replace(model("llama-2-7b"), hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48)


def test_chunks_beside_decodes_are_the_prefill_at_once() -> None:
    layer = Layer(SMALL, 3, 8, 20, torch.Generator().manual_seed(0))
    whole = layer.iteration(True, 20)
    parts = [layer.iteration(True, size, start) for size, start in ((7, 0), (8, 7), (5, 15))]
    torch.testing.assert_close(torch.cat([part[3:] for part in parts]), whole[3:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts[0][:3], layer.iteration(True, 0), rtol=1e-4, atol=1e-4)
    layer.past.zero_()  # a chunk that forgets what came before is something else
    assert not torch.allclose(layer.iteration(False, 5, 15), whole[18:], atol=1e-2)


def test_profile_cuda_observes_its_two_metrics_and_no_simulation() -> None:
    seen = run(Config(gpu_prompt=32, chunk=16), Runtime([0]))
    assert {"gpu_stall_avoided", "gpu_chunk_overhead", "gpu_iteration"} == set(seen.metrics)
    assert all(row.value > 0 for row in seen)
