"""Does the simulator predict a real system? (paper, Section 6.4, Table 2)

The two-process system and its colocated rival run for real on this machine; the simulator runs the same requests with
coefficients fitted, in the paper's own form, to timings of the same functions. What is compared is attainment, in
percentage points. Rates and objectives follow from the fit by a fixed rule, whatever the real system does.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.launch import launch
from common.serving.engine import DOWNSTREAM, EventLoop, Instance, System, simulate
from common.serving.latency import FittedLatency
from common.serving.memory import PagedMemory
from common.serving.metrics import SLO, attainment, smallest_scale
from common.serving.schedulers import PrefillFirst
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.distserve.disaggregation import DecodeBatches, Disaggregated, Link, PrefillBatches
from papers.distserve.two_process import (
    MODEL,
    REPEATS,
    Channels,
    Limits,
    Load,
    Served,
    build_model,
    calibrate_decode,
    calibrate_prefill,
    serve_colocated,
    serve_decode,
    serve_prefill,
)

KV_BYTES = 2 * MODEL.layers * MODEL.hidden * 4  # of one token, float32
MEAN_PROMPT, MEAN_OUTPUT, BATCH = (
    128,
    24,
    8,
)  # of the requests below, and the decode batch that capacities assume
# Shape of the objectives: the paper's chat objectives are 5 to 7 times what its coefficients give an idle OPT-13B or
# OPT-66B for a mean prompt, and 3 to 4 times its decode iteration at BATCH; the tighter of each.
TTFT_FACTOR, TPOT_FACTOR = 5.0, 3.0
PREDICTED = 0.7  # both are scaled until the simulator predicts this attainment, so that it can err both ways
# A run during which other programs kept a process from its core is served again, and the quietest try counts. The
# choice looks at the scheduler's clock alone, never at the requests.
TRIES, DISTURBED = 3, 0.02  # share of the run's time
COPY_LENGTHS = (16, 128, 384)  # tokens whose caches are timed on their way between the processes


@dataclass(frozen=True)
class Fit:
    """Seconds on this machine: both phases (see FittedLatency), and a copy as constant + per byte."""

    latency: FittedLatency
    copy_seconds: float
    bytes_per_s: float


@dataclass(frozen=True)
class RealRun:
    """One served load: what really happened, per request."""

    system: str  # colocated or disaggregated
    level: float  # of the system's capacity
    seed: int
    load: Load
    served: Served
    disturbed: float  # share of the time that other programs kept a process from its core


def draw_load(rng: np.random.Generator, requests: int) -> Load:
    """Poisson arrivals at one request a second; prompts of 16 to 240 tokens, outputs of 8 to 40."""
    return Load(
        np.cumsum(rng.exponential(1.0, requests)).tolist(),
        rng.integers(16, 241, requests).tolist(),
        rng.integers(8, 41, requests).tolist(),
    )


def measure(
    loads: dict[int, Load], levels: tuple[float, ...], seconds: float = 280.0
) -> tuple[dict[str, Fit], list[RealRun]]:
    """Calibrate, then serve every seed's load at every level of capacity on both systems, in two real processes.

    The fit "colocated" is timed with the other process idle, "disaggregated" with both at work, as each system runs.
    Raises RankFailed naming the process that failed.
    """
    first, second = launch(_both, 2, (loads, levels), seconds=seconds)
    runs = [
        RealRun(
            system,
            level,
            seed,
            load,
            Served(ours.first_token, _merge(ours.finish, theirs), _merge(ours.tokens, tokens)),
            disturbed,
        )
        for (system, level, seed, load, ours, disturbed), (theirs, tokens) in zip(
            first[1], second, strict=True
        )
    ]
    return first[0], runs


def _merge(mine: list, theirs: list) -> list:  # type: ignore[type-arg]
    """A request ends in one process; the other has -1, or no tokens, for it."""
    return [a if (a != -1.0 and a != []) else b for a, b in zip(mine, theirs or mine, strict=True)]


def _both(rank: int, world: int, loads: dict[int, Load], levels: tuple[float, ...]):  # type: ignore[no-untyped-def]
    model, limits, channels = build_model(), Limits(), Channels()
    fits = _calibrate(rank, model, channels)
    answers: list = []  # type: ignore[type-arg]
    for seed, load in loads.items():
        for level in levels:
            for system, fit in fits.items():
                timed = replace(load, arrival=[at / (level * capacity(fit, system)) for at in load.arrival])
                tries: list[tuple[float, Served]] = []
                while len(tries) < TRIES and (not tries or tries[-1][0] > DISTURBED):
                    tries.append(_serve(rank, system, model, timed, limits, channels))
                disturbed, served = min(tries, key=lambda one: one[0])
                if rank == 0:
                    answers.append((system, level, seed, timed, served, disturbed))
                else:
                    answers.append((served.finish, served.tokens))
    return (fits, answers) if rank == 0 else answers


def _serve(  # type: ignore[no-untyped-def]
    rank: int, system: str, model, load: Load, limits: Limits, channels: Channels
) -> tuple[float, Served]:
    """Serve a load once; also the share of the time that a process was kept from its core by other programs."""
    start = _agree_on_start(rank)
    waited = _seconds_waited()
    if system == "disaggregated":
        served = (serve_prefill if rank == 0 else serve_decode)(model, load, limits, start, channels)
    else:
        served = serve_colocated(model, load, limits, start) if rank == 0 else Served([], [])
    share = torch.tensor([(_seconds_waited() - waited) / (time.monotonic() - start)])
    dist.all_reduce(share, dist.ReduceOp.MAX)
    return float(share), served


def _seconds_waited() -> float:
    """How long this thread has been ready to run without a core so far (Linux; 0 elsewhere)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _agree_on_start(rank: int) -> float:
    """A moment shortly from now on the clock that both processes share."""
    start = torch.tensor([time.monotonic() + 0.05], dtype=torch.float64)
    dist.broadcast(start, 0)
    return float(start)


