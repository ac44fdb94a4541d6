"""All schedulers of the serving papers on equal terms: one workload, one model, the same GPUs, the same latencies.

The papers compare themselves each with its own engine, its own traces and a rival of its own choosing. Here every
system gets the same requests in the same order, the same GPUs with the same operator times and KV memory, the same
dispatch (least load) where it has replicas, and differs in its scheduling, its memory or its placement alone. What a
paper gains by better kernels is therefore not in this table. Two systems serve requests by priorities that change,
which no other has to: what that costs the less important requests is in their rows.

Three questions are asked of every system, at Poisson arrivals:

    attainment     share of requests within TTFT and TPOT objectives, over the rate
    goodput        the highest rate at which 90% of requests are (DistServe's question), with all the KV memory and
                   with a tenth of it
    capacity       the highest rate with P99 of all token gaps within an objective and a bounded queue (Sarathi-Serve's)

and the cost of a request is what the GPUs cost while it is served at the goodput: GPU-seconds a request.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np

from bakeoffs.nanoflow_overlap import Overlap, plan_overlap
from bakeoffs.serving_systems import LONGEST, SYSTEMS, Terms
from common.lab.bounds import At, Choice, Length
from common.lab.runtime import Observations, Runtime
from common.serving.engine import simulate
from common.serving.metrics import SLO, attainment, goodput, keeps_pace, normalised_latency, token_gaps
from common.serving.profiled import CARDS, SHAPES
from common.serving.trace import Trace
from common.serving.workload import SYNTHETIC, Workload, draw_lengths, poisson

LENGTHS = (
    "azure-conversation",
    "azure-code",
    "sharegpt",
    "sharegpt-joined",
    "lmsys",
    "arxiv-summarisation",
    *SYNTHETIC,
)
TRACES = {"azure-conversation": "azure-2023-conversation", "sharegpt": "nanoflow-sharegpt-lengths"}
LOWEST, LOW, HIGHEST = 0.005, 0.05, 100.0  # requests/s and GPU: where a search may end, begin, and end


@dataclass(frozen=True)
class Config:
    """The terms, and how finely the rates are searched."""

    systems: Annotated[list[str], Length(1), Choice(*SYSTEMS)] = field(default_factory=lambda: list(SYSTEMS))
    model: Annotated[str, Choice(*SHAPES)] = "llama-2-70b"
    gpu: Annotated[str, Choice(*CARDS)] = "a100"  # whose operator profile
    tensor_parallel: Annotated[int, Choice(1, 2, 4, 8)] = 4  # GPUs of an instance
    instances: Annotated[int, At(1, 64)] = 8
    lengths: Annotated[str, Choice(*LENGTHS)] = "azure-conversation"
    # Fewest of each run: the 90% quantile needs ten beyond it.
    requests: Annotated[int, At(100, 100_000)] = 400
    seconds: Annotated[float, At(0, 3600)] = 120.0  # of arrivals in each run, where that takes more requests
    most_requests: Annotated[int, At(100, 100_000)] = 8000  # of each run, whatever the rate
    # Objectives as multiples of an idle GPU's times. Sarathi-Serve (Section 5.1) sets its strict bound on token gaps at
    # 5 decode iterations of 32 sequences with 4k tokens each; the same bound serves as TPOT objective.
    ttft_factor: Annotated[float, At(1, 1e6)] = 10.0  # of the prefill of a prompt of mean length
    gap_factor: Annotated[float, At(1, 1e6)] = 5.0  # of a decode iteration of 32 sequences of 4,096 tokens
    target: Annotated[float, At(0.5, 0.99)] = 0.9  # share of requests within both objectives
    resolution: Annotated[float, At(0.001, 0.5)] = 0.03  # relative, of every rate that is searched
    # Share of the KV memory that is left in a second comparison, where memory limits batches; 0: no comparison.
    tight: Annotated[float, At(0, 1)] = 0.1
    loads: Annotated[list[float], Length(1), At(0.01, 20)] = field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    )  # rates of the curves, over the goodput of the first system


def check(config: Config) -> None:
    """ValueError in one line for terms that no system could serve on."""
    if config.most_requests < config.requests:
        raise ValueError(f"most_requests: {config.most_requests} is below requests ({config.requests})")
    if len(set(config.systems)) < len(config.systems):
        raise ValueError("systems: one of them is named twice")
    if "DistServe" in config.systems and config.instances < 2:
        raise ValueError("instances: DistServe needs two, one for each phase")
    try:
        tokens = terms_of(config).kv_tokens
    except KeyError as error:
        raise ValueError(f"model, gpu, tensor_parallel: {error.args[0]}") from None
    for share in (1.0, config.tight):
        if share > 0 and share * tokens < LONGEST:
            raise ValueError(
                f"{config.model} on {config.tensor_parallel} {config.gpu} leaves {max(0, int(share * tokens))} tokens "
                f"of KV memory an instance; the longest request needs {LONGEST}: raise tensor_parallel or tight"
            )


@dataclass(frozen=True)
class Job:
    """One system on one seed's requests."""

    config: Config
    system: str
    seed: int
    workload: Workload  # at one request a second
    split: int = 0  # DistServe's prefill instances
    overlap: Overlap | None = None  # NanoFlow's
    reference: float = 0.0  # requests/s and GPU that `loads` multiply, once it is known
    kv_share: float = 1.0  # of the KV memory


