"""Pipeline bubbles under each policy, the timeline that shows them, and tensor parallelism across nodes (Section 5.3).

A stage idles while another works whenever micro-batches take unequally long: a decode batch behind a prompt batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.serving.latency import LatencyModel, Line
from common.serving.loop import EventLoop
from common.serving.metrics import token_gaps
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.sarathi_serve.capacity import serve


@dataclass(frozen=True, eq=False)
class EqualWork:
    """A latency model under which every iteration takes what `tokens` prompt tokens take: no micro-batch differs."""

    latency: LatencyModel
    tokens: int = 512

    @property
    def stages(self) -> int:
        return self.latency.stages

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel. The first stage takes as long as the later ones."""
        first, later = self.latency.iteration([(self.tokens, 0)], 0, 0)
        longest = max(first, later)
        return longest, longest if self.stages > 1 else 0.0

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel."""
        return Line(self.iteration([], decodes, context)[0], 0.0, float("inf"))


class Span(NamedTuple):
    """A micro-batch on a stage, in seconds; prompt and decode tokens in it."""

    stage: int
    start: float
    end: float
    prompt: int
    decodes: int


class Recorded:
    """A latency model that notes every iteration it is asked for, so that a timeline can be drawn."""

    def __init__(self, latency: LatencyModel, loop: EventLoop) -> None:
        self.latency = latency
        self.loop = loop
        self.free = [0.0] * latency.stages
        self.spans: list[Span] = []

    @property
    def stages(self) -> int:
        return self.latency.stages

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel; the spans follow the engine's rule, a stage after the one before and after its last."""
        first, later = self.latency.iteration(chunks, decodes, context)
        prompt = sum(new for new, _ in chunks)
        end = self.loop.now
        for stage in range(self.stages):
            start = max(end, self.free[stage])
            end = self.free[stage] = start + (later if stage else first)
            self.spans.append(Span(stage, start, end, prompt, decodes))
        return first, later

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel. Not noted: with one stage there is no timeline to draw."""
        return self.latency.decode_line(decodes, context)


def timeline(
    workload: Workload, kind: str, system: str, budget: int, latency: LatencyModel | None = None
) -> tuple[list[Span], Trace]:
    """Serve a workload with Falcon-180B on four GPUs a stage and two stages, and note what each stage does when."""
    watched: list[Recorded] = []

    def watch(times: LatencyModel, loop: EventLoop) -> LatencyModel:
        watched.append(Recorded(times, loop))
        return watched[0]

    trace, _ = serve(workload, "falcon", kind, system, budget, latency, watch)
    return watched[0].spans, trace


def bubble_share(spans: list[Span], until: float) -> float:
    """Share of the stages' time, from the first micro-batch until `until` seconds, in which they idle.

    With `until` the last arrival there is work all along (at a rate near capacity), and the drain at the end, when
    too few requests are left for all micro-batches, doesn't count.
    """
    stages = 1 + max(span.stage for span in spans)
    busy = sum(min(span.end, until) - span.start for span in spans if span.start < until)
    return 1 - busy / (stages * (until - spans[0].start))


def median_tbt(trace: Trace) -> float:
    """Seconds, over all token gaps."""
    return float(np.median(token_gaps(trace)))