def _calibrate(rank: int, model, channels: Channels) -> dict[str, Fit]:  # type: ignore[no-untyped-def]
    """Time both phases alone and side by side, and the copies; every process gets every fit."""
    dist.barrier()
    alone = (calibrate_prefill(model), calibrate_decode(model)) if rank == 0 else None
    dist.barrier()
    aside = calibrate_prefill(model) + calibrate_prefill(model) if rank == 0 else calibrate_decode(model)
    dist.barrier()
    copies = _time_copies(rank, channels)
    everything: list = [None, None]  # type: ignore[type-arg]
    dist.all_gather_object(everything, (alone, aside, copies))
    (alone, prefills, copies), (_, decodes, _) = everything
    constant, per_byte = _least_squares([(1.0, KV_BYTES * n) for n, _ in copies], [s for _, s in copies])
    bytes_per_s = 1 / max(per_byte, 1e-12)
    return {
        "colocated": Fit(fit_latency(*alone), constant, bytes_per_s),
        "disaggregated": Fit(fit_latency(prefills, decodes), constant, bytes_per_s),
    }


def _time_copies(rank: int, channels: Channels) -> list[tuple[int, float]]:
    """(tokens, median seconds from asking for a cache to holding it), measured by the one who asks, known to both."""
    rows = []
    for tokens in COPY_LENGTHS:
        cache = torch.zeros(MODEL.layers, 2, MODEL.heads, tokens, MODEL.head_dim)
        wish = torch.zeros(1, dtype=torch.int64)
        seconds = []
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            if rank == 1:
                dist.send(wish, 0, channels.ask)
                dist.recv(cache, 0, channels.caches)
            else:
                dist.recv(wish, 1, channels.ask)
                dist.send(cache, 1, channels.caches)
            seconds.append(time.perf_counter() - start)
        median = torch.tensor([float(np.median(seconds[1:]))], dtype=torch.float64)
        dist.broadcast(median, 1)
        rows.append((tokens, float(median)))
    return rows


def fit_latency(
    prefills: list[tuple[tuple[int, ...], float]], decodes: list[tuple[tuple[int, int], float]]
) -> FittedLatency:
    """Non-negative least squares in the paper's form: a + b sum(l) + c sum(l^2), and a + b sum(context) + c n."""
    a, b, c = _least_squares(
        [(1.0, float(sum(lengths)), float(sum(x * x for x in lengths))) for lengths, _ in prefills],
        [seconds for _, seconds in prefills],
    )
    decode = _least_squares(
        [(1.0, float(n * context), float(n)) for (n, context), _ in decodes],
        [seconds for _, seconds in decodes],
    )
    steps: tuple[float, float, float] = (decode[0], decode[1], decode[2])
    return FittedLatency(
        (a, b, c), steps, steps, stage_seconds=0.0, host_seconds=0.0, host_seconds_per_token=0.0
    )


