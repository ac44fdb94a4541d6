"""What the claims of NanoFlow read: pipelines from the two-stage search, simulated on the operator times of Table 2.

Everything but the traces' draws is deterministic: rows of pipelines carry no seed. Throughput counts prompt and output
tokens together, per GPU, as the paper does.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np

from common.lab.errors import LabError
from common.lab.runtime import Coordinate, Observations, Runtime
from common.serving.workload import Lengths, poisson, read_trace
from common.serving.workload import Workload as Requests
from papers.nanoflow import offload, online
from papers.nanoflow.config import TRACES, Config
from papers.nanoflow.cost_model import (
    ACCELERATORS,
    DEPLOYMENTS,
    LLAMA_2_70B,
    Workload,
    largest_batch,
    memory_over_compute,
    optimal_throughput,
    resource_seconds,
    throughput,
)
from papers.nanoflow.dense_batch import DenseBatch
from papers.nanoflow.interference import ATTENTION_EXPONENT, NETWORK_EXPONENT, measured_streams, naive_gain
from papers.nanoflow.list_schedule import Evaluator
from papers.nanoflow.pipeline_latency import (
    PipelineLatency,
    overlapped_latency,
    sequential_latency,
    workload_context,
)
from papers.nanoflow.pipelines import CONSTANT, PREFILL_ONLY, Case, Result, Switches, solve
from papers.nanoflow.replay import violations
from papers.nanoflow.search import Effort
from papers.nanoflow.stage_two import LEVELS, random_schedule

# Tokens/s of one GPU that TensorRT-LLM reaches on the authors' machines: baseline numbers of the artifact
# (efeslab/Nanoflow). External constants: nothing here measures or simulates that engine.
TENSORRT_LLM = {"512-512": 735.0, "1024-512": 817.0, "512-1024": 636.0}
TENSORRT_LLM_TRACES = {"splitwise": 831.0, "lmsys": 560.0, "sharegpt": 639.0}
MOST_RATE = 80.0  # requests/s that traces are drawn for: beyond what any of the systems sustains
LONGEST = 4096  # tokens of a request that is kept: the context of LLaMA-2
MAP_WORKLOAD = Workload(
    512, 1024
)  # of the T_R map: the longest outputs of Section 6, which press memory most


def run(config: Config, lab: Runtime) -> Observations:
    """Find the pipelines, and collect what the claims and figures read."""
    seen = Observations()
    if config.gpu_batch:
        observe_gpu(config, lab, seen)
        return seen
    observe_arithmetic(config, lab, seen)
    observe_conversations(config, lab, seen)
    if lab.wants(*PIPELINE_METRICS):
        with lab.stopwatch() as watch:
            base = solve(case(config, CONSTANT[1]), lab.map)
        if lab.wants("search_minutes", "search_over_random"):
            observe_search(config, lab, seen, base, watch.seconds)
        observe_schedule(config, lab, seen, base)
        observe_offload(config, seen, base)
        observe_pipelines(config, lab, seen, base)
        observe_traces(config, lab, seen, base)
    return seen


def observe_gpu(config: Config, lab: Runtime, seen: Observations) -> None:
    """A layer in nano-batches on streams of this device, and shares of stand-alone rates beside one another."""
    from papers.nanoflow.gpu_streams import StreamedLayer  # brings torch

    if not lab.wants("gpu_overlap_gain"):
        return
    for seed in lab.seeds:
        layer = StreamedLayer(lab.torch_generator(seed, "streams"), config.gpu_batch, config.gpu_context)
        whole = layer.forward(1, False)
        plain = layer.seconds(lambda layer=layer: layer.forward(1, False))  # type: ignore[misc]
        for parts in (2, 4):
            found = layer.forward(parts, config.overlap)
            error = float((found - whole).abs().max() / whole.abs().max())
            seen.add("gpu_difference", error, seed, parts=parts)
            taken = layer.seconds(lambda layer=layer, parts=parts: layer.forward(parts, config.overlap))  # type: ignore[misc]
            seen.add("gpu_gain_by_parts", plain / taken, seed, parts=parts)
            if parts == 2:
                seen.add("gpu_overlap_gain", plain / taken, seed)
        every = slice(None)
        for part in (8, 4, 2, 1):
            rows = slice(0, max(1, config.gpu_batch // part))
            product, attend = (lambda: layer.product(rows)), (lambda: layer.attention(every))  # noqa: B023
            at = {"rows": rows.stop}
            seen.add("gpu_share", layer.share_beside(product, attend), seed, kernel="GEMM", **at)
            seen.add("gpu_share", layer.share_beside(attend, product), seed, kernel="attention", **at)


PIPELINE_METRICS = (
    *(f"gain_{one.prompt}_{one.output}" for one in (*CONSTANT, PREFILL_ONLY)),
    *(f"share_of_optimum_{one.model.replace('-', '_')}" for one in (LLAMA_2_70B, *DEPLOYMENTS)),
    "nano_batch_only",
    "gain_over_external_constant",
    "search_minutes",
    "search_over_random",
    "replay_violations",
    "numerics_difference",
    "stage_two_over_bound",
    "offload_slowdown",
    "online_rate_gain",
)


def switches(config: Config, network: float = NETWORK_EXPONENT) -> Switches:
    """The part of the configuration that pipelines see."""
    exponents = (1.0, 1.0) if config.gemms_only else (ATTENTION_EXPONENT, network)
    return Switches(
        config.overlap,
        config.duplication,
        config.dependencies,
        config.one_resource,
        config.gemms_only,
        *exponents,
        config.chain,
    )


def case(config: Config, workload: Workload, base: Result | None = None, **changes: float) -> Case:
    """LLaMA-2-70B on a workload; with `base`, starting from its pipeline."""
    effort = Effort(config.splits, config.walks, config.evaluations, config.refined, config.nodes)
    start = (base.pipeline.cuts, base.pipeline.found.choice) if base and base.pipeline.cuts else None
    batch = int(changes.pop("batch", config.batch or LLAMA_2_70B.dense_batch))
    return Case(LLAMA_2_70B, workload, batch, switches(config, **changes), effort, start)


def observe_arithmetic(config: Config, lab: Runtime, seen: Observations) -> None:
    """What needs no pipeline: the T_R map, streams measured on an H100, tokens computed for nothing."""
    if lab.wants("compute_bound_share"):
        bound = []
        for card in ACCELERATORS:
            for one in (LLAMA_2_70B, *DEPLOYMENTS):
                batch = config.map_batch or largest_batch(card, one, MAP_WORKLOAD)
                if not largest_batch(card, one, MAP_WORKLOAD):
                    continue  # the weights do not fit
                ratio = memory_over_compute(card, one, batch)
                seconds = resource_seconds(card, one, batch)
                seen.add("memory_over_compute", ratio, card=card.name, model=one.model)
                seen.add(
                    "network_over_compute",
                    seconds["network"] / seconds["compute"],
                    card=card.name,
                    model=one.model,
                )
                bound.append(ratio < 1)
        seen.add("compute_bound_share", float(np.mean(bound)))
    if lab.wants("naive_overlap_gain"):
        seconds = measured_streams()
        for pair in (name for name in seconds if "+" in name):
            seen.add("streams_gain", naive_gain(pair, seconds), pair=pair)
        seen.add("naive_overlap_gain", naive_gain(config.pair, seconds))


def observe_search(config: Config, lab: Runtime, seen: Observations, base: Result, seconds: float) -> None:
    """How long the search took, and what blind draws reach on the same nano-operations with the same checker."""
    layer, curves = base.pipeline.found.layer, base.case.switches.curves
    minutes = seconds / 60
    if config.search == "exhaustive" and lab.wants("search_minutes"):
        with lab.stopwatch() as watch:
            evaluator = Evaluator(layer, curves)
            for _ in range(200):
                evaluator.period(base.pipeline.found.choice)
        orders = 1.0
        for stream, work in layer.work.items():
            count = sum(op.stream == stream for op in layer.ops)
            orders *= math.factorial(max(0, count - 1)) if work else 1
        minutes = orders * float(len(LEVELS)) ** len(layer.ops) * watch.seconds / 200 / 60
    seen.add("search_minutes", minutes)
    if lab.wants("search_over_random"):
        for seed in lab.seeds:
            drawn = random_schedule(layer, curves, lab.rng(seed, "random schedule"))
            if drawn is None:
                continue
            other = random_schedule(layer, curves, lab.rng(seed, "another random schedule"))
            ours = other if config.search == "random" and other else base.pipeline.found
            seen.add("search_over_random", drawn.schedule.period / ours.schedule.period, seed)


def observe_schedule(config: Config, lab: Runtime, seen: Observations, base: Result) -> None:
    """The base pipeline itself: its bounds, its replay, and a real layer run in its order."""
    found = base.pipeline.found
    for name, period in (
        ("non-overlap", base.sequential),
        ("nano-batch-only", base.nano_batch_only),
        ("stage I", base.pipeline.stage_one.period),
        ("stage II", base.pipeline.period),
        ("fluid bound", base.fluid),
    ):
        seen.add("period_us", period, step=name)
        seen.add("tokens_per_s", throughput(LLAMA_2_70B, period, base.case.batch), step=name)
    seen.add("stage_two_over_bound", base.fluid / base.pipeline.period)
    for place, op in enumerate(found.layer.ops):
        share = found.schedule.shares[place]
        at: dict[str, Coordinate] = {
            "operator": op.operator,
            "stream": op.stream,
            "low": op.low,
            "high": op.high,
        }
        seen.add("op_start_us", found.schedule.starts[place], None, **at)
        seen.add("op_share", share, None, **at)
        length = base.case.switches.curves.seconds(op.stream, op.work, share)
        seen.add("op_length_us", length, None, **at)
    if lab.wants("replay_violations"):
        wrong = violations(found.layer.ops, *found.schedule, base.case.switches.curves.exponents)
        seen.add("replay_violations", len(wrong))
    if lab.wants("numerics_difference"):
        from papers.nanoflow.numerics import largest_difference  # brings torch

        for seed in lab.seeds:
            generator = lab.torch_generator(seed, "layer")
            starts = found.schedule.starts
            seen.add(
                "numerics_difference",
                largest_difference(found.layer, starts, generator, base.case.batch),
                seed,
            )


def observe_pipelines(config: Config, lab: Runtime, seen: Observations, base: Result) -> None:
    """Pipelines of the other workloads, models, exponents and batches, each from the base pipeline where it fits."""
    cases = []
    workloads = [one for one in (CONSTANT[0], CONSTANT[2], PREFILL_ONLY) if lab.wants(_gain(one))]
    if lab.wants("nano_batch_only", "gain_over_external_constant"):
        workloads = list(dict.fromkeys([*workloads, CONSTANT[0], CONSTANT[2]]))
    cases += [case(config, one, base) for one in workloads]
    models = [one for one in DEPLOYMENTS if one.model in config.models and lab.wants(_share(one.model))]
    for one in models:
        changed = case(config, CONSTANT[1], base if one.gpus == LLAMA_2_70B.gpus else None)
        cases.append(changed._replace(deployment=one, batch=config.batch or one.dense_batch))
    sweep = config.exponents if lab.wants("gain_by_exponent") else []
    cases += [case(config, CONSTANT[1], base, network=exponent) for exponent in sweep]
    cases += [case(config, CONSTANT[1], batch=batch) for batch in config.batches]
    solved = lab.map(solve, cases, "pipelines")
    by_workload = {base.case.workload: base}
    for result in solved[: len(workloads)]:
        by_workload[result.case.workload] = result
    for workload, result in by_workload.items():
        seen.add(_gain(workload), result.gain)
        for name, period in (
            ("non-overlap", result.sequential),
            ("nano-batch-only", result.nano_batch_only),
            ("NanoFlow", result.pipeline.period),
            ("fluid bound", result.fluid),
        ):
            rate = throughput(LLAMA_2_70B, period, result.case.batch)
            seen.add("throughput", rate, workload=str(workload), system=name)
    constant = [by_workload[one] for one in CONSTANT if one in by_workload]
    seen.add("nano_batch_only", float(np.mean([one.sequential / one.nano_batch_only for one in constant])))
    if len(constant) == len(CONSTANT):
        ratios = [
            throughput(LLAMA_2_70B, one.pipeline.period, one.case.batch)
            / TENSORRT_LLM[str(one.case.workload)]
            for one in constant
        ]
        seen.add("gain_over_external_constant", float(np.mean(ratios)))
    at = len(workloads)
    for result in (base, *solved[at : at + len(models)]):
        one = result.case.deployment
        best = optimal_throughput(one.model)
        ours = throughput(one, result.pipeline.period, result.case.batch) / best
        seen.add(_share(one.model), ours)
        seen.add("share_of_optimum", ours, model=one.model, system="NanoFlow")
        plain = throughput(one, result.sequential, result.case.batch) / best
        seen.add("share_of_optimum", plain, model=one.model, system="non-overlap")
    at += len(models)
    for exponent, result in zip(sweep, solved[at : at + len(sweep)], strict=True):
        seen.add("gain_by_exponent", result.gain, exponent=exponent, bound="stage II")
        seen.add("gain_by_exponent", result.sequential / result.fluid, exponent=exponent, bound="fluid")
    for result in solved[at + len(sweep) :]:
        seen.add("gain_by_batch", result.gain, batch=result.case.batch)


def observe_traces(config: Config, lab: Runtime, seen: Observations, base: Result) -> None:
    """The three length traces: throughput at their mean lengths, rates within the limit."""
    if not lab.wants("online_rate_gain"):
        return
    means = {name: mean_lengths(name, lab) for name in config.traces}
    cases = [case(config, one, base) for one in means.values()]
    latencies = {}
    for (name, mean), solved in zip(means.items(), lab.map(solve, cases, "pipelines of traces"), strict=True):
        plain = ours = sequential_latency()
        if solved.pipeline.cuts:
            cuts, choice = solved.pipeline.cuts, solved.pipeline.found.choice
            ours, error = overlapped_latency(cuts, choice, solved.case.switches.curves, config.chain, mean)
            seen.add("plane_error", error, trace=name)
        latencies[name] = (plain, ours)
        seen.add("gain_at_trace_lengths", solved.gain, trace=name)
        for system, latency in (("non-overlap", plain), ("NanoFlow", ours)):
            rate = steady_throughput(latency, mean)
            seen.add("trace_throughput", rate, trace=name, system=system)
            ratio = rate / TENSORRT_LLM_TRACES[name]
            seen.add("over_external_constant", ratio, trace=name, system=system)
    jobs = [
        (config, name, *latencies[name], draw(name, config, lab, seed), seed, seed == lab.seeds[0])
        for name in config.traces
        for seed in lab.seeds
    ]
    for rows in lab.map(observe_online, jobs, "online"):
        seen.extend(rows)


def observe_conversations(config: Config, lab: Runtime, seen: Observations) -> None:
    """On LMSYS lengths: tokens computed after an end, and the computation that kept caches save."""
    if "lmsys" not in config.traces or not lab.wants("compute_saved", "eos_waste", "offload_slowdown"):
        return
    for seed in lab.seeds:
        work = draw("lmsys", config, lab, seed)
        seen.add("eos_waste", online.wasted_share(work, config.late), seed)
        rng = lab.rng(seed, "rounds")
        rounds = offload.rounds_of(rng, config.conversations)
        chosen = rng.integers(len(work), size=int(rounds.sum()))
        saved = offload.compute_saved(rounds, work.prompt[chosen], work.output[chosen], config.reuse)
        seen.add("compute_saved", saved, seed)


def observe_offload(config: Config, seen: Observations, base: Result) -> None:
    """The pipeline with the copies of keys and values that the conversations need."""
    found, curves = base.pipeline.found, base.case.switches.curves
    for row in seen.rows("compute_saved"):
        copies = offload.copy_us(LLAMA_2_70B, base.case.batch, row.value - 1)
        slower = offload.period_with_copies(found, curves, copies, config.hide_copies)
        seen.add("offload_slowdown", slower / base.pipeline.period - 1, row.seed)


def observe_online(
    job: tuple[Config, str, PipelineLatency, PipelineLatency, Requests, int, bool],
) -> Observations:
    """Rates within the limit (and latencies over the rate), of NanoFlow and of the same engine without overlap."""
    config, name, plain, ours, work, seed, curve = job
    seen = Observations()
    average = float(work.output.mean())
    systems = {
        "non-overlap": online.System(plain, DenseBatch(LLAMA_2_70B.dense_batch, average, config.late)),
        "NanoFlow": online.System(ours, DenseBatch(LLAMA_2_70B.dense_batch, average, config.late)),
    }
    tokens = float((work.prompt + work.output).mean())
    start = 1000 * LLAMA_2_70B.gpus / tokens  # requests/s at 1,000 tokens/s and GPU
    rates = {}

    def first_of(rate: float) -> Requests:
        return work.first(max(config.requests, int(rate * config.seconds)))

    for system, one in systems.items():
        rates[system] = online.sustained_rate(one, first_of, start, config.resolution)
        seen.add("online_rate", rates[system], seed, trace=name, system=system)
        for part in (0.1, 0.4, 0.8, 1.0, 1.2, 1.4, 1.6) if curve else ():
            trace = online.serve(one, first_of(part * start), part * start)
            latency = float(np.mean((trace.finish - trace.arrival) / trace.output))
            seen.add("normalised_latency", latency, seed, trace=name, system=system, rate=part * start)
    seen.add("online_rate_gain_by_trace", rates["NanoFlow"] / rates["non-overlap"], seed, trace=name)
    if name == "lmsys":
        seen.add("online_rate_gain", rates["NanoFlow"] / rates["non-overlap"], seed)
    return seen


def steady_throughput(latency: PipelineLatency, workload: Workload) -> float:
    """Tokens/s of one GPU when dense batches of constant lengths follow one another."""
    batch = LLAMA_2_70B.dense_batch
    period = (
        latency.fixed + latency.per_token * batch + latency.attention * workload_context(workload) * batch
    )
    return throughput(LLAMA_2_70B, period, batch)


def mean_lengths(name: str, lab: Runtime) -> Workload:
    """Mean prompt and output of a whole trace, which its pipeline is planned for."""
    lengths = trace_lengths(name, lab)
    return Workload(round(float(lengths.prompt.mean())), round(float(lengths.output.mean())))


def draw(name: str, config: Config, lab: Runtime, seed: int) -> Requests:
    """Requests of a trace with Poisson arrivals at one a second."""
    rng = lab.rng(seed, name)
    count = max(config.requests, int(MOST_RATE * config.seconds))
    lengths = trace_lengths(name, lab).sample(rng, count)
    return Requests(poisson(rng, count), lengths.prompt, lengths.output)


def trace_lengths(name: str, lab: Runtime) -> Lengths:
    """A trace's lengths below LONGEST tokens. LabError where the trace cannot be had."""
    path = lab.data(TRACES[name])
    if path is None:
        raise LabError(f"the length trace {TRACES[name]} is needed; see common/data")
    return _read(path)


@cache
def _read(path: Path) -> Lengths:
    return read_trace(path).within(LONGEST)


def _gain(workload: Workload) -> str:
    return f"gain_{workload.prompt}_{workload.output}"


def _share(model: str) -> str:
    return f"share_of_optimum_{model.replace('-', '_')}"
