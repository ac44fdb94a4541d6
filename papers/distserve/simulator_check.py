"""Does the simulator predict a real system? (paper, Section 6.4, Table 2)

The two-process system and its colocated rival run for real on this machine, and every iteration is logged. Every load
is served several times, and what counts of each request is its median. The paper's latency form is fitted by least
squares to the log of *other* seeds of the same system, and the simulator predicts each run's attainment, compared in
percentage points. A shared machine does not keep its speed from one run to the next, and a simulator of serving is no
forecast of that: the fit is taken at the speed of the run in question, a factor a phase measured on every second
iteration of its log (`slowness`); without it the prediction is called blind. Rates and objectives follow a fixed
rule, whatever the real system does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.launch import launch
from common.models.decoder import Decoder
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
    Channels,
    Limits,
    Load,
    Served,
    build_model,
    serve_colocated,
    serve_decode,
    serve_prefill,
    time_decode,
    time_prefill,
)

SYSTEMS = ("colocated", "disaggregated")
KV_BYTES = 2 * MODEL.layers * MODEL.hidden * 4  # of one token, float32
MEAN_PROMPT, MEAN_OUTPUT = 128, 24  # tokens of the requests below
BATCH = 8  # sequences: the decode batch that capacities and objectives assume
# Shape of the objectives: the paper's chat objectives are 5 to 7 times what its coefficients give an idle OPT-13B or
# OPT-66B for a mean prompt, and 3 to 4 times its decode iteration at BATCH; the tighter of each.
TTFT_FACTOR, TPOT_FACTOR = 5.0, 3.0
PREDICTED = (0.5, 0.7, 0.9)  # attainments that both are scaled to by prediction: it can err both ways
CALIBRATION = -1  # in place of a seed: a load that only the fits see
PASSES = 3  # over all loads, so that what disturbs the machine for a while is in one pass of three
SECONDS_A_REQUEST = 2.0  # far more than any takes: serving that is later than this hangs


@dataclass(frozen=True)
class Fit:
    """Seconds on this machine: both phases (see FittedLatency), and a copy as constant + per byte."""

    latency: FittedLatency
    copy_seconds: float = 0.0
    bytes_per_s: float = 1e12


@dataclass(frozen=True)
class RealRun:
    """A load and what really happened each time it was served, per request and per iteration."""

    system: str  # of SYSTEMS
    level: float  # of the system's capacity
    seed: int
    load: Load
    passes: list[Served]
    disturbed: float  # share of the time that a process was kept from its core, median over passes


def draw_load(rng: np.random.Generator, requests: int) -> Load:
    """Poisson arrivals at one request a second; prompts of 16 to 240 tokens, outputs of 8 to 40."""
    return Load(
        np.cumsum(rng.exponential(1.0, requests)).tolist(),
        rng.integers(16, 241, requests).tolist(),
        rng.integers(8, 41, requests).tolist(),
    )


def measure(loads: dict[int, Load], levels: tuple[float, ...]) -> list[RealRun]:
    """Serve every load at every level of capacity on both systems, in turn, in two real processes.

    loads: by seed; one under CALIBRATION joins the fits alone. Raises RankFailed naming the process that failed.
    """
    requests = PASSES * sum(len(load.arrival) for load in loads.values()) * len(levels) * len(SYSTEMS)
    first, second = launch(_both, 2, (loads, levels), seconds=60 + SECONDS_A_REQUEST * requests)
    runs = []
    for (system, level, seed), (load, ours) in first.items():
        _, theirs = second[system, level, seed]
        passes = [_joined(*both) for both in zip(ours, theirs, strict=True)]
        disturbed = float(np.median([share for _, share in ours]))
        runs.append(RealRun(system, level, seed, load, passes, disturbed))
    return runs


def _joined(ours: tuple[Served, float], theirs: tuple[Served, float]) -> Served:
    """What both processes saw of one pass. A request ends in one of them; the other has -1, or no tokens, for it."""
    first, second = ours[0], theirs[0]
    if not second.finish:  # rank 0 served alone
        return first
    return Served(
        first.first_token,
        [max(both) for both in zip(first.finish, second.finish, strict=True)],
        [one or other for one, other in zip(first.tokens, second.tokens, strict=True)],
        first.prefills,
        second.decodes,
        second.copies,
    )


# What a process saw: by system, level and seed, the load as it was timed, and of each pass what it served and the share
# of the time that a process was kept from its core.
_Seen = dict[tuple[str, float, int], tuple[Load, list[tuple[Served, float]]]]


def _both(rank: int, world: int, loads: dict[int, Load], levels: tuple[float, ...]) -> _Seen:
    """What each process does."""
    model, limits, channels = build_model(), Limits(), Channels()
    idle = torch.tensor([time_prefill(model, (MEAN_PROMPT,)), time_decode(model, BATCH, MEAN_PROMPT)])
    dist.broadcast(idle, 0)
    seen: _Seen = {}
    for _ in range(PASSES):
        for seed, load in loads.items():
            for level in levels:
                for system in SYSTEMS:
                    rate = level * capacity(float(idle[0]), float(idle[1]), system)
                    timed = replace(load, arrival=[at / rate for at in load.arrival])
                    _, passes = seen.setdefault((system, level, seed), (timed, []))
                    passes.append(_serve(rank, system, model, timed, limits, channels))
    return seen


def capacity(prefill: float, decode: float, system: str) -> float:
    """Requests/s at which the busiest process would be busy all the time.

    prefill, decode: seconds of a mean prompt and of an iteration of BATCH sequences on an idle machine.
    """
    decode *= (MEAN_OUTPUT - 1) / BATCH
    return 1 / (prefill + decode) if system == "colocated" else 1 / max(prefill, decode)


def _serve(
    rank: int, system: str, model: Decoder, load: Load, limits: Limits, channels: Channels
) -> tuple[Served, float]:
    """Serve a load once; also the share of the time that a process was kept from its core."""
    agreed = torch.tensor([time.monotonic() + 0.05], dtype=torch.float64)  # a clock that both processes share
    dist.broadcast(agreed, 0)
    start = float(agreed)
    waited = _seconds_waited()
    if system == "disaggregated":
        served = (serve_prefill if rank == 0 else serve_decode)(model, load, limits, start, channels)
    else:
        served = serve_colocated(model, load, limits, start) if rank == 0 else Served([], [])
    share = torch.tensor([(_seconds_waited() - waited) / (time.monotonic() - start)])
    dist.all_reduce(share, dist.ReduceOp.MAX)
    return served, float(share)


def _seconds_waited() -> float:
    """How long this thread has been ready to run without a core so far (Linux; 0 elsewhere)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def fit_without(runs: Sequence[RealRun], left_out: RealRun) -> Fit:
    """The fit to the iterations of the other seeds' runs of the same system. ValueError where there is none."""
    others = [
        served
        for run in runs
        if run.system == left_out.system and run.seed != left_out.seed
        for served in run.passes
    ]
    if not others:
        raise ValueError("a fit needs another run of the same system: serve a CALIBRATION load too")
    latency = fit_latency(
        [row for served in others for row in served.prefills],
        [row for served in others for row in served.decodes],
    )
    copies = [row for served in others for row in served.copies]
    if not copies:
        return Fit(latency)
    constant, per_byte = _least_squares(
        [(1.0, float(KV_BYTES * n)) for n, _ in copies], [s for _, s in copies]
    )
    return Fit(latency, constant, 1 / max(per_byte, 1e-12))


