"""End to end on traces of long prompts: one server with a kernel that follows block tables, and with one that need not.

A paged prefill kernel takes `kernel_ratio` times as long; all else is equal. Gains are therefore the ratio, weakened by
the share of time that is prefill attention. Source: vAttention (ASPLOS 2025), Sections 7.3 and 7.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.lab.runtime import Observations, Runtime
from common.serving.engine import Instance, simulate
from common.serving.latency import Line
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.profiled import ProfiledLatency
from common.serving.schedulers import PrefillFirst
from common.serving.workload import Lengths, Workload, poisson, read_trace
from papers.vattention.config import Config
from papers.vattention.deployments import DEPLOYMENTS, latency_of
from papers.vattention.driver_calls import SMALL_PAGE

MODEL = "llama-3-8b"
RATIOS = (1.0, 1.1, 1.2, 1.3, 1.4)  # of kernels, for the picture
SHARES = (1024, 8192, 32768, 131072)  # tokens of a prompt, for the picture
# Where a trace can not be had: shortest, mean and longest prompt of it (exponential above the shortest), and median and
# spread of its answers (lognormal); quantiles and means are within a tenth of the trace's
STAND_INS = {
    "vattention-arxiv-offline": (64_000, 87_426, 192_786, 345, 0.61),
    "vattention-arxiv-online": (22_900, 29_567, 45_819, 318, 0.55),
}


@dataclass(frozen=True)
class PagedKernel:
    """A LatencyModel whose prefill attention takes `ratio` times as long."""

    latency: ProfiledLatency
    ratio: float
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        seconds, transfer = self.latency.iteration(chunks, decodes, context)
        attention = sum(self.latency.chunk_attention_seconds(new, cached) for new, cached in chunks)
        return seconds + (self.ratio - 1.0) * self.latency.stage_layers * attention, transfer

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel: decode kernels read memory, and paging hides behind that (Section 7.2)."""
        return self.latency.decode_line(decodes, context)


def serve(
    latency: ProfiledLatency, ratio: float, kv_tokens: int, lengths: Lengths, arrivals: np.ndarray
) -> tuple[float, float]:
    """(requests per second, median seconds from arrival to the last token) under a prefill-first scheduler."""
    model = PagedKernel(latency, ratio)
    workload = Workload(arrivals, lengths.prompt, lengths.output)

    def build(loop: EventLoop) -> Instance:
        longest = int((lengths.prompt + lengths.output).max())
        return Instance(loop, model, PagedMemory(kv_tokens, 16), PrefillFirst(max_tokens=longest))

    trace = simulate(workload, build)
    latencies = trace.finish - trace.arrival
    return len(lengths.prompt) / float(trace.finish.max() - arrivals[0]), float(np.median(latencies))


def attention_share(latency: ProfiledLatency, prompt: int) -> float:
    """Share of a prompt's prefill that is attention."""
    attention = latency.stage_layers * latency.chunk_attention_seconds(prompt, 0)
    return attention / latency.iteration([(prompt, 0)], 0, 0)[0]


def long_lengths(lab: Runtime, rng: np.random.Generator, name: str, n: int) -> Lengths:
    """Of the authors' trace where it can be had, else like it: see STAND_INS."""
    path = lab.data(name)
    if path is not None:
        return read_trace(path).sample(rng, n)
    shortest, mean, longest, output, spread = STAND_INS[name]
    prompts = np.minimum(shortest + rng.exponential(mean - shortest, n), longest)
    return Lengths(
        prompts.astype(np.int64), np.maximum(1, rng.lognormal(np.log(output), spread, n)).astype(np.int64)
    )


def long_traces(config: Config, lab: Runtime, seen: Observations) -> None:
    """Requests per second offline, and median latency online, over those of a paged prefill kernel."""
    latency, deployment, ratio = latency_of(MODEL), DEPLOYMENTS[MODEL], config.kernel_ratio
    token_bytes = 2 * latency.shape.layers * deployment.layout(1, 1, SMALL_PAGE).token_bytes
    kv_tokens = deployment.kv_bytes() // token_bytes
    for prompt in SHARES:
        seen.add("attention_share", attention_share(latency, prompt), prompt=prompt)
    for seed in lab.seeds:
        rng = lab.rng(seed, "long")
        offline = long_lengths(lab, rng, "vattention-arxiv-offline", config.long_requests)
        online = long_lengths(lab, rng, "vattention-arxiv-online", config.long_requests)
        seen.add("offline_prompt_tokens", float(offline.prompt.mean()), seed)
        seen.add("online_prompt_tokens", float(online.prompt.mean()), seed)
        at_once = np.zeros(len(offline.prompt))
        tried = [ratio, *(RATIOS if lab.wants("offline_gain_by_ratio") else ())]
        plain = serve(latency, 1.0, kv_tokens, offline, at_once)[0]
        gains = [plain / serve(latency, one, kv_tokens, offline, at_once)[0] for one in tried]
        seen.add("offline_gain", gains[0], seed)
        for one, gain in zip(tried[1:], gains[1:], strict=True):
            seen.add("offline_gain_by_ratio", gain, seed, ratio=one)
        every, _ = serve(latency, ratio, kv_tokens, online, at_once)
        arrivals = poisson(rng, len(online.prompt)) / (config.online_load * every)
        ours, paged = (serve(latency, one, kv_tokens, online, arrivals)[1] for one in (1.0, ratio))
        seen.add("online_cut", 1.0 - ours / paged, seed)
