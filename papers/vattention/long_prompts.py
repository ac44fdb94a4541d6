"""End to end on traces of long prompts: one server with a kernel that follows block tables, and with one that need not.

A paged prefill kernel takes `kernel_ratio` times as long; all else is equal. Gains are therefore the ratio, weakened by
the share of time that is prefill attention. Source: vAttention (ASPLOS 2025), Sections 7.3 and 7.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.serving.engine import Instance, simulate
from common.serving.latency import Line
from common.serving.loop import EventLoop
from common.serving.memory import PagedMemory
from common.serving.profiled import ProfiledLatency
from common.serving.schedulers import PrefillFirst
from common.serving.workload import Lengths, Workload


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
