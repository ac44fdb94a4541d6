"""Speed, scaling and memory of the serving simulator, and a cross-check with the one published with DistServe.

    python benchmarks/serving_simulator.py                              # speed per policy, scaling, memory
    python benchmarks/serving_simulator.py --largest 1000000            # scaling up to a million requests
    python benchmarks/serving_simulator.py --simdistserve CHECKOUT      # the same requests through LLMServe/DistServe

Seconds are processor time of one core. The cross-check needs `pip install simpy` and a checkout of the repository.
"""

import argparse
import contextlib
import io
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common.serving.cluster import LeastLoad, Replicas
from common.serving.engine import Instance, simulate
from common.serving.latency import a100_kv_tokens, a100_latency
from common.serving.memory import PagedMemory, ReservedMemory
from common.serving.models import model
from common.serving.schedulers import ChunkedPrefill, IterationLevel, PrefillFirst, RequestLevel
from common.serving.trace import Trace
from common.serving.workload import Workload
from papers.distserve.deployment import Parallelism, Placement, Profile, disaggregated
from papers.fastgen.splitfuse import DynamicSplitFuse
from papers.sarathi_serve.schedulers import StallFree

KV_TOKENS = a100_kv_tokens("opt-13b", 1, 1) or 0
RATE = 2.0  # requests/s on one A100: below the capacity of every policy but request-level batching
REFERENCE_RATE = (
    6.0  # of the cross-check: 2,000 requests, mean prompt 249, mean output 234, OPT-13B, prefill TP2
)


def requests(count: int, rate: float, seed: int = 0) -> Workload:
    """Poisson arrivals; lognormal lengths with means of about 245 prompt and 225 output tokens."""
    rng = np.random.default_rng(seed)
    return Workload(
        np.cumsum(rng.exponential(1 / rate, count)),
        np.clip(rng.lognormal(5.1, 0.9, count), 4, 1600).astype(np.int64),
        np.clip(rng.lognormal(5.1, 0.8, count), 2, 900).astype(np.int64),
    )


POLICIES = {
    "request-level": (RequestLevel(max_sequences=32), ReservedMemory),
    "iteration-level (Orca)": (IterationLevel(), ReservedMemory),
    "prefill-first (vLLM)": (PrefillFirst(), PagedMemory),
    "chunked prefill (Sarathi)": (ChunkedPrefill(budget=512), PagedMemory),
    "stall-free (Sarathi-Serve)": (StallFree(512), PagedMemory),
    "dynamic SplitFuse (FastGen)": (DynamicSplitFuse(), lambda tokens: PagedMemory(tokens, 16, 0.0)),
}


def colocated(workload: Workload, policy: str) -> tuple[Trace, float]:
    """A run on one OPT-13B instance, and its processor seconds."""
    scheduler, memory = POLICIES[policy]
    latency = a100_latency("vllm", "opt-13b", 1)
    start = time.process_time()
    trace = simulate(
        workload, lambda loop: Replicas([Instance(loop, latency, memory(KV_TOKENS), scheduler)], LeastLoad())
    )
    return trace, time.process_time() - start


def speed() -> None:
    print("policy                       generated tokens   seconds   tokens/s and core   s per 1M tokens")
    for policy in POLICIES:
        workload = requests(5000, RATE)
        seconds = min(colocated(workload, policy)[1] for _ in range(3))
        tokens = int(workload.output.sum())
        print(
            f"{policy:28} {tokens:16,} {seconds:9.3f} {tokens / seconds:19,.0f} {1e6 * seconds / tokens:17.3f}",
            flush=True,
        )


