"""Latencies from measured operator tables, by default those of an H100 in common/hardware/tables.

Nothing is fitted to whole layers: layers_bf16.csv, fusion.csv and any other measurement of whole layers are
free to check what comes out here (benchmarks/latency_models.py).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from common.hardware.operators import H100, OperatorTables
from common.hardware.specs import LINKS, Link
from common.serving.layer import LayeredLatency
from common.serving.models import ModelShape

NVLINK = LINKS["nvlink-4"]


@cache
def tables(directory: Path = H100) -> OperatorTables:
    """The operator tables of a folder, loaded once a process."""
    return OperatorTables.load(directory)


class MeasuredLatency(LayeredLatency):
    """LatencyModel from measured tables; link: between the GPUs of a stage and between stages."""

    def __init__(
        self,
        tables: OperatorTables,
        shape: ModelShape,
        tensor_parallel: int = 1,
        stages: int = 1,
        link: Link = NVLINK,
    ) -> None:
        super().__init__(tables, shape, tensor_parallel, stages, link)


def layer_seconds(
    shape: ModelShape,
    tensor_parallel: int,
    chunks: Sequence[tuple[int, int]],
    decodes: int,
    decode_kv_len: int,
    operators: OperatorTables | None = None,
) -> float:
    """Seconds of one layer of a mixed batch on one GPU (of a group), without embedding and output head.

    chunks: (new tokens, tokens cached before them) of each prefilled sequence; decodes sequences of
    `decode_kv_len` tokens each, this step's included. operators: the H100's tables by default.
    """
    latency = MeasuredLatency(operators or tables(), shape, tensor_parallel)
    return latency.layer_seconds(chunks, decodes, decodes * decode_kv_len)
