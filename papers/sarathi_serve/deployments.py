"""What the paper serves, on what, under which objectives, and the systems it compares (Tables 1 and 3, Section 5).

Latencies are simulated from Vidur's A100 profiles (common/serving/profiled.py). Substitutions: Yi-34B takes the layers
of CodeLlama-34B and Falcon-180B those of Llama-2-70B, scaled by their parameters; Mistral-7B takes Llama-3-8B's, and
its sliding window is not modelled; Llama-2-70B runs on A100s, for the paper's A40s have no profile.
"""

from collections.abc import Callable
from dataclasses import dataclass

from common.hardware.specs import gpu, link
from common.serving.batch import Scheduler
from common.serving.memory import KVMemory, PagedMemory, ReservedMemory
from common.serving.profiled import HOST_SECONDS, SHAPES, ProfiledLatency, profiled_latency
from common.serving.schedulers import IterationLevel, PrefillFirst
from papers.sarathi_serve.lengths import KINDS
from papers.sarathi_serve.schedulers import AlternatingChunks, StallFree

MEMORY_SHARE = 0.9  # gpu_memory_utilization in the authors' default.yml
MAX_SEQUENCES = 128  # running at once, max_batch_size in the authors' scripts
BLOCK_TOKENS = 16  # vLLM's default
WATERMARK = 0.01  # of the blocks, kept from admissions (vLLM and Sarathi)
CARD = "a100-80gb-sxm"
BETWEEN_NODES = link(
    "ethernet-100g"
)  # Section 5: two nodes of four A100s each, 100 Gbit/s Ethernet between them


@dataclass(frozen=True)
class Deployment:
    """A model on its GPUs, with the P99 TBT objectives of Table 3 in seconds."""

    model: str
    tensor_parallel: int
    stages: int
    strict: float
    relaxed: float
    relaxed_budget: int  # tokens (Section 5.1); 512 under the strict objective
    orca_sequences: int  # its largest batch (osdi-experiments/figure-5-6)

    def latency(self, host_seconds: float = HOST_SECONDS) -> ProfiledLatency:
        """Of an iteration on A100s in nodes of four, joined by Ethernet."""
        return profiled_latency(
            self.model,
            "a100",
            self.tensor_parallel,
            self.stages,
            across=BETWEEN_NODES,
            host_seconds=host_seconds,
        )

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit beside the weights; activations are not counted."""
        shape = SHAPES[self.model]
        memory = self.tensor_parallel * self.stages * MEMORY_SHARE * gpu(CARD).memory_bytes
        return int((memory - shape.weight_bytes()) / shape.kv_bytes_per_token())

    def objective(self, slo: str) -> float:
        """P99 TBT in seconds; slo: strict or relaxed."""
        return {"strict": self.strict, "relaxed": self.relaxed}[slo]

    def budget(self, slo: str) -> int:
        """The token budget that the paper chose for an objective."""
        return {"strict": 512, "relaxed": self.relaxed_budget}[slo]


DEPLOYMENTS = {
    "mistral": Deployment("mistral-7b", 1, 1, 0.1, 0.5, 2048, 16),
    "yi": Deployment("yi-34b", 2, 1, 0.2, 1.0, 2048, 16),
    "llama-70b": Deployment("llama-2-70b", 4, 2, 1.0, 5.0, 1536, 8),
    "falcon": Deployment("falcon-180b", 4, 2, 1.0, 5.0, 2048, 8),
    # the same eight GPUs under tensor parallelism across the two nodes (Section 5.3)
    "falcon-tp8": Deployment("falcon-180b", 8, 1, 1.0, 5.0, 2048, 8),
}
SYSTEMS = ("sarathi", "vllm", "orca", "hybrid-only", "chunked-only", "swapped")
CHUNKED = ("sarathi", "chunked-only", "swapped")  # those to which a token budget means anything


def scheduler(system: str, deployment: Deployment, kind: str, budget: int) -> Scheduler:
    """A system's batch policy for requests of a kind; with stages, each micro-batch takes an equal share of them.

    Raises KeyError for an unknown system.
    """
    longest = KINDS[kind.removesuffix("-real")].longest
    sequences = MAX_SEQUENCES // deployment.stages
    policies: dict[str, Callable[[], Scheduler]] = {
        "sarathi": lambda: StallFree(budget, sequences),
        "hybrid-only": lambda: StallFree(longest, sequences),
        "swapped": lambda: StallFree(budget, sequences, decodes_first=False),
        "chunked-only": lambda: AlternatingChunks(budget, sequences),
        "vllm": lambda: PrefillFirst(longest, sequences),
        "orca": lambda: IterationLevel(deployment.orca_sequences // deployment.stages),
    }
    return policies[system]()


def memory(system: str, deployment: Deployment, kind: str) -> KVMemory:
    """Paged for all but Orca, which reserves the longest request for each."""
    if system == "orca":
        return ReservedMemory(deployment.kv_tokens, longest=KINDS[kind.removesuffix("-real")].longest)
    return PagedMemory(deployment.kv_tokens, BLOCK_TOKENS, WATERMARK)
