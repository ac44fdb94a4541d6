"""Does the simulator predict a real system? (paper, Section 6.4, Table 2)

The two-process system and its colocated rival run for real on this machine, and every iteration is logged. The
paper's latency form is fitted to the log by least squares, and the simulator predicts each run with the fit to all
*other* runs of its system, so that no run predicts itself. What is compared is attainment, in percentage points, over
a ladder of objectives: at a single one, half of the requests may stand on one edge. Every load is served twice, since
a simulator cannot be nearer to a real run than the real run is to itself. Rates and objectives follow a fixed rule,
whatever the real system does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from common.distributed.launch import launch
from common.lab.runtime import Observations, Runtime
from common.models.decoder import Decoder
from common.serving.engine import Instance, System, simulate
from common.serving.latency import FittedLatency
from common.serving.loop import DOWNSTREAM, EventLoop
from common.serving.memory import PagedMemory
from common.serving.metrics import SLO, attainment
from common.serving.schedulers import PrefillFirst
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.distserve.config import Config
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
TURNS = (("colocated", 0), ("disaggregated", 0), ("disaggregated", 1), ("colocated", 1))
KV_BYTES = 2 * MODEL.layers * MODEL.hidden * 4  # of one token, float32
MEAN_PROMPT, MEAN_OUTPUT, BATCH = (
    128,
    24,
    8,
)  # of the requests below, and the decode batch that capacities assume
# Shape of the objectives: the paper's chat objectives are 5 to 7 times what its coefficients give an idle OPT-13B or
# OPT-66B for a mean prompt, and 3 to 4 times its decode iteration at BATCH; the tighter of each.
TTFT_FACTOR, TPOT_FACTOR = 5.0, 3.0
# Both objectives are scaled from a quarter to four times that, by the square root of two: the paper's scale axis.
LADDER = tuple(2 ** (step / 2) for step in range(-4, 5))
WRONG = 1.5  # times the prefill slope: a simulator that must be told from the fitted one
GUESS = 50.0  # percent: who knows nothing says this of every run and objective
CALIBRATION = -1  # in place of a seed: a load that only the fits see
SECONDS_A_REQUEST = 2.0  # far more than any takes: serving that is later than this hangs


@dataclass(frozen=True)
class Fit:
    """Seconds on this machine: both phases (see FittedLatency), and a copy as constant + per byte."""

    latency: FittedLatency
    copy_seconds: float = 0.0
    bytes_per_s: float = 1e12


@dataclass(frozen=True)
class RealRun:
    """One served load: what really happened, per request and per iteration."""

    system: str  # of SYSTEMS
    level: float  # of the system's capacity
    seed: int
    turn: int  # every load is served twice, 0 and 1
    load: Load
    served: Served
    disturbed: float  # share of the time that a process was kept from its core


def draw_load(rng: np.random.Generator, requests: int) -> Load:
    """Poisson arrivals at one request a second; prompts of 16 to 240 tokens, outputs of 8 to 40."""
    return Load(
        np.cumsum(rng.exponential(1.0, requests)).tolist(),
        rng.integers(16, 241, requests).tolist(),
        rng.integers(8, 41, requests).tolist(),
    )


def measure(loads: dict[int, Load], levels: tuple[float, ...]) -> list[RealRun]:
    """Serve every load twice at every level of capacity on both systems, in turn (A B B A), in two real processes.

    loads: by seed; one under CALIBRATION joins the fits alone. Raises RankFailed naming the process that failed.
    """
    requests = sum(len(load.arrival) for load in loads.values()) * len(levels) * len(TURNS)
    first, second = launch(_both, 2, (loads, levels), seconds=60 + SECONDS_A_REQUEST * requests)
    runs = []
    for (system, level, seed, turn, load, ours, disturbed), theirs in zip(first, second, strict=True):
        served = ours
        if system == "disaggregated":  # a request ends in one process; the other has -1, or no tokens, for it
            served = Served(
                ours.first_token,
                [max(a, b) for a, b in zip(ours.finish, theirs.finish, strict=True)],
                [a or b for a, b in zip(ours.tokens, theirs.tokens, strict=True)],
                ours.prefills,
                theirs.decodes,
                theirs.copies,
            )
        runs.append(RealRun(system, level, seed, turn, load, served, disturbed))
    return runs


def _both(rank: int, world: int, loads: dict[int, Load], levels: tuple[float, ...]) -> list:  # type: ignore[type-arg]
    """What each process does; of a run, rank 0 answers all of a RealRun, rank 1 what it served."""
    model, limits, channels = build_model(), Limits(), Channels()
    idle = torch.tensor([time_prefill(model, (MEAN_PROMPT,)), time_decode(model, BATCH, MEAN_PROMPT)])
    dist.broadcast(idle, 0)
    answers: list = []  # type: ignore[type-arg]
    for seed, load in loads.items():
        for level in levels:
            for system, turn in TURNS:
                rate = level * capacity(float(idle[0]), float(idle[1]), system)
                timed = replace(load, arrival=[at / rate for at in load.arrival])
                disturbed, served = _serve(rank, system, model, timed, limits, channels)
                answers.append((system, level, seed, turn, timed, served, disturbed) if rank == 0 else served)
    return answers


def capacity(prefill: float, decode: float, system: str) -> float:
    """Requests/s at which the busiest process would be busy all the time.

    prefill, decode: seconds of a mean prompt and of an iteration of BATCH sequences on an idle machine.
    """
    decode *= (MEAN_OUTPUT - 1) / BATCH
    return 1 / (prefill + decode) if system == "colocated" else 1 / max(prefill, decode)


def _serve(
    rank: int, system: str, model: Decoder, load: Load, limits: Limits, channels: Channels
) -> tuple[float, Served]:
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
    return float(share), served


def _seconds_waited() -> float:
    """How long this thread has been ready to run without a core so far (Linux; 0 elsewhere)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def fit_without(runs: Sequence[RealRun], left_out: RealRun) -> Fit:
    """The fit to the iterations of all other runs of the same system. ValueError where there is no other."""
    others = [r.served for r in runs if r.system == left_out.system and r.seed != left_out.seed]
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