def slowness(run: RealRun, fit: Fit) -> tuple[float, float]:
    """Seconds that a run's prefills and its decode iterations took, over what the fit says of them; median over passes.

    Only every second iteration is read, so that the prediction of a run never contains the whole of it.
    """
    iteration = fit.latency.iteration
    prefill, decode = [], []
    for served in run.passes:
        prefills, decodes = served.prefills[::2], served.decodes[::2]
        fitted_prefills = [iteration([(length, 0) for length in lengths], 0, 0)[0] for lengths, _ in prefills]
        fitted_decodes = [iteration([], n, context)[0] for (n, context), _ in decodes]
        prefill.append(sum(seconds for _, seconds in prefills) / sum(fitted_prefills))
        decode.append(sum(seconds for _, seconds in decodes) / sum(fitted_decodes))
    return float(np.median(prefill)), float(np.median(decode))


def at_speed_of(run: RealRun, fit: Fit) -> Fit:
    """The fit at the speed that the machine had during a run."""
    prefill, decode = slowness(run, fit)
    a, b, c = fit.latency.prefill
    constant, per_token, per_sequence = fit.latency.decode_small
    steps = (decode * constant, decode * per_token, decode * per_sequence)
    latency = replace(
        fit.latency, prefill=(prefill * a, prefill * b, prefill * c), decode_small=steps, decode_large=steps
    )
    return replace(fit, latency=latency)


