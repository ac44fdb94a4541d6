"""The workloads of the paper's evaluation: model, lengths, objectives, baseline, and the rates of its figures."""

from dataclasses import dataclass

from common.serving.latency import LatencyModel, a100_kv_tokens, a100_latency
from common.serving.metrics import SLO
from common.serving.models import model
from papers.distserve.deployment import Parallelism, Profile

NVLINK_BYTES_PER_S = 300e9  # one direction of an A100's 600 GB/s (NVIDIA A100 data sheet; paper, Section 6.1)
CROSS_NODE_BYTES_PER_S = 25e9 / 8  # the testbed's 25 Gbit/s between nodes (paper, Section 6.1)
LINKS = {"nvlink": NVLINK_BYTES_PER_S, "cross_node_25gbps": CROSS_NODE_BYTES_PER_S}


@dataclass(frozen=True)
class Scenario:
    """One workload of Section 6.1 on one node of A100-80GB.

    lengths: name of a trace or distribution of common.serving.workload. gpus: most GPUs that either system may use.
    baseline: vLLM's parallelism (Section 6.1). rates: of the figure's curves, requests/s and GPU; slo_rate: the one at
    which objectives are tightened; requests: of each of the authors' runs, a GPU (all three: authors' artifact,
    evaluation/ae-scripts/e2e/_plot.py).
    """

    model: str
    lengths: str
    slo: SLO
    gpus: int
    baseline: Parallelism
    slo_rate: float
    rates: tuple[float, ...]
    requests: int


CHAT_13B = (0.25, 0.5, 1, 1.5, 2, 2.25, 2.5, 3)
CHAT_66B = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
CODE = (0.125, 0.375, 0.625, 0.875, 1.125, 1.375, 1.625, 1.875, 2.125)
SUMMARISATION = (0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5625, 0.625)
SCENARIOS = {
    "chat-opt-13b": Scenario(
        "opt-13b", "sharegpt-joined", SLO(0.25, 0.1), 4, Parallelism(1), 1.5, CHAT_13B, 100
    ),
    "chat-opt-66b": Scenario(
        "opt-66b", "sharegpt-joined", SLO(0.4, 0.1), 8, Parallelism(4), 0.25, CHAT_66B, 25
    ),
    "code-opt-66b": Scenario(
        "opt-66b", "humaneval-like", SLO(0.125, 0.2), 8, Parallelism(4), 0.875, CODE, 50
    ),
    "summarisation-opt-66b": Scenario(
        "opt-66b", "longbench-like", SLO(15.0, 0.15), 8, Parallelism(4), 0.375, SUMMARISATION, 25
    ),
}

# Lengths of chat requests: earlier messages joined to the prompt, as the authors prepare ShareGPT (means of about 765
# and 217 tokens, the paper's Figure 7 has 755 and 200); first turns alone (155 tokens); a lognormal between the two;
# and the Azure conversation trace (750 and 230).
CHAT_LENGTHS = ("sharegpt-joined", "sharegpt", "sharegpt-like", "azure-conversation")
OTHER_LENGTHS = {
    "chat-opt-13b": CHAT_LENGTHS,
    "chat-opt-66b": CHAT_LENGTHS,
    "summarisation-opt-66b": ("longbench-like", "arxiv-summarisation"),
}


@dataclass(frozen=True)
class Serving:
    """How instances are built, besides their parallelism. Defaults and sources are the Config's."""

    engine: str = "distserve"
    link: str = "nvlink"
    prefill_tokens: int = 512
    overlap: float = 0.0
    swap_gbytes_per_s: float = 25.0


def profile(name: str, how: Serving) -> Profile:
    """A model under the published coefficients of an engine ("distserve" or "vllm"), with a link between phases.

    Raises KeyError naming the links or engines there are.
    """
    if how.link not in LINKS:
        raise KeyError(f"unknown link {how.link!r}; one of {', '.join(LINKS)}")
    if how.engine not in ("distserve", "vllm"):
        raise KeyError(f"unknown engine {how.engine!r}; one of distserve, vllm")

    def latency(parallelism: Parallelism) -> LatencyModel:
        return a100_latency(how.engine, name, parallelism.tensor, parallelism.stages)

    return Profile(
        shape=model(name),
        latency=latency,
        kv_tokens=lambda p: a100_kv_tokens(name, p.tensor, p.stages),
        prefill_tokens=how.prefill_tokens,
        link_bytes_per_s=LINKS[how.link],
        shared_link=how.link != "nvlink",
        overlap=how.overlap,
        host_gbytes_per_s=how.swap_gbytes_per_s,
    )
