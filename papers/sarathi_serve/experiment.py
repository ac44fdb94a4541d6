"""What the claims of Sarathi-Serve read: capacities, the ablation and pipelines in simulation, chunks for real."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from common.hardware.operators import H100, read_table
from common.lab.runtime import Observations, Runtime
from common.serving.latency import LatencyModel
from common.serving.profiled import profiled_latency
from common.serving.workload import Workload
from papers.sarathi_serve import ablation, pipeline
from papers.sarathi_serve.budget import TILE, iteration_seconds, token_budget
from papers.sarathi_serve.capacity import LOWEST, Cell, Search, capacity, serve
from papers.sarathi_serve.config import Config
from papers.sarathi_serve.deployments import DEPLOYMENTS
from papers.sarathi_serve.lengths import KINDS, REAL, draw


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    if config.gpu_prompt:
        time_hybrid_batches(config, lab, seen)
        return seen
    search_capacities(config, lab, seen)
    if lab.wants(*ABLATION):
        loads = [(seed, ablation_loads(lab, seed)) for seed in lab.seeds]
        for rows in lab.map(partial(ablate, config.system), loads, "ablation"):
            seen.extend(rows)
    if config.pipeline_requests and lab.wants(*PIPELINE):
        busy = [(seed, load(lab, "chat", seed, config.pipeline_requests)) for seed in lab.seeds]
        pipelined = partial(run_pipelines, config, lab.wants("tp8_tbt_ratio"))
        for rows in lab.map(pipelined, busy, "pipelines"):
            seen.extend(rows)
    if config.load_rates and lab.wants("p99_tbt"):
        for seed in lab.seeds:
            load_curves(config, lab, seen, seed)
    analyse_iterations(config, lab, seen)
    if lab.wants(*REAL_METRICS):
        from papers.sarathi_serve import real_runs  # brings torch, which the simulations do without

        real_runs.run(
            real_runs.Sizes(
                config.real_prompt,
                config.prompt,
                config.chunk,
                config.live_requests,
                config.pretrained_prompt,
                config.keeps_past,
                config.system,
            ),
            lab,
            seen,
        )
    return seen


REAL_METRICS = (
    "chunking_error", "chunking_error_smollm2", "chunk_overhead_cpu", "stall_cpu", "piggyback_gain_cpu",
    "live_tbt_ratio",
)  # fmt: skip


# A GPU --------------------------------------------------------------------------------------------------------------

GPU_CHUNKS = (64, 128, 256, 512, 1024, 2048)  # tokens
GPU_MODEL, GPU_DECODES, GPU_CONTEXT = "llama-2-7b", 32, 1024


def time_hybrid_batches(config: Config, lab: Runtime, seen: Observations) -> None:
    """Seconds of a layer over decodes, a chunk and both on this device, and of a prompt in chunks and at once."""
    from common.serving.models import model
    from papers.sarathi_serve.gpu_hybrid_batches import Layer  # brings torch

    prompt = config.gpu_prompt
    chunk = prompt if config.system == "hybrid-only" else min(config.chunk, prompt)
    for seed in lab.seeds:
        generator = lab.torch_generator(seed, "hybrid batches")
        layer = Layer(model(GPU_MODEL), GPU_DECODES, GPU_CONTEXT, prompt, generator)
        if lab.wants("gpu_stall_avoided"):
            seen.add("gpu_iteration", layer.seconds(True, 0), seed, batch="decodes", chunk=0)
            for tokens in sorted({*(one for one in GPU_CHUNKS if one <= prompt), prompt}):
                seen.add("gpu_iteration", layer.seconds(False, tokens), seed, batch="prefill", chunk=tokens)
                seen.add("gpu_iteration", layer.seconds(True, tokens), seed, batch="hybrid", chunk=tokens)
            whole = layer.seconds(True, prompt)
            seen.add("gpu_stall_avoided", whole / layer.seconds(True, chunk), seed)
        if lab.wants("gpu_chunk_overhead"):
            once = layer.prefill_seconds(prompt, prompt)
            for tokens in (one for one in GPU_CHUNKS if 512 <= one < prompt):
                ratio = layer.prefill_seconds(prompt, tokens) / once
                seen.add("gpu_chunk_overhead_by_chunk", ratio, seed, chunk=tokens)
            seen.add("gpu_chunk_overhead", layer.prefill_seconds(prompt, chunk) / once, seed)


# Capacities ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """A metric: our capacity over a rival's in one setting."""

    metric: str
    deployment: str
    kind: str
    slo: str
    rival: str


