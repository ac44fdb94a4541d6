"""The paper's two deployments (which model on which GPU, and how much KV fits), and what is set up on one."""

from dataclasses import dataclass
from typing import Any

from common.hardware.copies import CopyCost
from common.hardware.specs import GIB, GPU, gpu
from common.serving.models import ModelShape, model
from common.serving.roofline import RooflineLatency
from papers.fastswitch.async_swaps import KVLayout, measured_cost
from papers.fastswitch.block_groups import (
    BLOCK_TOKENS,
    INITIAL_TARGET,
    BlockGroups,
    BlockTables,
    SingleBlocks,
)

KV_BYTES = 2  # of an element
ALL_TOKENS = 1_000_000  # more than any conversation has
HOST_BYTES = 60e9  # of swap space a GPU (paper)

SHEET = "NVIDIA A10 Tensor Core GPU data sheet"  # 125 TFLOP/s of dense bf16, 250 with sparsity
A10 = GPU("a10", 125e12, 600e9, 24 * GIB, 72, "pcie-4", "pcie-4", SHEET)


# Qwen/Qwen1.5-32B, config.json
QWEN = ModelShape("qwen-32b", 64, 5120, 40, 8, 128, 27392, gated=True, vocab=152064, tied=False)


@dataclass(frozen=True)
class Setup:
    """A GPU's memory and wire, and which parts of FastSwitch are on."""

    kv_blocks: int  # on the GPU
    host_blocks: int  # of swap space
    layout: KVLayout
    to_host: CopyCost
    to_device: CopyCost
    memory_bandwidth: float  # bytes/s of the GPU's memory, which copies share with computing
    groups: bool = True  # block groups; False: a block at a time
    target: int = INITIAL_TARGET  # blocks of a first group
    longest_group: int | None = None
    kept_tokens: int = ALL_TOKENS  # of a host copy that was read; 0: none, it is freed
    asynchronous: bool = True  # copy beside computing
    wait_for_all: bool = False  # whoever allocates while copies are in flight waits for every one of them
    trusts_copies: bool = False  # take any host copy for complete, which is wrong

    def tables(self, blocks: int) -> BlockTables:
        return BlockGroups(blocks, self.target, self.longest_group) if self.groups else SingleBlocks(blocks)


# The ladder: each system adds one part of FastSwitch to the one before.
SYSTEMS: dict[str, dict[str, Any]] = {
    "vLLM": {"groups": False, "kept_tokens": 0, "asynchronous": False},
    "+DBG": {"groups": True, "kept_tokens": 0, "asynchronous": False},
    "+DBG+Reuse": {"groups": True, "kept_tokens": ALL_TOKENS, "asynchronous": False},
    "FastSwitch": {"groups": True, "kept_tokens": ALL_TOKENS, "asynchronous": True},
}


@dataclass(frozen=True)
class Deployment:
    """A model on a GPU. kv_tokens: what the GPU's memory holds."""

    shape: ModelShape
    gpu: GPU
    kv_tokens: int

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
    "llama-3-8b": Deployment(model("llama-3-8b"), A10, 42_000),
    "qwen-32b": Deployment(QWEN, gpu("a100-80gb-pcie"), 42_000),
}
