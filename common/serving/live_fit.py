"""Does the simulator predict a live run? Fit the seconds of its iterations, simulate, and set the two side by side.

The fit is by least squares on relative errors, without iterations that something else on the machine held up. Fit on
one run and predict another one: that the simulator repeats the run it was fitted to says little.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from common.serving.batch import Scheduler
from common.serving.clients import Clients
from common.serving.engine import Instance, simulate
from common.serving.latency import INFINITY, LatencyModel, Line
from common.serving.live import Iteration
from common.serving.memory import KVMemory
from common.serving.metrics import SLO, attainment, token_gaps
from common.serving.trace import Trace
from common.serving.workload import Workload

INTERRUPTED = 2.0  # times its fitted seconds: an iteration that took longer shared the core with somebody
ROUNDS = 6  # of fitting; four give three digits


@dataclass(frozen=True)
class LiveLatency:
    """Seconds of an iteration of the live engine, linear in what it computes.

    decode: (constant, per sequence, per token of context) of iterations that only decode.
    mixed: (constant, per prompt token, per chunk, per pair of a new token and one that it may attend to, per decoding
    sequence, per token of their context) of iterations with chunks of prompts.
    """

    decode: tuple[float, float, float]
    mixed: tuple[float, float, float, float, float, float]
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        """See LatencyModel."""
        if chunks:
            seconds = float(np.dot(self.mixed, _work(chunks, decodes, context)))
        else:
            constant, per_sequence, per_token = self.decode
            seconds = constant + per_sequence * decodes + per_token * context
        return seconds, seconds

    def decode_line(self, decodes: int, context: int) -> Line:
        """See LatencyModel: one line for every context."""
        constant, per_sequence, per_token = self.decode
        return Line(constant + per_sequence * decodes, per_token, INFINITY)


def _work(chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, ...]:
    tokens = sum(new for new, _ in chunks)
    pairs = sum(new * (new + cached) for new, cached in chunks)
    return 1.0, tokens, len(chunks), pairs, decodes, context


def fit(iterations: Iterable[Iteration]) -> LiveLatency:
    """Coefficients, none negative, that describe the iterations of one or several runs on this machine.

    Where no iteration had both chunks and decodes, decodes cost beside a chunk what they cost alone. ValueError where
    there is no iteration that only decodes, or none with a chunk.
    """
    log = list(iterations)
    pure = [each for each in log if not each.chunks]
    mixed = [each for each in log if each.chunks]
    if not pure or not mixed:
        raise ValueError("a fit needs iterations that only decode, and iterations with chunks of prompts")
    decode = _least_squares([(1.0, each.decodes, each.context) for each in pure], pure)
    work = np.array([_work(each.chunks, each.decodes, each.context) for each in mixed])
    if any(each.decodes for each in mixed):
        return LiveLatency((*decode,), (*_least_squares(work, mixed),))  # type: ignore[arg-type]
    alone = _least_squares(work[:, :4], mixed)
    return LiveLatency((*decode,), (*alone, *decode[1:]))  # type: ignore[arg-type]


def _least_squares(rows: Sequence[Sequence[float]] | np.ndarray, iterations: list[Iteration]) -> list[float]:
    """Coefficients of the iterations' seconds by least squares on measured over fitted seconds.

    Weighted by the fitted seconds of the round before; what took over twice these was interrupted, and is left out.
    """
    design = np.asarray(rows, dtype=float)
    seconds = np.array([each.seconds for each in iterations])
    fitted = seconds
    for _ in range(ROUNDS):
        used = seconds < INTERRUPTED * fitted
        weight = 1 / fitted[used]
        coefficients = _not_negative(design[used] * weight[:, None], seconds[used] * weight)
        fitted = design @ coefficients
    return [float(each) for each in coefficients]


def _not_negative(design: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares without negative coefficients: the worst one is left out (zero) until there is none."""
    scale = np.maximum(np.abs(design).max(axis=0), 1e-30)
    kept = np.arange(design.shape[1])
    while True:
        found, *_ = np.linalg.lstsq(design[:, kept] / scale[kept], wanted, rcond=1e-10)
        if np.all(found >= 0):
            break
        kept = np.delete(kept, np.argmin(found))
    coefficients = np.zeros(design.shape[1])
    coefficients[kept] = found / scale[kept]
    return coefficients


def copy_seconds_per_token(iterations: Iterable[Iteration]) -> float:
    """Seconds to swap the keys and values of one token either way; 0 where nothing was swapped."""
    copies = [(each.copied, each.copy_seconds) for each in iterations if each.copied]
    return sum(seconds for _, seconds in copies) / max(1, sum(tokens for tokens, _ in copies))


def predict(
    workload: Workload,
    latency: LatencyModel,
    scheduler: Scheduler,
    memory: KVMemory,
    *,
    clients: Clients | None = None,
    host_blocks: int = 0,
    copy_seconds: float = 0.0,
) -> Trace:
    """Simulate what `serve` runs. memory: a fresh one; copy_seconds: of a token, either way."""
    return simulate(
        workload,
        lambda loop: Instance(
            loop,
            latency,
            memory,
            scheduler,
            host_blocks=host_blocks,
            swap_seconds_per_block=copy_seconds * memory.block_tokens,
            records_tokens=True,
        ),
        clients,
    )


@dataclass(frozen=True)
class Row:
    """One metric of a run as measured and as simulated; `unit` is "s", "1/s" or "" for a share."""

    metric: str
    unit: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative; of a share, the difference."""
        difference = self.predicted - self.measured
        return difference if not self.unit else difference / self.measured


def compare(measured: Trace, predicted: Trace, slo: SLO) -> list[Row]:
    """The error table: attainment, tokens a second, and medians and tails of the latencies."""
    pairs = measured, predicted

    def row(metric: str, unit: str, values: list[float]) -> Row:
        return Row(metric, unit, *values)

    return [
        row("attainment", "", [attainment(trace, slo) for trace in pairs]),
        row("throughput, tokens", "1/s", [_throughput(trace) for trace in pairs]),
        row("TTFT P50", "s", [float(np.quantile(trace.ttft, 0.5)) for trace in pairs]),
        row("TTFT P99", "s", [float(np.quantile(trace.ttft, 0.99)) for trace in pairs]),
        row("TPOT P50", "s", [float(np.quantile(trace.tpot, 0.5)) for trace in pairs]),
        row("gap P99", "s", [float(np.quantile(token_gaps(trace), 0.99)) for trace in pairs]),
    ]


def _throughput(trace: Trace) -> float:
    """Output tokens a second, from the first arrival to the last token."""
    return float(trace.output.sum() / (trace.finish.max() - trace.arrival.min()))