Row = tuple[str, float, dict[str, str | float]]


def run(config: Config, lab: Runtime) -> Observations:
    """Serve every seed's requests on every system; all rates are of requests/s and GPU."""
    seen = Observations()
    terms = terms_of(config)
    mean_prompt, slo = objectives(config, terms, lab)
    seen.add("mean_prompt", mean_prompt)
    seen.add("ttft_objective", slo.ttft)
    seen.add("gap_objective", slo.tpot)
    split = best_split(config, slo, lab) if "DistServe" in config.systems else 0
    seen.add("distserve_prefills", split)
    overlap = mean_overlap(config, lab) if "NanoFlow" in config.systems else None
    jobs = [
        Job(config, system, seed, requests(config, lab, seed), split, overlap)
        for seed in lab.seeds
        for system in config.systems
    ]
    limits = lab.map(Search(slo), jobs, "rates")
    for job, rows in zip(jobs, limits, strict=True):
        for metric, value, at in rows:
            seen.add(metric, value, job.seed, system=job.system, **at)
    # the curves are drawn at the same rates for every system, which the first system of the list sets
    reference = float(np.mean(seen.values("goodput", system=config.systems[0])))
    curves = [replace(job, reference=reference) for job in jobs]
    for job, rows in zip(curves, lab.map(Curve(slo), curves, "curves"), strict=True):
        for metric, value, at in rows:
            seen.add(metric, value, job.seed, system=job.system, **at)
    return seen


def best_split(config: Config, slo: SLO, lab: Runtime) -> int:
    """The prefill instances with which DistServe's goodput is highest, on requests that no seed serves."""
    workload = requests(config, lab, 0, "planning")
    jobs = [Job(config, "DistServe", 0, workload, n) for n in range(1, config.instances)]
    found = lab.map(Search(slo, goodput_only=True), jobs, "placement")
    return max(zip(found, jobs, strict=True), key=lambda one: one[0][0][1])[1].split


def mean_overlap(config: Config, lab: Runtime) -> Overlap:
    """NanoFlow's pipeline for the mean lengths of requests that no seed serves."""
    drawn = requests(config, lab, 0, "planning")
    return plan_overlap(round(float(drawn.prompt.mean())), round(float(drawn.output.mean())))


def requests(config: Config, lab: Runtime, seed: int, stream: str = "requests") -> Workload:
    """The requests of a seed, arriving at one a second in the mean."""
    name = TRACES.get(config.lengths)
    path = lab.data(name) if name else None
    rng = lab.rng(seed, stream)
    lengths = draw_lengths(config.lengths, rng, config.most_requests, path)
    return Workload(poisson(rng, config.most_requests), lengths.prompt, lengths.output)


