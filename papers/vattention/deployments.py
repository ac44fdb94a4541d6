"""The paper's three models on A100s of 80 GB: weights, KV layout, latencies."""

from dataclasses import dataclass

from common.hardware.specs import gpu
from common.serving.models import ModelShape
from common.serving.profiled import SHAPES, ProfiledLatency, profiled_latency
from papers.vattention.allocator import Layout

# 01-ai/Yi-6B, config.json
YI_6B = ModelShape("yi-6b", 32, 4096, 32, 4, 128, 11008, gated=True, vocab=64000, tied=False)
MEMORY_SHARE = (
    0.9  # of a GPU's memory, as the authors' scripts set it (artifact_asplos25, gpu_memory_utilization)
)


@dataclass(frozen=True)
class Deployment:
    """A model on `workers` GPUs under tensor parallelism."""

    shape: ModelShape
    workers: int

    def layout(self, slots: int, longest: int, page_bytes: int, *, sliced: bool = False) -> Layout:
        """KV tensors of one worker, 16-bit."""
        heads = max(1, self.shape.kv_heads // self.workers)
        return Layout(self.shape.layers, slots, longest, heads, self.shape.head_dim, 2, page_bytes, sliced)

    def kv_bytes(self, card: str = "a100-80gb-sxm") -> int:
        """Bytes for keys and values on one worker; activations are not counted."""
        return int(MEMORY_SHARE * gpu(card).memory_bytes - self.shape.weight_bytes() / self.workers)


# Workers as in the paper's Section 7 (Yi-6B on one A100, the others on two)
DEPLOYMENTS = {
    "yi-6b": Deployment(YI_6B, 1),
    "llama-3-8b": Deployment(SHAPES["llama-3-8b"], 2),
    "yi-34b": Deployment(SHAPES["yi-34b"], 2),
}


def latency_of(model: str) -> ProfiledLatency:
    """Iterations on A100s; the models of Section 7 that have a profile."""
    return profiled_latency(model, "a100", DEPLOYMENTS[model].workers)