def fit_latency(
    prefills: Sequence[tuple[tuple[int, ...], float]], decodes: Sequence[tuple[tuple[int, int], float]]
) -> FittedLatency:
    """Non-negative least squares in the paper's form: a + b sum(l) + c sum(l^2), and a + b context + c n.

    prefills: (prompt lengths, seconds). decodes: ((sequences, their total context), seconds).
    """
    a, b, c = _least_squares(
        [(1.0, float(sum(lengths)), float(sum(x * x for x in lengths))) for lengths, _ in prefills],
        [seconds for _, seconds in prefills],
    )
    constant, per_token, per_sequence = _least_squares(
        [(1.0, float(context), float(n)) for (n, context), _ in decodes], [seconds for _, seconds in decodes]
    )
    steps = (constant, per_token, per_sequence)
    return FittedLatency(
        (a, b, c), steps, steps, stage_seconds=0.0, host_seconds=0.0, host_seconds_per_token=0.0
    )


def _least_squares(rows: Sequence[tuple[float, ...]], seconds: Sequence[float]) -> list[float]:
    """Coefficients >= 0 of least squared error; a column whose coefficient would be negative is dropped."""
    matrix, kept = np.array(rows), list(range(len(rows[0])))
    scale = np.abs(matrix).max(axis=0)
    while True:
        found = np.linalg.lstsq(matrix[:, kept] / scale[kept], np.array(seconds), rcond=None)[0]
        if np.all(found >= 0):
            break
        kept.pop(int(np.argmin(found)))
    answer = np.zeros(matrix.shape[1])
    answer[kept] = found / scale[kept]
    return answer.tolist()


def predict(run: RealRun, fit: Fit) -> Trace:
    """What the simulator says of a real run's requests."""
    limits = Limits()

    def memory() -> PagedMemory:
        return PagedMemory(limits.kv_tokens, block_tokens=1, watermark=0.0)

    def build(loop: EventLoop) -> System:
        if run.system == "colocated":
            policy = PrefillFirst(limits.prefill_tokens, limits.max_sequences)
            return Instance(loop, fit.latency, memory(), policy)
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
    """What really happened to a run's requests: of each, the median TTFT and the median TPOT over the passes."""
    load = run.load
    arrival, output = np.array(load.arrival), np.array(load.output)
    first = np.median([served.first_token for served in run.passes], axis=0)
    decoding = np.median([np.subtract(one.finish, one.first_token) for one in run.passes], axis=0)
    return Trace(
        arrival, np.array(load.prompt), output, first, first + decoding, np.zeros(len(output), dtype=np.int64)
    )


def objectives(run: RealRun, fit: Fit) -> list[SLO]:
    """The promises that a run is held to: of the paper's shape, at the scales that make the prediction PREDICTED."""
    prompt = fit.latency.iteration([(MEAN_PROMPT, 0)], 0, 0)[0]
    step = fit.latency.iteration([], BATCH, BATCH * MEAN_PROMPT)[0]
    shape = SLO(TTFT_FACTOR * prompt, TPOT_FACTOR * step)
    trace = predict(run, fit)
    return [shape.scaled(smallest_scale(trace, shape, share)) for share in PREDICTED]


def compare(run: RealRun, fit: Fit, factor: float) -> list[tuple[float, float]]:
    """Attainments of a run in percent under each promise: real, and predicted with the fit perturbed by `factor`."""
    trace = predict(run, perturbed(fit, factor))
    return [
        (100 * attainment(observed(run), slo), 100 * attainment(trace, slo)) for slo in objectives(run, fit)
    ]


def perturbed(fit: Fit, factor: float) -> Fit:
    """The fit with its prefill slope (seconds per prompt token) off by a factor: what a wrong simulator would say."""
    constant, slope, square = fit.latency.prefill
    return replace(fit, latency=replace(fit.latency, prefill=(constant, factor * slope, square)))
