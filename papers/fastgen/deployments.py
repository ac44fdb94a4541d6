"""Models on the GPUs of one replica: latencies and room for keys and values."""

from dataclasses import dataclass

from common.hardware.specs import gpu as device
from common.serving.latency import LatencyModel
from common.serving.profiled import CARDS, HOST_SECONDS, SHAPES, profiled_latency

MEMORY_SHARE = (
    0.9  # of GPU memory for weights and KV cache: vLLM's gpu_memory_utilization, for every policy here
)
NETWORKS = {
    "a100": "a100-dgx",
    "h100": "h100-dgx",
}  # all GPUs of a node joined by NVSwitch, as on the authors' servers


@dataclass(frozen=True)
class Deployment:
    """A model on one replica's GPUs."""

    model: str = "llama-2-70b"
    gpu: str = "a100"
    tensor_parallel: int = 4
    host_seconds: float = HOST_SECONDS  # of every pass

    def __str__(self) -> str:
        return f"{self.model} {self.tensor_parallel}x{self.gpu}"

    def latency(self) -> LatencyModel:
        """Seconds of an iteration, from measured operators."""
        network, host = NETWORKS[self.gpu], self.host_seconds
        return profiled_latency(
            self.model, self.gpu, self.tensor_parallel, network=network, host_seconds=host
        )

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit beside the weights."""
        shape = SHAPES[self.model]
        memory = self.tensor_parallel * MEMORY_SHARE * device(CARDS[self.gpu]).memory_bytes
        return int((memory - shape.weight_bytes()) / shape.kv_bytes_per_token())


LLAMA_70B = Deployment()
# Every model of Vidur's profiles on as few GPUs as hold it, on both kinds (Section 4.F has H100, A6000, 7B and 13B).
DEPLOYMENTS = (
    Deployment("llama-2-7b", "a100", 1),
    Deployment("llama-3-8b", "a100", 1),
    Deployment("codellama-34b", "a100", 2),
    LLAMA_70B,
    Deployment("llama-2-7b", "h100", 1),
    Deployment("codellama-34b", "h100", 2),
    Deployment("llama-2-70b", "h100", 4),
)