def gains(config: Config) -> Iterator[Gain]:
    """The gains that a configuration can show: all settings of Yi-34B, and those of the others that a claim reads."""
    for name in config.models:
        every = name == "yi" or config.every_setting
        for kind in config.kinds:
            for slo in ("strict", "relaxed") if every else ("strict",):
                for rival in ("vllm", "orca") if every else ("vllm",):
                    yield Gain(f"gain_{name}_{slo}_over_{rival}_{kind}", name, kind, slo, rival)
    if config.pipeline_requests:
        for kind, slo in (("chat", "strict"), ("arxiv", "strict"), ("chat", "relaxed")):
            yield Gain(f"gain_falcon_{slo}_over_vllm_{kind}", "falcon", kind, slo, "vllm")


# Metrics that are maxima over settings: each gain is observed under these names too.
BEST = {"mistral": "best_gain_mistral_strict", "falcon": "best_gain_falcon_strict"}


def names(gain: Gain) -> list[str]:
    """Every metric that a gain is part of."""
    all_names = [gain.metric]
    if gain.slo == "strict" and gain.rival == "vllm" and gain.deployment in BEST:
        all_names.append(BEST[gain.deployment])
    if gain.deployment == "yi" and gain.kind == "chat" and gain.rival == "vllm":
        all_names.append("strict_over_relaxed_gain")
    return all_names


def search_capacities(config: Config, lab: Runtime, seen: Observations) -> None:
    """The capacity of every system in every wanted setting, and the ratios of them."""
    at_hand = {kind for kind in config.kinds if kind not in REAL or lab.data(REAL[kind])}
    wanted = [gain for gain in gains(config) if lab.wants(*names(gain)) and gain.kind in at_hand | {*KINDS}]
    searches: dict[tuple[Cell, int], Search] = {}
    for seed in lab.seeds:
        for gain in wanted:
            for system in (config.system, gain.rival):
                cell = Cell(gain.deployment, gain.kind, gain.slo, system)
                searches.setdefault((cell, seed), prepared(config, lab, cell, seed))
    work = list(searches.values())
    found = dict(zip(searches, lab.map(capacity, work, "capacities"), strict=True))
    for (cell, seed), rate in found.items():
        at = {"model": cell.deployment, "lengths": cell.kind, "slo": cell.slo, "system": cell.system}
        seen.add("capacity", rate, seed, **at)
    for seed in lab.seeds:
        ratios = {}
        for gain in wanted:
            ours, theirs = (
                found[Cell(gain.deployment, gain.kind, gain.slo, system), seed]
                for system in (config.system, gain.rival)
            )
            ratios[gain.metric] = max(ours, LOWEST) / max(theirs, LOWEST)
            seen.add(gain.metric, ratios[gain.metric], seed)
            if gain.slo == "strict" and gain.rival == "vllm" and gain.deployment in BEST:
                seen.add(BEST[gain.deployment], ratios[gain.metric], seed, lengths=gain.kind)
        pair = [ratios.get(f"gain_yi_{slo}_over_vllm_chat") for slo in ("strict", "relaxed")]
        if pair[0] and pair[1]:
            seen.add("strict_over_relaxed_gain", pair[0] / pair[1], seed)


def prepared(config: Config, lab: Runtime, cell: Cell, seed: int) -> Search:
    """The search of a cell on the requests of a seed, which all its rivals see too."""
    deployment = DEPLOYMENTS[cell.deployment]
    n = config.pipeline_requests if deployment.stages > 1 else config.requests
    objective = config.objective or deployment.objective(cell.slo)
    latency = times(config, cell.deployment)
    return Search(cell, seed, load(lab, cell.kind, seed, n), objective, deployment.budget(cell.slo), latency)


def times(config: Config, name: str) -> LatencyModel:
    """A deployment's latencies as the configuration has them."""
    latency: LatencyModel = DEPLOYMENTS[name].latency(config.host_seconds)
    return pipeline.EqualWork(latency) if config.equal_work else latency


def load(lab: Runtime, kind: str, seed: int, n: int) -> Workload:
    """The requests of a kind for a seed, one a second; real lengths for "arxiv-real", where they can be had."""
    path = lab.data(REAL[kind]) if kind in REAL else None
    return draw(kind, lab.rng(seed, kind), n, path)


