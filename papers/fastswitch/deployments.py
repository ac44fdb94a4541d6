"""The paper's two deployments: which model on which GPU, how much KV fits, and how often priorities change."""

from dataclasses import dataclass

from common.hardware.copies import CopyCost
from common.hardware.specs import GIB, GPU, gpu
from common.serving.models import ModelShape, model
from common.serving.roofline import RooflineLatency
from papers.fastswitch.async_swaps import KVLayout, measured_cost
from papers.fastswitch.server import BLOCK_TOKENS, Setup

KV_BYTES = 2  # of an element
HOST_BYTES = 60e9  # of swap space a GPU (paper)

SHEET = "NVIDIA A10 Tensor Core GPU data sheet"  # 125 TFLOP/s of dense bf16, 250 with sparsity
A10 = GPU("a10", 125e12, 600e9, 24 * GIB, 72, "pcie-4", "pcie-4", SHEET)


def _qwen(kv_heads: int) -> ModelShape:
    """Qwen1.5-32B (Qwen/Qwen1.5-32B, config.json: 40 query heads), with as many KV heads as asked for."""
    name, vocab = f"qwen-32b-{kv_heads}-kv-heads", 152064
    return ModelShape(name, 64, 5120, 40, kv_heads, 128, 27392, gated=True, vocab=vocab, tied=False)


@dataclass(frozen=True)
class Deployment:
    """A model on a GPU. kv_tokens: what the GPU's memory holds. frequency: priority updates an iteration (paper)."""

    shape: ModelShape
    gpu: GPU
    kv_tokens: int
    frequency: float

    def latency(self) -> RooflineLatency:
        return RooflineLatency(self.gpu, self.shape)

    def layout(self) -> KVLayout:
        shape = self.shape
        return KVLayout(shape.layers, BLOCK_TOKENS * shape.kv_heads * shape.head_dim * KV_BYTES)

    def setup(self, host_seconds: float, free_calls: bool) -> Setup:
        """The GPU's memory and wire. host_seconds: added to every copy call. free_calls: calls cost nothing."""

        def cost(direction: str) -> CopyCost:
            found = measured_cost(direction).with_host_seconds(host_seconds).over_pcie4()
            return found.without_calls() if free_calls else found

        layout, costs = self.layout(), (cost("d2h"), cost("h2d"))
        blocks = (self.kv_tokens // BLOCK_TOKENS, int(HOST_BYTES // layout.size(1)))
        return Setup(*blocks, layout, *costs, self.gpu.bandwidth)


# KV capacities: what nine tenths of the memory (vLLM's default) leave beside weights and 1 to 1.5 GiB of activations.
DEPLOYMENTS = {
    "llama-3-8b": Deployment(model("llama-3-8b"), A10, 42_000, 0.04),
    "qwen-32b": Deployment(_qwen(8), gpu("a100-80gb-pcie"), 42_000, 0.02),
    "qwen-32b-40": Deployment(_qwen(40), gpu("a100-80gb-pcie"), 4_400, 0.02),
}
