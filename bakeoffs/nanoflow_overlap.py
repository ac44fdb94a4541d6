"""NanoFlow's overlap on the terms of a bake-off: an iteration takes the share of its time that nano-batches save.

The pipeline is the one that the paper's search finds for the trace's mean lengths on eight A100s with the paper's own
operator times, replayed at other batch sizes and contexts. The share is simulated; where it is no gain, the engine
runs one operator after another. Iterations without a prompt are left as they are: there is too little to overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.serving.latency import LatencyModel, Line
from papers.nanoflow.cost_model import LLAMA_2_70B, Workload, operators, sequential_us
from papers.nanoflow.list_schedule import Evaluator
from papers.nanoflow.nano_batches import split_layer
from papers.nanoflow.pipeline_latency import DECODE_US, PREFILL_US, workload_context
from papers.nanoflow.pipelines import Case, Switches, solve
from papers.nanoflow.search import Effort

TOKENS = tuple(range(512, LLAMA_2_70B.dense_batch + 1, 256))  # of a batch; smaller ones are not split
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the workload's attention


@dataclass(frozen=True)
class Overlap:
    """Shares of an iteration's time by its tokens (TOKENS) and attention (SCALES), for a workload's pipeline."""

    workload: Workload
    shares: tuple[tuple[float, ...], ...]

    def share(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> float:
        """What is left of an iteration's time; see LatencyModel for its arguments."""
        tokens = decodes + sum(new for new, _ in chunks)
        if not chunks or tokens < TOKENS[0]:
            return 1.0
        work = DECODE_US * context + PREFILL_US * sum(new * (past + new / 2) for new, past in chunks)
        scale = work / (workload_context(self.workload) * tokens)
        row = min(range(len(TOKENS)), key=lambda one: abs(TOKENS[one] - tokens))
        column = min(range(len(SCALES)), key=lambda one: abs(SCALES[one] - scale))
        return self.shares[row][column]


def plan_overlap(prompt: int, output: int, effort: Effort | None = None) -> Overlap:
    """Search the pipeline for requests of these mean lengths (tokens), and replay it.

    effort: of the search; the paper's package knows what is usual, which takes ten seconds.
    """
    workload = Workload(prompt, output)
    found = solve(Case(LLAMA_2_70B, workload, LLAMA_2_70B.dense_batch, Switches(), effort or Effort()))
    curves, whole = found.case.switches.curves, LLAMA_2_70B.dense_batch
    shares = []
    for batch in TOKENS:
        cuts = {name: tuple(cut * batch // whole for cut in one) for name, one in found.pipeline.cuts.items()}
        row = []
        for scale in SCALES:
            ops = operators(LLAMA_2_70B, workload)
            ops["Attn"] = ops["Attn"].scaled(scale)
            layer = split_layer(ops, batch, cuts, multiples=False)
            period = Evaluator(layer, curves).period(found.pipeline.found.choice)
            row.append(min(1.0, period / sequential_us(ops, batch)))
        shares.append(tuple(row))
    return Overlap(workload, tuple(shares))


@dataclass(frozen=True, eq=False)
class OverlappedLatency:
    """A latency model whose mixed iterations overlap."""

    base: LatencyModel
    overlap: Overlap
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        first, later = self.base.iteration(chunks, decodes, context)
        share = self.overlap.share(chunks, decodes, context)
        return first * share, later * share

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel."""
        return self.base.decode_line(decodes, context)
