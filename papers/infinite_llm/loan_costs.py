"""What loans do to speed: a debtor attends to less and exchanges queries, a creditor attends to more."""

from collections.abc import Sequence as Several
from dataclasses import dataclass

from common.serving.latency import LatencyModel, Line

BLOCK_TOKENS = 16  # of an rBlock (inferred: vLLM's block)


@dataclass(frozen=True)
class Wire:
    """Between two instances: bytes/s, and the seconds of one message."""

    bytes_per_s: float
    seconds: float


@dataclass(frozen=True)
class Exchange:
    """What a decode iteration exchanges with the creditors: a round trip a layer, with all of them at a time.

    sent_bytes: a query and a partial result of all heads in one layer, for one request's part at one creditor.
    within, across: the wires inside a node and between nodes.
    """

    layers: int
    sent_bytes: float
    within: Wire
    across: Wire

    def seconds(self, near: int, far: int, sharing: int = 1) -> float:
        """Of an iteration with so many remote parts in the node and beyond it.

        The parts of a wire follow one another, the two wires and all delays overlap. sharing: debtors that use the
        wire between nodes at the same time.
        """
        slowest = 0.0
        for wire, parts, users in ((self.within, near, 1), (self.across, far, sharing)):
            if parts:
                slowest = max(slowest, 2 * wire.seconds + parts * users * self.sent_bytes / wire.bytes_per_s)
        return self.layers * slowest


class LendingLatency:
    """An instance's latencies with loans: `remote` tokens of its requests lie elsewhere, it hosts `hosted` of others.

    exchange_seconds: of one iteration's queries and partial results. prefills: False lets requests arrive prefilled, so
    that prompts cost nothing: what lending changes is the decode batch.
    """

    stages = 1

    def __init__(self, base: LatencyModel, prefills: bool) -> None:
        self.base = base
        self.prefills = prefills
        self.remote = 0
        self.hosted = 0
        self.exchange_seconds = 0.0

    def iteration(self, chunks: Several[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        seconds = self.base.iteration(chunks, 0, 0)[0] if chunks and self.prefills else 0.0
        if decodes:
            line = self.decode_line(decodes, context)
            seconds += line.intercept + line.slope * context
        return seconds, 0.0

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel. A request that ended may leave fewer tokens than are remote, until the loan is repaid."""
        intercept, slope, until = self.base.decode_line(decodes, context)
        fixed = intercept + slope * self.hosted + self.exchange_seconds
        if context < self.remote:
            return Line(fixed, 0.0, min(until, float(self.remote)))
        return Line(fixed - slope * self.remote, slope, until)


def tokens_per_s(
    base: LatencyModel, decodes: int, context: int, remote: int, hosted: int, exchange_seconds: float
) -> float:
    """Throughput of a decode batch of which `remote` tokens lie elsewhere, beside `hosted` tokens of others."""
    if not decodes:
        return 0.0
    intercept, slope, _ = base.decode_line(decodes, context)
    return decodes / (intercept + slope * (max(0, context - remote) + hosted) + exchange_seconds)