def ladder(fit: Fit) -> list[SLO]:
    """The promises that a run is held to: of the paper's shape on this machine, at each scale of LADDER."""
    prompt = fit.latency.iteration([(MEAN_PROMPT, 0)], 0, 0)[0]
    step = fit.latency.iteration([], BATCH, BATCH * MEAN_PROMPT)[0]
    shape = SLO(TTFT_FACTOR * prompt, TPOT_FACTOR * step)
    return [shape.scaled(scale) for scale in LADDER]


def percent(trace: Trace, promises: list[SLO]) -> np.ndarray:
    """Attainment under each promise, percent."""
    return np.array([100 * attainment(trace, slo) for slo in promises])


def bias(guesses: list[np.ndarray], pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """By how much guesses are off in percentage points (root mean square), the real run's own scatter taken out.

    guesses, pairs: of each load, level and system, what is guessed and what both its runs really did, a promise each.
    With scatter of variance v, a guess is off by bias^2 + v on average and two runs differ by 2 v, squared.
    """
    off = np.mean([(guess - run) ** 2 for guess, pair in zip(guesses, pairs, strict=True) for run in pair])
    return float(np.sqrt(max(0.0, off - scatter(pairs) ** 2)))


def scatter(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """How far a real run is from itself: standard deviation of its attainment, percentage points."""
    return float(np.sqrt(np.mean([(one - other) ** 2 for one, other in pairs]) / 2))


def check_simulator(config: Config, lab: Runtime, seen: Observations) -> None:
    """Serve for real in two processes, predict the same by simulation, and compare attainments."""
    key = ("distserve: real runs", config.real_requests, tuple(config.real_levels), lab.seeds)
    runs = lab.once(key, lambda: real_runs(config, lab))
    seen.add("real_rates", len(config.real_levels))
    seen.add("real_systems", len(SYSTEMS))
    for seed in lab.seeds:
        pairs, guesses, wrong = [], [], []
        for first in (run for run in runs if run.seed == seed and run.turn == 0):
            place = (first.system, first.level, seed)
            second = next(run for run in runs if run.turn == 1 and (run.system, run.level, run.seed) == place)
            fit = fit_without(runs, first)
            promises = ladder(fit)
            pairs.append((percent(observed(first), promises), percent(observed(second), promises)))
            guesses.append(percent(predict(first, perturbed(fit, config.perturb)), promises))
            wrong.append(percent(predict(first, perturbed(fit, WRONG)), promises))
            for scale, guess, *real in zip(LADDER, guesses[-1], *pairs[-1], strict=True):
                at: dict[str, str | float] = {"system": first.system, "level": first.level, "scale": scale}
                seen.add("predicted_attainment", guess, seed, **at)
                for turn, value in enumerate(real):
                    seen.add("real_attainment", value, seed, turn=turn, **at)
            seen.add(
                "disturbed",
                max(first.disturbed, second.disturbed),
                seed,
                system=first.system,
                level=first.level,
            )
        seen.add("simulator_bias", bias(guesses, pairs), seed)
        seen.add("repeat_scatter", scatter(pairs), seed)
        seen.add("wrong_fit_bias", bias(wrong, pairs), seed)
        seen.add("constant_guess_bias", bias([np.full(len(LADDER), GUESS)] * len(pairs), pairs), seed)


def real_runs(config: Config, lab: Runtime) -> list[RealRun]:
    """Serve the load of every seed; a single one gets a second load that only its fit sees."""
    streams = {seed: lab.rng(seed, "real") for seed in lab.seeds}
    if len(streams) == 1:
        streams[CALIBRATION] = lab.rng(0, "calibration")
    loads = {seed: draw_load(rng, config.real_requests) for seed, rng in streams.items()}
    return measure(loads, tuple(config.real_levels))


def perturbed(fit: Fit, factor: float) -> Fit:
    """The fit with its prefill slope (seconds per prompt token) off by a factor: what a wrong simulator would say."""
    constant, slope, square = fit.latency.prefill
    return replace(fit, latency=replace(fit.latency, prefill=(constant, factor * slope, square)))
