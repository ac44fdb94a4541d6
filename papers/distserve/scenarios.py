"""The workloads of the paper's evaluation: model, lengths, objectives, baseline, and the rate of the SLO sweep."""

from dataclasses import dataclass, replace

from common.serving.latency import LatencyModel, a100_kv_tokens, a100_latency, scaled_fit
from common.serving.metrics import SLO
from common.serving.models import model
from papers.distserve.deployment import Parallelism, Profile

NVLINK_BYTES_PER_S = 300e9  # one direction of an A100's 600 GB/s (NVIDIA A100 data sheet; paper, Section 6.1)
CROSS_NODE_BYTES_PER_S = 25e9 / 8  # the testbed's 25 Gbit/s between nodes (paper, Section 6.1)
LINKS = {"nvlink": NVLINK_BYTES_PER_S, "cross_node_25gbps": CROSS_NODE_BYTES_PER_S}

# Saturating prompt length L_m. The paper profiles it and names 512 tokens for a 13B model on an A100
# (Section 3.1); it publishes no other value, so that every model uses it here.
PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Scenario:
    """One workload of Section 6.1 on one node of eight A100-80GB.

    lengths: name of a trace or distribution of common.serving.workload. gpus: most GPUs that either system may use.
    baseline: vLLM's parallelism (Section 6.1). rate_per_gpu: of the SLO sweep, requests/s and GPU (authors' artifact).
    """

    model: str
    lengths: str
    slo: SLO
    gpus: int
    baseline: Parallelism
    rate_per_gpu: float


SCENARIOS = {
    "chat-opt-13b": Scenario("opt-13b", "sharegpt", SLO(0.2, 0.1), 4, Parallelism(1), 1.5),
    "chat-opt-66b": Scenario("opt-66b", "sharegpt", SLO(0.4, 0.1), 8, Parallelism(4), 0.25),
    "code-opt-66b": Scenario("opt-66b", "humaneval-like", SLO(0.125, 0.2), 8, Parallelism(4), 0.875),
    "summarisation-opt-66b": Scenario("opt-66b", "longbench-like", SLO(15.0, 0.15), 8, Parallelism(4), 0.375),
    # No coefficients are published for OPT-175B: its latencies are scaled from OPT-66B's, and no claim reads it.
    "chat-opt-175b": Scenario("opt-175b", "sharegpt", SLO(4.0, 0.2), 16, Parallelism(8), 0.15),
}

# Other lengths that a scenario's conclusion is tried on. For chat: earlier messages joined to the prompt, as the
# authors' data preparation does, a lognormal between the two, and the Azure conversation trace, whose means (about 750
# prompt and 230 output tokens) come closest to those that the paper reports for its ShareGPT requests.
OTHER_LENGTHS = {
    "chat-opt-13b": ("sharegpt-joined", "sharegpt-like", "azure-conversation"),
    "chat-opt-66b": ("sharegpt-joined", "sharegpt-like", "azure-conversation"),
    "summarisation-opt-66b": ("arxiv-summarisation",),
}


def profile(name: str, engine: str, link: str) -> Profile:
    """A model under the published coefficients of an engine ("distserve" or "vllm"), with a link between phases.

    Raises KeyError naming the links or engines there are.
    """
    if link not in LINKS:
        raise KeyError(f"unknown link {link!r}; one of {', '.join(LINKS)}")
    if engine not in ("distserve", "vllm"):
        raise KeyError(f"unknown engine {engine!r}; one of distserve, vllm")
    shape = model(name)

    def latency(parallelism: Parallelism) -> LatencyModel:
        if name == "opt-175b":
            sibling = a100_latency(engine, "opt-66b", parallelism.tensor, parallelism.stages)
            return scaled_fit(sibling, model("opt-66b"), shape)
        return a100_latency(engine, name, parallelism.tensor, parallelism.stages)

    return Profile(
        shape=shape,
        latency=latency,
        kv_tokens=lambda p: a100_kv_tokens(name, p.tensor, p.stages),
        prefill_tokens=PREFILL_TOKENS,
        link_bytes_per_s=LINKS[link],
        shared_link=link != "nvlink",
    )


def with_lengths(scenario: Scenario, lengths: str) -> Scenario:
    """The same scenario on other lengths."""
    return replace(scenario, lengths=lengths)
