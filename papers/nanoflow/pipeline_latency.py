"""How long an iteration takes on a pipeline: what the serving simulator asks.

Non-overlap is exact: the sum of Table 2's operators at the batch's tokens, plus attention over its context. NanoFlow's
period is not linear in both; a plane is fitted by least squares to the found order and shares, replayed by the
list schedule at other batch sizes and contexts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.serving.latency import INFINITY, Line
from papers.nanoflow.cost_model import (
    LLAMA_2_70B,
    TABLE_2,
    TABLE_BATCH,
    TABLE_WORKLOAD,
    Deployment,
    Workload,
    operators,
)
from papers.nanoflow.interference import Interference
from papers.nanoflow.list_schedule import Choice, Evaluator
from papers.nanoflow.nano_batches import split_layer

# Microseconds of one layer for a KV token that decode attention reads, and for a pair of tokens in prefill attention.
DECODE_US = 1000 * TABLE_2["DecAttn"][3] / 80 / (TABLE_BATCH * TABLE_WORKLOAD.decode_context)
PREFILL_US = 1000 * TABLE_2["PfAttn"][3] / 80 / (TABLE_BATCH * TABLE_WORKLOAD.prefill_context)


@dataclass(frozen=True)
class PipelineLatency:
    """LatencyModel of LLaMA-2-70B on 8 A100: a layer takes fixed + per_token * tokens + attention * its work (us)."""

    fixed: float
    per_token: float
    attention: float  # microseconds of the period for one of attention's work: 1 where nothing overlaps
    layers: int = 80
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        tokens = decodes + sum(new for new, _ in chunks)
        work = DECODE_US * context + PREFILL_US * sum(new * (past + new / 2) for new, past in chunks)
        return self._seconds(self.fixed + self.per_token * tokens + self.attention * work), 0.0

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel."""
        constant = self._seconds(self.fixed + self.per_token * decodes)
        return Line(constant, self._seconds(self.attention * DECODE_US), INFINITY)

    def _seconds(self, microseconds: float) -> float:
        return microseconds * 1e-6 * self.layers


def sequential_latency(deployment: Deployment = LLAMA_2_70B, pieces: int = 1) -> PipelineLatency:
    """One operator after another: non-overlap, or nano-batch-only where every operator is in `pieces`."""
    found = [op for name, op in operators(deployment, TABLE_WORKLOAD).items() if name != "Attn"]
    return PipelineLatency(pieces * sum(op.fixed for op in found), sum(op.per_token for op in found), 1.0)


def overlapped_latency(
    cuts: Mapping[str, tuple[int, ...]],
    choice: Choice,
    curves: Interference,
    workload: Workload = TABLE_WORKLOAD,
    whole: int = LLAMA_2_70B.dense_batch,
) -> tuple[PipelineLatency, float]:
    """The plane through periods of one choice at other batches and contexts, and its largest relative error.

    cuts: of a dense batch of `whole` tokens; smaller batches are cut in proportion. workload: whose contexts it is
    fitted to.
    """
    points, periods = [], []
    for batch in (whole // 4, whole // 2, whole * 3 // 4, whole):
        for scale in (0.5, 1.0, 1.5):  # of the workload's context
            ops = operators(LLAMA_2_70B, workload)
            ops["Attn"] = ops["Attn"].scaled(scale)
            scaled = {name: tuple(cut * batch // whole for cut in inside) for name, inside in cuts.items()}
            layer = split_layer(ops, batch, scaled, multiples=False)
            points.append((1.0, batch, ops["Attn"].work(batch)))
            periods.append(Evaluator(layer, curves).period(choice))
    matrix, wanted = np.array(points), np.array(periods)
    weights = 1 / wanted  # relative errors
    plane = np.linalg.lstsq(matrix * weights[:, None], wanted * weights, rcond=None)[0]
    error = float(np.abs(matrix @ plane / wanted - 1).max())
    fixed, per_token, attended = map(float, plane)
    return PipelineLatency(fixed, per_token, attended), error


def workload_context(workload: Workload) -> float:
    """Attention work of one token of a dense batch of constant lengths, microseconds."""
    return DECODE_US * workload.decode_context + PREFILL_US * workload.prefill_context