# Fixed loads --------------------------------------------------------------------------------------------------------

ABLATION = tuple(
    f"{metric}_{kind}"
    for metric in ("tbt_hybrid_only", "tbt_chunked_only", "ttft_chunked_only", "ttft_over_hybrid_only")
    for kind in ablation.RATES
)


def ablation_loads(lab: Runtime, seed: int) -> dict[str, Workload]:
    """The requests of the ablation by kind, one a second."""
    return {kind: load(lab, kind, seed, ablation.REQUESTS) for kind in ablation.RATES}


def ablate(ours: str, job: tuple[int, dict[str, Workload]]) -> Observations:
    """P50 TTFT and P99 TBT of each technique alone and of both, and their ratios. job: a seed and its requests."""
    seed, loads = job
    seen = Observations()
    for kind, at_one in loads.items():
        rate = ablation.calm_rate(at_one, kind)
        seen.add("ablation_rate", rate, seed, lengths=kind)
        found = {}
        for system in dict.fromkeys(("hybrid-only", "chunked-only", ours, "vllm", "swapped")):
            found[system] = one = ablation.latencies(at_one.scaled(rate), kind, system)
            seen.add("ablation_ttft", one.ttft, seed, lengths=kind, system=system)
            seen.add("ablation_tbt", one.tbt, seed, lengths=kind, system=system)
        both, hybrid, chunked = (found[name] for name in (ours, "hybrid-only", "chunked-only"))
        seen.add(f"tbt_hybrid_only_{kind}", hybrid.tbt / both.tbt, seed)
        seen.add(f"tbt_chunked_only_{kind}", chunked.tbt / both.tbt, seed)
        seen.add(f"ttft_chunked_only_{kind}", chunked.ttft / both.ttft, seed)
        seen.add(f"ttft_over_hybrid_only_{kind}", both.ttft / hybrid.ttft, seed)
    return seen


PIPELINE = ("bubbles_removed", "tp8_tbt_ratio")
BUBBLE_RATE = 1.0  # requests/s, about Sarathi-Serve's capacity on Falcon-180B and chat
TP8_RATE = 0.75  # requests/s, osdi-experiments/figure-8


def run_pipelines(config: Config, tensor_parallel: bool, job: tuple[int, Workload]) -> Observations:
    """Bubbles by policy under the strict budget; with `tensor_parallel` also the median TBT of eight GPUs either way.

    job: a seed and its requests, one a second.
    """
    seed, at_one = job
    seen = Observations()
    busy, budget = at_one.scaled(BUBBLE_RATE), DEPLOYMENTS["falcon"].budget("strict")
    shares = {}
    for system in dict.fromkeys((config.system, "vllm", "hybrid-only")):
        spans, _ = pipeline.timeline(busy, "chat", system, budget, times(config, "falcon"))
        shares[system] = pipeline.bubble_share(spans, float(busy.arrival[-1]))
        seen.add("bubble_share", shares[system], seed, system=system)
    seen.add("bubbles_removed", shares["vllm"] - shares[config.system], seed)
    if not tensor_parallel:
        return seen
    across = times(config, "falcon-tp8")
    if not config.between_nodes:
        across = profiled_latency(
            "falcon-180b", "a100", 8, network="a100-dgx", host_seconds=config.host_seconds
        )
    medians = []
    for name, latency in (("falcon-tp8", across), ("falcon", times(config, "falcon"))):
        trace, _ = serve(at_one.scaled(TP8_RATE), name, "chat", config.system, budget, latency)
        medians.append(pipeline.median_tbt(trace))
        seen.add("median_tbt", medians[-1], seed, deployment=name)
    seen.add("tp8_tbt_ratio", medians[0] / medians[1], seed)
    return seen


def load_curves(config: Config, lab: Runtime, seen: Observations, seed: int) -> None:
    """P99 TBT of Yi-34B against the rate of chat requests, by policy and token budget."""
    at_one = load(lab, "chat", seed, config.requests)
    jobs = [
        (system, budget, rate)
        for system, budget in (("sarathi", 512), ("sarathi", 2048), ("vllm", 512), ("orca", 512))
        for rate in config.load_rates
    ]
    curve = partial(p99_tbt, at_one)
    for (system, budget, rate), (tbt, delay) in zip(jobs, lab.map(curve, jobs, "loads"), strict=True):
        seen.add("p99_tbt", tbt, seed, system=system, budget=budget, rate=rate)
        seen.add("median_delay", delay, seed, system=system, budget=budget, rate=rate)