def _least_squares(rows: list[tuple[float, ...]], seconds: list[float]) -> list[float]:
    """Coefficients >= 0 that minimise the relative error; a column whose coefficient would be negative is dropped."""
    weights = 1 / np.array(seconds)
    matrix = np.array(rows) * weights[:, None]
    kept = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, kept], np.ones(len(seconds)), rcond=None)[0]
        if np.all(found >= 0):
            break
        kept.pop(int(np.argmin(found)))
    answer = np.zeros(matrix.shape[1])
    answer[kept] = found
    return answer.tolist()


def objectives(run: RealRun, fit: Fit) -> SLO:
    """The promise that a run is held to: of the paper's shape, at the scale that makes the prediction PREDICTED."""
    shape = SLO(TTFT_FACTOR * _prefill_seconds(fit), TPOT_FACTOR * _decode_seconds(fit))
    return shape.scaled(smallest_scale(predict(run, fit), shape, PREDICTED))


def _prefill_seconds(fit: Fit) -> float:
    return fit.latency.iteration([(MEAN_PROMPT, 0)], 0, 0)[0]


def _decode_seconds(fit: Fit) -> float:
    return fit.latency.iteration([], BATCH, BATCH * (MEAN_PROMPT + MEAN_OUTPUT // 2))[0]


def capacity(fit: Fit, system: str) -> float:
    """Requests/s at which the busiest process would be busy all the time, decoding in batches of BATCH."""
    prefill, decode = _prefill_seconds(fit), (MEAN_OUTPUT - 1) * _decode_seconds(fit) / BATCH
    return 1 / (prefill + decode) if system == "colocated" else 1 / max(prefill, decode)


def predict(run: RealRun, fit: Fit) -> Trace:
    """What the simulator says of a real run's requests."""
    limits = Limits()

    def memory() -> PagedMemory:
        return PagedMemory(limits.kv_tokens, block_tokens=1, watermark=0.0)

    def build(loop: EventLoop) -> System:
        if run.system == "colocated":
            return Instance(
                loop, fit.latency, memory(), PrefillFirst(limits.prefill_tokens, limits.max_sequences)
            )
        return Disaggregated(
            loop,
            lambda done: Instance(
                loop, fit.latency, memory(), PrefillBatches(limits.prefill_tokens), on_prefilled=done
            ),
            1,
            lambda done: Instance(
                loop,
                fit.latency,
                memory(),
                DecodeBatches(limits.max_sequences),
                on_begin=done,
                rank=DOWNSTREAM,
            ),
            [Link(fit.bytes_per_s, fit.copy_seconds)],
            KV_BYTES,
            waiting_share=1.0,
        )

    load = run.load
    return simulate(Workload(np.array(load.arrival), np.array(load.prompt), np.array(load.output)), build)


def observed(run: RealRun) -> Trace:
    """What really happened to a run's requests."""
    load, served = run.load, run.served
    return Trace(
        np.array(load.arrival),
        np.array(load.prompt),
        np.array(load.output),
        np.array(served.first_token),
        np.array(served.finish),
        np.zeros(len(load.arrival), dtype=np.int64),
    )


def compare(run: RealRun, fit: Fit, factor: float) -> tuple[float, float]:
    """Attainment of a run in percent: real, and predicted with the fit perturbed by `factor` (1: as it is)."""
    slo = objectives(run, fit)
    return 100 * attainment(observed(run), slo), 100 * attainment(predict(run, perturbed(fit, factor)), slo)


def perturbed(fit: Fit, factor: float) -> Fit:
    """The fit with its prefill slope (seconds per prompt token) off by a factor: what a wrong simulator would say."""
    constant, slope, square = fit.latency.prefill
    return replace(fit, latency=replace(fit.latency, prefill=(constant, factor * slope, square)))
