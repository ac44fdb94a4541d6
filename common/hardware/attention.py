"""Seconds of attention kernels: a model of how they run, its constants fitted to the measured table alone.

Prefill (FlashAttention's schedule: Dao, 2023, arXiv:2307.08691, section 3.2). A thread block takes a tile of
`TILE` queries of one head and walks the keys that its queries see. Blocks run in waves of one an SM, so that

    seconds = start + waves * wave_start + token * (sum over waves of the keys of the wave's longest tile)

The steps by whole waves are plain in the table: 256 queries over 16,384 keys take 195 us with 32 and with 40
heads (64, 80 tiles), 412 us with 72 (144 tiles on 132 SMs). All sequences of an iteration share one kernel, as
in the variable-length kernels that serving engines call.

Decode. One query a sequence: reading keys and values bounds a large batch; a block's own walk along a sequence
bounds a small one. With c tokens of context over a batch of b sequences

    seconds = start + max(bytes of c tokens / bandwidth, token * c / b)

The decode kernels timed here do not split grouped-query sequences over SMs. Engines whose kernels do are
faster at small batch and long context.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TILE = 128  # queries of a tile, at head dimension 128
HEAD_DIM = 128  # head dimension that the constants are stated for; work a token is proportional to it
DTYPE_BYTES = 2  # bfloat16

# What timing one launch between two CUDA events adds: bfloat16 products whose time exceeds the launch floor take
# 1.5, 2.4 and 2.7 us more in gemm_general.csv (one launch) than in linear_bf16.csv (inside a graph), both of the
# same H100: (m, n, k) = (3072, 4096, 1024), (64, 5120, 8192), (64, 6144, 4096).
EVENT_SECONDS = 2.4e-6

# Rows of the shortest sequences with less work than this at the card's best rates show the launch alone.
NEGLIGIBLE_SECONDS = 2e-6


class Row(NamedTuple):
    """A measured call: `phase` is prefill_causal, chunk_full or decode; lengths in tokens."""

    phase: str
    heads: int
    kv_heads: int
    head_dim: int
    batch: int
    q_len: int
    kv_len: int
    seconds: float
    p05: float

    @staticmethod
    def of(row: Mapping[str, str]) -> "Row":
        """A row of attention_bf16.csv."""
        counts = (int(row[name]) for name in ("heads", "kv_heads", "head_dim", "batch", "q_len", "kv_len"))
        return Row(row["phase"], *counts, float(row["seconds"]), float(row["p05"]))  # type: ignore[call-arg]

    @property
    def work(self) -> tuple[int, int]:
        """Floating-point operations, bytes of keys, values, queries and outputs."""
        flops = 4 * self.batch * self.heads * self.head_dim * self.q_len * self.kv_len
        if self.phase == "prefill_causal":
            flops //= 2
        elements = 2 * self.kv_heads * self.kv_len + 2 * self.heads * self.q_len
        return flops, DTYPE_BYTES * self.batch * self.head_dim * elements


class Decode(NamedTuple):
    """Constants of decoding with one set of heads, at head dimension 128."""

    start: float  # seconds
    bandwidth: float  # bytes/s of keys and values
    token: float  # seconds a block takes a token of one sequence

    def slope(self, kv_heads: int, head_dim: int, batch: int) -> float:
        """Seconds a token of total context of `batch` sequences."""
        reading = 2 * DTYPE_BYTES * kv_heads * head_dim / self.bandwidth
        return max(reading, self.token * head_dim / HEAD_DIM / batch)


class Prefill(NamedTuple):
    """Constants of prefill, at head dimension 128."""

    start: float  # seconds
    wave_start: float  # seconds a wave
    token: float  # seconds a key of a wave's longest tile


@dataclass(frozen=True, eq=False)
class AttentionTable:
    """Attention times of one card; see the module's text."""

    sms: int
    launch_floor: float  # seconds below which a row of the table shows the launch and not the kernel
    timing_seconds: float  # what timing a call added to its row
    prefill: Prefill
    decode: Mapping[tuple[int, int], Decode]  # by (heads, kv_heads)

    @staticmethod
    def from_rows(
        rows: Sequence[Row], sms: int, flops: float, bandwidth: float, kernel_seconds: float, in_graph: bool
    ) -> "AttentionTable":
        """Fit the constants, by least relative squares, to the rows that exceed the launch floor.

        The floor is the longest median of the shortest sequences' rows whose work is negligible at `flops` and
        `bandwidth` (the best rates of the linear table); a row counts if even its 5th percentile is longer.
        From rows timed by events around one launch, what that adds is taken off (`in_graph`: nothing). No
        kernel starts in less than `kernel_seconds`. Raises ValueError where too few rows are left.
        """
        shortest = min((row.kv_len for row in rows), default=0)
        small = [r for r in rows if max(r.work[0] / flops, r.work[1] / bandwidth) < NEGLIGIBLE_SECONDS]
        floor = max((row.seconds for row in small if row.kv_len == shortest), default=0.0)
        kept = [row for row in rows if row.p05 > floor]
        timing = 0.0 if in_graph else EVENT_SECONDS

        prefills = [row for row in kept if row.phase != "decode"]
        if len(prefills) < 3:
            raise ValueError(
                f"{len(prefills)} prefill rows exceed the launch floor of {floor * 1e6:.0f} us; 3 needed"
            )
        waves = [_waves(_tiles_of(row), row.heads, sms) for row in prefills]
        keys = [w.keys * row.head_dim / HEAD_DIM for w, row in zip(waves, prefills, strict=True)]
        start, wave_start, token = _least_relative_squares(
            [np.ones(len(keys)), np.array([w.number for w in waves]), np.array(keys)],
            np.array([row.seconds for row in prefills]),
        )
        prefill = Prefill(max(kernel_seconds, start - timing), max(0.0, wave_start), token)

        decode = {}
        for heads in sorted({(row.heads, row.kv_heads) for row in kept if row.phase == "decode"}):
            of_heads = [row for row in kept if row.phase == "decode" and (row.heads, row.kv_heads) == heads]
            if len({row.work[1] for row in of_heads}) >= 3:
                fitted = _fit_decode(of_heads)
                decode[heads] = fitted._replace(start=max(kernel_seconds, fitted.start - timing))
        if not decode:
            raise ValueError(
                f"no set of heads has 3 decode rows above the launch floor of {floor * 1e6:.0f} us"
            )
        return AttentionTable(sms, floor, timing, prefill, decode)

    def prefill_seconds(self, heads: int, head_dim: int, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of causal attention of `chunks` (new tokens, tokens before them) in one kernel."""
        tiles = [tile for new, before in chunks for tile in causal_tiles(new, before)]
        if not tiles:
            return 0.0
        waves = _waves(tiles, heads, self.sms)
        start, wave_start, token = self.prefill
        return start + wave_start * waves.number + token * head_dim / HEAD_DIM * waves.keys

    def decode_line(self, heads: int, kv_heads: int, head_dim: int, batch: int) -> tuple[float, float]:
        """Seconds of a decode kernel as (intercept, slope): intercept + slope * total context in tokens.

        Heads that were not measured take the constants of the nearest count of KV heads among those that are
        grouped alike (several queries a key, or one), else among all.
        """
        constants = self.decode.get((heads, kv_heads)) or self._nearest(heads, kv_heads)
        return constants.start, constants.slope(kv_heads, head_dim, batch)

    def call_seconds(self, row: Row) -> float:
        """What the table would show for a call, its launch included: for comparison with measured rows."""
        if row.phase == "decode":
            start, slope = self.decode_line(row.heads, row.kv_heads, row.head_dim, row.batch)
            kernel = start + slope * row.batch * row.kv_len
        else:
            waves = _waves(_tiles_of(row), row.heads, self.sms)
            keys = waves.keys * row.head_dim / HEAD_DIM
            kernel = self.prefill.start + self.prefill.wave_start * waves.number + self.prefill.token * keys
        return max(self.launch_floor, kernel + self.timing_seconds)

    def _nearest(self, heads: int, kv_heads: int) -> Decode:
        alike = [known for known in self.decode if (known[0] > known[1]) == (heads > kv_heads)]
        nearest = min(alike or self.decode, key=lambda known: (abs(math.log(known[1] / kv_heads)), known))
        return self.decode[nearest]


class _Waves(NamedTuple):
    number: int
    keys: int  # sum over the waves of the longest tile's keys


def _waves(tiles: Sequence[int], heads: int, sms: int) -> _Waves:
    """The schedule of `tiles` (keys each) for every head on `sms`, longest first, one block an SM at a time."""
    ordered = sorted(tiles, reverse=True)
    count = math.ceil(len(ordered) * heads / sms)
    return _Waves(count, sum(ordered[wave * sms // heads] for wave in range(count)))


def causal_tiles(new: int, before: int) -> list[int]:
    """Keys that each tile of `new` queries sees after `before` cached tokens."""
    return [before + min(new, (tile + 1) * TILE) for tile in range(math.ceil(new / TILE))]


def _tiles_of(row: Row) -> list[int]:
    if row.phase == "prefill_causal":
        return row.batch * causal_tiles(row.q_len, row.kv_len - row.q_len)
    return row.batch * [row.kv_len] * math.ceil(row.q_len / TILE)


def _least_relative_squares(columns: Sequence[np.ndarray], seconds: np.ndarray) -> tuple[float, ...]:
    scaled = np.stack(columns, axis=1) / seconds[:, None]
    return tuple(float(x) for x in np.linalg.lstsq(scaled, np.ones(len(seconds)), rcond=None)[0])


def _fit_decode(rows: Sequence[Row]) -> Decode:
    """Fit start + max(bytes / bandwidth, token * kv_len), alternating between regimes and constants.

    Where no row is bound by its sequence's length, `token` is the most that the fastest row allows.
    """
    seconds = np.array([row.seconds for row in rows])
    lengths = np.array([row.kv_len * row.head_dim / HEAD_DIM for row in rows])
    read = np.array([row.batch * row.kv_len * 2 * DTYPE_BYTES * row.kv_heads * row.head_dim for row in rows])
    walking = np.zeros(len(rows), bool)
    for _ in range(len(rows)):
        columns = [np.ones(len(rows)), np.where(walking, 0, read), np.where(walking, lengths, 0)]
        start, byte, token = _least_relative_squares(columns, seconds)
        if not walking.any():
            token = float(np.min((seconds - start) / lengths))
        before, walking = walking, token * lengths > byte * read
        if (walking == before).all() or walking.all():
            break
    return Decode(start, 1 / byte, token)
