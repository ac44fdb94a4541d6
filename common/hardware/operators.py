"""Operator times of one card, from measured tables: what a model of a whole iteration is put together from."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common.hardware.attention import AttentionTable, Row
from common.hardware.linear import LinearTable

TABLES = Path(__file__).parent / "tables"
H100 = TABLES / "h100"


class OperatorTimes(Protocol):
    """Seconds of the operators of a transformer on one device, each as a kernel inside a CUDA graph."""

    def linear_seconds(self, m: int, k: int, n: int) -> float:
        """[m, k] @ [k, n]."""

    def elementwise_seconds(self, moved_bytes: float) -> float:
        """A kernel that reads and writes `moved_bytes` and computes next to nothing."""

    def prefill_seconds(
        self, heads: int, kv_heads: int, head_dim: int, chunks: Sequence[tuple[int, int]]
    ) -> float:
        """Causal attention of chunks (new tokens, tokens before them)."""

    def decode_lines(
        self, heads: int, kv_heads: int, head_dim: int, batch: int
    ) -> tuple[tuple[float, float], ...]:
        """Attention of `batch` sequences that decode: the highest of (intercept, slope) over total context."""


@dataclass(frozen=True, eq=False)
class OperatorTables:
    """OperatorTimes from a folder of tables, such as tables/h100 or what `make gpu-profile` wrote."""

    name: str  # of the card
    memory_bytes: int
    copy_bandwidth: float  # bytes/s that a device copy reads and writes, together
    linear: LinearTable
    attention: AttentionTable

    @staticmethod
    def load(directory: Path) -> "OperatorTables":
        """Read linear_bf16.csv, attention_bf16.csv, copies.csv and device.json.

        Raises FileNotFoundError naming what is missing and the command that makes it, ValueError on bad contents.
        """
        names = ("linear_bf16.csv", "attention_bf16.csv", "copies.csv", "device.json")
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}; `make gpu-profile` writes them")
        device = json.loads((directory / "device.json").read_text())
        copies = read_table(directory / "copies.csv")
        rates = [2 * int(r["bytes"]) / float(r["seconds"]) for r in copies if r["kind"] == "device_copy"]
        if not rates:
            raise ValueError(f"{directory / 'copies.csv'} has no device_copy row")
        bandwidth = max(rates)
        linear = LinearTable.from_rows(read_table(directory / "linear_bf16.csv"), bandwidth)
        attention = AttentionTable.from_rows(
            [Row.of(row) for row in read_table(directory / "attention_bf16.csv")],
            int(device["sms"]),
            linear.flops,
            linear.bandwidth,
            linear.kernel_seconds,
            in_graph=device.get("attention_timing") == "graph",
        )
        return OperatorTables(device["name"], int(device["mem"]), bandwidth, linear, attention)

    def linear_seconds(self, m: int, k: int, n: int) -> float:
        """See OperatorTimes."""
        return self.linear.seconds(m, k, n)

    def elementwise_seconds(self, moved_bytes: float) -> float:
        """See OperatorTimes: the traffic at a device copy's bandwidth, plus a kernel's own cost."""
        return self.linear.kernel_seconds + moved_bytes / self.copy_bandwidth

    def prefill_seconds(
        self, heads: int, kv_heads: int, head_dim: int, chunks: Sequence[tuple[int, int]]
    ) -> float:
        """See OperatorTimes; the table shows no dependence on kv_heads."""
        return self.attention.prefill_seconds(heads, head_dim, chunks)

    def decode_lines(
        self, heads: int, kv_heads: int, head_dim: int, batch: int
    ) -> tuple[tuple[float, float], ...]:
        """See OperatorTimes."""
        return (self.attention.decode_line(heads, kv_heads, head_dim, batch),)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file as dictionaries of strings."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