def p99_tbt(at_one: Workload, job: tuple[str, int, float]) -> tuple[float, float]:
    """P99 TBT and median scheduling delay, seconds, of a (system, budget, rate)."""
    system, budget, rate = job
    found = ablation.latencies(at_one.scaled(rate), "chat", system, budget)
    return found.tbt, found.delay


# Single iterations --------------------------------------------------------------------------------------------------

STALL_PROMPTS = (1024, 2048, 4096, 8192)  # tokens, up to the longest chat request
STALL_DECODES = (8, 32)  # sequences
STALL_CONTEXT = 1024  # tokens of each


def analyse_iterations(config: Config, lab: Runtime, seen: Observations) -> None:
    """What the latency model says of single iterations: deterministic, without a seed."""
    yi = DEPLOYMENTS["yi"].latency(config.host_seconds)
    if lab.wants("stall"):
        for prompt in (tokens for tokens in (8, *STALL_PROMPTS) if tokens <= config.prompt):
            for decodes in STALL_DECODES:
                context = decodes * STALL_CONTEXT
                alone = yi.iteration([], decodes, context)[0]
                slower = yi.iteration([(prompt, 0)], decodes, context)[0] / alone
                seen.add("stall", slower, prompt=prompt, decodes=decodes)
    if lab.wants("piggyback_gain"):
        chunk = min(config.prompt, 1021)
        alone = yi.iteration([], 4, 4 * 1024)[0] / 4
        seen.add("piggyback_gain", alone / (yi.iteration([(chunk, 0)], 3, 3 * 1024)[0] / (chunk + 3)))
    if lab.wants("piggyback_gain_h100", "stall_h100"):
        with_prompt = h100_seconds("1024/1024" if config.prompt >= 1024 else "", 8, 512)
        tokens = 8 + (1024 if config.prompt >= 1024 else 0)
        seen.add("piggyback_gain_h100", h100_seconds("", 4, 1024) / 4 / (with_prompt / tokens))
        seen.add("stall_h100", with_prompt / h100_seconds("", 8, 512))
    if lab.wants("chunk_overhead"):
        for prompt in (2048, 4096, 8192, 16384):
            seen.add("chunk_overhead_by_prompt", overhead(yi, prompt, config.chunk), prompt=prompt)
            free = profiled_latency("yi-34b", tensor_parallel=2, host_seconds=0.0, rereads=False)
            seen.add("chunk_overhead_of_gemms", overhead(free, prompt, config.chunk), prompt=prompt)
        seen.add("chunk_overhead", max(seen.values("chunk_overhead_by_prompt")))
    if lab.wants("token_budget"):
        for name, deployment in DEPLOYMENTS.items():
            for slo in ("strict", "relaxed"):
                tokens = token_budget(deployment.latency(config.host_seconds), deployment.objective(slo))
                seen.add("token_budget", tokens, model=name, slo=slo)
        for tokens in range(TILE, 2049, TILE):
            seen.add("iteration_seconds", iteration_seconds(yi, tokens), tokens=tokens)


def h100_seconds(prefill: str, decodes: int, context: int) -> float:
    """Measured seconds of four layers like Llama-2-7B's on an H100 (common/hardware/tables, layers_bf16.csv).

    prefill: prompt as "new tokens/all its tokens", or nothing; decodes: sequences of `context` tokens. Raises
    KeyError for a batch that was not measured.
    """
    for row in read_table(H100 / "layers_bf16.csv"):
        batch = (row["prefill"], int(row["decode_batch"]), int(row["decode_kv_len"]))
        if batch == (prefill, decodes, context):
            return float(row["seconds_graph"])
    raise KeyError(
        f"no measured H100 batch with prefill {prefill!r} and {decodes} decodes of {context} tokens"
    )


def overhead(latency: LatencyModel, prompt: int, chunk: int) -> float:
    """Seconds of a prompt's chunks, one an iteration, over those of the prompt in one."""
    parts = sum(
        latency.iteration([(min(chunk, prompt - start), start)], 0, 0)[0] for start in range(0, prompt, chunk)
    )
    return parts / latency.iteration([(prompt, 0)], 0, 0)[0]
