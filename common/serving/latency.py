"""What a latency model answers, and the fitted quadratic form published with DistServe's code.

Every model is piecewise linear in the total context of a decode batch. That is what lets the engine sum a
whole stretch of decode iterations in closed form.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from common.serving.models import ModelShape

INFINITY = math.inf


class Line(NamedTuple):
    """Seconds of one decode iteration, `intercept + slope * context`, while context < until (tokens)."""

    intercept: float
    slope: float
    until: float


class LatencyModel(Protocol):
    """How long one iteration takes on an instance whose layers are cut into `stages` pipeline stages."""

    @property
    def stages(self) -> int: ...

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """Seconds of one iteration on the first pipeline stage, and on each later one.

        chunks: (new tokens, tokens already cached) of each sequence that is being prefilled.
        decodes: sequences that decode one token. context: their total KV tokens, this step's included.
        """

    def decode_line(self, decodes: int, context: int) -> Line:
        """The line that gives iteration([], decodes, c)[0] exactly for context <= c < until. One stage only."""


@dataclass(frozen=True)
class FittedLatency:
    """Latencies from least-squares coefficients, in the form of DistServe's appendix and simulator.

    prefill of lengths l:    a + b * sum(l) + c * sum(l^2)
    decode with contexts x:  a + b * sum(x) + c * n, another set from `large_batch` sequences on
    With p stages the fit is divided by p; a prefill stage adds `stage_seconds * p`; the first stage adds
    host work of `host_seconds + host_seconds_per_token * tokens in flight`.
    A chunk of q tokens behind p cached ones costs c * ((p + q)^2 - p^2), so that the chunks of a prompt
    sum to the whole. A mixed batch has no published fit: its decode tokens join the prefill's linear
    layers (b) and read their context at the decode fit's b (inferred).
    """

    prefill: tuple[float, float, float]  # seconds, per token, per token^2
    decode_small: tuple[float, float, float]  # seconds, per context token, per sequence
    decode_large: tuple[float, float, float]
    large_batch: int = 95  # sequences; decoding_large_small_bs_threshold of the published profiles
    stages: int = 1
    stage_seconds: float = 1e-3  # "1 * pp" ms in the published simulator's estimator
    host_seconds: float = 2e-3  # base overhead of its first-stage workers
    host_seconds_per_token: float = 1e-7

    def _decode(self, decodes: int) -> tuple[float, float, float]:
        return self.decode_small if decodes < self.large_batch else self.decode_large

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        in_flight = context - decodes
        if chunks:
            constant, per_token, per_square = self.prefill
            tokens = squares = 0
            for new, cached in chunks:
                tokens += new
                squares += new * (new + 2 * cached)
                in_flight += new + cached
            seconds = constant + per_token * (tokens + decodes) + per_square * squares
            if decodes:
                seconds += self._decode(decodes)[1] * context
            stage = seconds / self.stages + self.stage_seconds * self.stages
        else:
            constant, per_token, per_sequence = self._decode(decodes)
            stage = (constant + per_token * context + per_sequence * decodes) / self.stages
        return stage + self.host_seconds + self.host_seconds_per_token * in_flight, stage

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel: one line for every context."""
        constant, per_token, per_sequence = self._decode(decodes)
        return Line(
            constant + per_sequence * decodes + self.host_seconds - self.host_seconds_per_token * decodes,
            per_token + self.host_seconds_per_token,
            INFINITY,
        )


FITS = Path(__file__).with_name("a100_fits.csv")  # seconds; see its first line for the source
CAPACITIES = Path(__file__).with_name("a100_kv_tokens.csv")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _load_fits() -> dict[tuple[str, str, int], FittedLatency]:
    fits = {}
    for row in _rows(FITS):
        names = ("prefill", "decode_small", "decode_large")
        sets = {name: tuple(float(row[f"{name}_{c}"]) for c in "abc") for name in names}
        key = (row["engine"], row["model"], int(row["tensor_parallel"]))
        fits[key] = FittedLatency(**sets, large_batch=int(row["large_batch"]))  # type: ignore[arg-type]
    return fits


def _load_capacities() -> dict[tuple[str, int, int], int]:
    return {
        (row["model"], int(row["tensor_parallel"]), int(row["stages"])): int(row["kv_tokens"])
        for row in _rows(CAPACITIES)
    }


_FITS = _load_fits()
_CAPACITIES = _load_capacities()


def a100_latency(engine: str, model: str, tensor_parallel: int, stages: int = 1) -> FittedLatency:
    """Published A100-80GB coefficients of an engine ("distserve" or "vllm") for OPT-13B or OPT-66B.

    Raises KeyError naming the published combinations. Source: LLMServe/DistServe, simdistserve/estimators.
    """
    try:
        return replace(_FITS[engine, model, tensor_parallel], stages=stages)
    except KeyError:
        known = ", ".join(f"{e} {m} TP{t}" for e, m, t in sorted(_FITS))
        raise KeyError(
            f"no published fit for {engine} {model} TP{tensor_parallel}; there is {known}"
        ) from None


def a100_kv_tokens(model: str, tensor_parallel: int, stages: int) -> int | None:
    """KV capacity in tokens on A100-80GB as profiled by DistServe's authors; None where it does not fit."""
    return _CAPACITIES.get((model, tensor_parallel, stages))


def scaled_fit(fit: FittedLatency, shape: ModelShape, to: ModelShape) -> FittedLatency:
    """Coefficients for a model without a published fit, from a sibling's (inferred; never for a headline).

    Follows the appendix form of the paper: prefill's linear part grows with GEMM work (parameters), its
    quadratic part and decode's context part with attention (layers x hidden), decode's constant with the bytes
    of weights that an iteration reads, its part per sequence with GEMM work.
    """
    gemm = to.parameters / shape.parameters
    attention = to.layers * to.hidden / (shape.layers * shape.hidden)
    return replace(
        fit,
        prefill=(fit.prefill[0] * gemm, fit.prefill[1] * gemm, fit.prefill[2] * attention),
        decode_small=(
            fit.decode_small[0] * gemm,
            fit.decode_small[1] * attention,
            fit.decode_small[2] * gemm,
        ),
        decode_large=(
            fit.decode_large[0] * gemm,
            fit.decode_large[1] * attention,
            fit.decode_large[2] * gemm,
        ),
    )