def one_size(count: int) -> None:
    """Seconds and peak memory for `count` requests, in a process of its own."""
    workload = requests(count, RATE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, seconds = colocated(workload, "prefill-first (vLLM)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(count, seconds, peak * 1024, (peak - before) * 1024)


def scaling(largest: int) -> None:
    counts = [
        count for count in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000) if count <= largest
    ]
    print("\nrequests      seconds   us/request   peak memory (MiB)")
    seconds = []
    for count in counts:
        answer = subprocess.run(
            [sys.executable, __file__, "--one-size", str(count)], capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append(float(answer[1]))
        print(
            f"{count:9,} {seconds[-1]:11.3f} {1e6 * seconds[-1] / count:12.1f} {float(answer[2]) / 2**20:19.0f}",
            flush=True,
        )
    slope = np.polyfit(np.log(counts), np.log(seconds), 1)[0]
    print(f"slope of seconds against requests on log-log axes: {slope:.3f}")


def cross_check(checkout: Path) -> None:
    """Our disaggregated system against simdistserve: same requests and coefficients, transfers free in both."""
    sys.path.insert(0, str(checkout))
    print(
        "\nSeconds until the latencies of all requests are known (in brackets: simdistserve's event loop alone)."
    )
    print(
        f"{'placement':34} theirs         ours         ratio   first token: median, max   latency: median, max"
    )
    cases = {
        "prefill TP2 + decode TP1": Placement(Parallelism(2), Parallelism(1)),
        "prefill TP1 + decode TP1": Placement(Parallelism(1), Parallelism(1)),
        "prefill TP2xPP2 + decode TP2xPP2": Placement(Parallelism(2, 2), Parallelism(2, 2)),
        "prefill TP1 + decode TP1xPP4": Placement(Parallelism(1), Parallelism(1, 4)),
    }
    for name, placement in cases.items():
        rate = REFERENCE_RATE if placement.prefill.tensor == 2 else 4.0
        workload = requests(2000, rate)
        runs = [_simdistserve(workload, placement) for _ in range(2)]
        first, finish, theirs, events = min(runs, key=lambda run: run[2])
        traces = [_ours(workload, placement) for _ in range(5)]
        trace, ours = traces[0][0], min(seconds for _, seconds in traces)
        off_first = np.abs(trace.first_token - first) / (first - workload.arrival)
        off_finish = np.abs(trace.finish - finish) / (finish - workload.arrival)
        offs = "   ".join(f"{np.median(off):9.1e} {off.max():9.1e}" for off in (off_first, off_finish))
        ratios = f"{theirs / ours:5.1f} ({events / ours:.1f})"
        print(f"{name:34} {theirs:5.2f} ({events:.2f}) {ours:7.3f} {ratios:>13}   {offs}", flush=True)
    print(
        "With pipelined decoding the two differ by design: simdistserve lets whatever waits at the first stage\n"
        "form one batch, so that micro-batches merge; ours keeps one micro-batch a stage, in turn, as DistServe's\n"
        "engine does, and its first stage, which carries the host's 2 ms an iteration, then bounds the round.\n"
        "With pipelined prefill ours holds at most one batch a stage in flight, simdistserve any number, so that\n"
        "about one request in a hundred is batched with others."
    )


def _ours(workload: Workload, placement: Placement) -> tuple[Trace, float]:
    unlimited = (
        10**7
    )  # simdistserve bounds neither a prefill batch nor a decode batch, and its transfers are free
    profile = Profile(
        shape=model("opt-13b"),
        latency=lambda p: a100_latency("distserve", "opt-13b", p.tensor, p.stages),
        kv_tokens=lambda p: a100_kv_tokens("opt-13b", p.tensor, p.stages),
        prefill_tokens=unlimited,
        link_bytes_per_s=1e30,
        max_sequences=unlimited,
    )
    start = time.process_time()
    trace = simulate(workload, lambda loop: disaggregated(profile, placement, loop))
    return trace, time.process_time() - start


def _simdistserve(workload: Workload, placement: Placement) -> tuple[np.ndarray, np.ndarray, float, float]:
    """First-token and finish times; processor seconds until all latencies are known, and of the events alone."""
    import simpy
    from simdistserve.base.organize_data import (
        calculate_per_request_latency,
        organize_request_df,
        organize_request_event_df,
    )
    from simdistserve.base.request import Request
    from simdistserve.base.scheduler import put_requests_with_interarrivals
    from simdistserve.base.worker import WorkerConfig
    from simdistserve.clusters.disagg import DisaggCluster
    from simdistserve.constants import ModelTypes
    from simdistserve.estimators.memory_estimator import get_max_num_tokens

    opt = ModelTypes.model_str_to_object("facebook/opt-13b")
    prefill, decode = placement.prefill, placement.decode
    environment = simpy.Environment()
    cluster = DisaggCluster(
        env=environment,
        PP_prefill=prefill.stages,
        PP_decode=decode.stages,
        worker_configs=WorkerConfig(
            model_type=opt,
            TP=prefill.tensor,
            TP_Prefill=prefill.tensor,
            TP_Decode=decode.tensor,
            prefill_max_batch_size=10**7,
            decode_max_batch_size=10**7,
            prefill_max_tokens=get_max_num_tokens(opt, prefill.tensor, prefill.stages),
            decode_max_tokens=get_max_num_tokens(opt, decode.tensor, decode.stages),
            enable_chunked_prefill=False,
            engine_type="distserve",
        ),
    )
    # Their output counts the tokens after the first one; ours counts all.
    served = [
        Request(env=None, req_id=index, prefill_length=int(prompt), output_lens=int(output) - 1)
        for index, (prompt, output) in enumerate(zip(workload.prompt, workload.output, strict=True))
    ]
    gaps = (np.diff(workload.arrival, prepend=0.0) * 1000).tolist()
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        cluster.run()
        put_requests_with_interarrivals(environment, cluster.scheduler, gaps, served)
        environment.run()
    events_only = time.process_time() - start
    table = organize_request_event_df(served)
    calculate_per_request_latency(table, organize_request_df(served).output_lens)
    seconds = time.process_time() - start
    first = [next(entry[0] for entry in request.log if entry[1] == "wait_decode") for request in served]
    finish = [max(entry[0] for entry in request.log if entry[1] == "exit_system") for request in served]
    return np.array(first) / 1000, np.array(finish) / 1000, seconds, events_only


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=100_000, help="most requests of the scaling run")
    parser.add_argument("--simdistserve", type=Path, help="checkout of LLMServe/DistServe to compare with")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_size:
        one_size(arguments.one_size)
        return
    speed()
    scaling(arguments.largest)
    if arguments.simdistserve:
        cross_check(arguments.simdistserve)


if __name__ == "__main__":
    main()