def objectives(config: Config, terms: Terms, lab: Runtime) -> tuple[float, SLO]:
    """The mean prompt (tokens) of requests that no seed serves, and the objectives in seconds."""
    name = TRACES.get(config.lengths)
    path = lab.data(name) if name else None
    prompt = float(draw_lengths(config.lengths, lab.rng(0, "objectives"), 20_000, path).prompt.mean())
    idle = terms.latency.iteration([(round(prompt), 0)], 0, 0)[0]
    step = terms.latency.iteration([], 32, 32 * 4096)[0]
    return prompt, SLO(config.ttft_factor * idle, config.gap_factor * step)


@dataclass(frozen=True)
class Search:
    """Finds what a job's system sustains; picklable, as work for other processes must be."""

    slo: SLO
    goodput_only: bool = False

    def __call__(self, job: Job) -> list[Row]:
        gpus = terms_of(job.config).gpus
        serve = server(job)
        target, slo = job.config.target, self.slo

        def highest(sustains: Callable[[Trace], bool], serve: Callable[[float], Trace] = serve) -> float:
            # from below, for under overload prompts stop interrupting decodes and gaps get short again
            return goodput(
                lambda rate: sustains(serve(rate * gpus)), LOW, job.config.resolution, LOWEST, HIGHEST
            )

        def attains(trace: Trace) -> bool:
            return attainment(trace, slo) >= target

        within = highest(attains)
        rows: list[Row] = [("goodput", within, {})]
        if within > 0:
            rows.append(("gpu_seconds_per_request", 1 / within, {}))
        if not self.goodput_only:
            rows.append(("capacity", highest(lambda trace: keeps_pace(trace, slo.tpot)), {}))
            if job.config.tight:
                tight = server(replace(job, kv_share=job.config.tight))
                rows.append(("goodput_tight", highest(attains, tight), {}))
        return rows


@dataclass(frozen=True)
class Curve:
    """Latencies of a job's system over the rate."""

    slo: SLO

    def __call__(self, job: Job) -> list[Row]:
        serve = server(job)
        rows: list[Row] = []
        for load in job.config.loads:
            trace = serve(load * job.reference * terms_of(job.config).gpus)
            gaps = token_gaps(trace)
            at: dict[str, str | float] = {"rate": round(load * job.reference, 6)}
            rows += [
                ("attainment", attainment(trace, self.slo), at),
                ("ttft_p50", float(np.quantile(trace.ttft, 0.5)), at),
                ("ttft_p99", float(np.quantile(trace.ttft, 0.99)), at),
                ("gap_p99", float(np.quantile(gaps, 0.99)), at),
                ("normalised_latency", float(np.mean(normalised_latency(trace))), at),
                ("preemptions", float(trace.preemptions.mean()), at),
            ]
        return rows


def terms_of(config: Config, kv_share: float = 1.0) -> Terms:
    """The terms that all systems share."""
    return Terms.of(config.model, config.gpu, config.tensor_parallel, config.instances, kv_share)


def server(job: Job) -> Callable[[float], Trace]:
    """What serves a job's requests at a rate, requests/s; a rate that was served before is not served again."""
    config, terms = job.config, terms_of(job.config, job.kv_share)
    given: dict[str, dict[str, Any]] = {
        "DistServe": {"prefills": job.split},
        "NanoFlow": {"overlap": job.overlap},
        "FastSwitch": {"requests": config.most_requests, "seed": job.seed},
        "vLLM, priorities": {"requests": config.most_requests, "seed": job.seed},
    }
    build = partial(SYSTEMS[job.system], **given.get(job.system, {}))
    known: dict[float, Trace] = {}

    def serve(rate: float) -> Trace:
        if rate not in known:
            count = min(config.most_requests, max(config.requests, round(rate * config.seconds)))
            known[rate] = simulate(job.workload.first(count).scaled(rate), lambda loop: build(terms, loop))
        return known[rate]

    return serve
