"""LLaMA-7B on an A10: the instance that the paper's serving experiments run 16 of, as a latency model.

No table of the authors' profile is published; constants are data sheets and arithmetic, efficiencies are inferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.serving.latency import INFINITY, Line

BLOCK_TOKENS = 16  # vLLM's block, and the artifact's
KV_BLOCKS = 851  # 13,616 tokens (Section 6.1; 792 to 862 in vllm/simulator/profiling.py of the artifact)
KV_BYTES = 2 * 32 * 4096 * 2  # a token: keys and values, 32 layers, hidden size 4,096, fp16
WEIGHT_BYTES = 6.74e9 * 2  # parameters of LLaMA-7B (arXiv 2302.13971, Table 2), fp16
MEMORY_BYTES_PER_S = 600e9  # A10 data sheet
MEMORY_SHARE = 0.75  # of it that decode reaches (inferred)
FLOPS_PER_S = 60e12  # reached in prefill, of 125e12 on the A10's data sheet (inferred)


@dataclass(frozen=True)
class LlamaOnA10:
    """An iteration reads the weights once; decoding reads its KV caches, prefilling computes 2 FLOP a parameter.

    memory_share, flops_per_s: the two efficiencies. One stage, no tensor parallelism.
    """

    memory_share: float = MEMORY_SHARE
    flops_per_s: float = FLOPS_PER_S
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        bandwidth = MEMORY_BYTES_PER_S * self.memory_share
        tokens = sum(new for new, _ in chunks)
        compute = tokens * WEIGHT_BYTES / self.flops_per_s  # 2 FLOP a parameter, as it has 2 bytes
        seconds = max(WEIGHT_BYTES / bandwidth, compute)
        if decodes:
            seconds += context * (KV_BYTES / bandwidth)
        return seconds, seconds

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel: one line for every context."""
        bandwidth = MEMORY_BYTES_PER_S * self.memory_share
        return Line(WEIGHT_BYTES / bandwidth, KV_BYTES / bandwidth, INFINITY)
