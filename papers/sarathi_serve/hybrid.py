"""What makes a batch hybrid: its decodes share one pass over the weights with the chunks (Section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.serving.latency import LatencyModel, Line


@dataclass(frozen=True, eq=False)
class Apart:
    """A latency model whose mixed iterations run in two passes, the chunks and then the decodes; not the method.

    The scheduler plans the same batches. Only what mixing them saves is gone: the weights are read twice.
    """

    latency: LatencyModel

    @property
    def stages(self) -> int:
        return self.latency.stages

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        if not (chunks and decodes):
            return self.latency.iteration(chunks, decodes, context)
        passes = (self.latency.iteration(chunks, 0, 0), self.latency.iteration([], decodes, context))
        first, later = (sum(seconds) for seconds in zip(*passes, strict=True))
        return first, later

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel."""
        return self.latency.decode_line(decodes, context)
