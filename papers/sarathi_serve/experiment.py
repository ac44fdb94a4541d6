"""What the claims of Sarathi-Serve read: capacities, the ablation and pipelines in simulation, chunks for real.

The studies stand beside their mechanisms: gains.py, ablation.py, pipeline.py, iterations.py, real_runs.py.
"""

from dataclasses import replace
from functools import partial

from common.lab.runtime import Observations, Runtime
from common.serving.profiled import profiled_latency
from common.serving.workload import Workload
from papers.sarathi_serve import ablation, gains, iterations, pipeline
from papers.sarathi_serve.capacity import serve
from papers.sarathi_serve.config import Config
from papers.sarathi_serve.deployments import DEPLOYMENTS


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    gains.observe(config, lab, seen)
    if lab.wants(*ABLATION):
        loads = [
            (
                {kind: gains.load(lab, kind, seed, ablation.REQUESTS) for kind in ablation.RATES},
                seed,
                gains.budget_of(config, lab, "yi", "strict", seed),
            )
            for seed in lab.seeds
        ]
        for rows in lab.map(partial(ablate, config), loads, "ablation"):
            seen.extend(rows)
    if config.pipeline_requests and lab.wants(*PIPELINE):
        busy = [(gains.load(lab, "chat", seed, PIPELINE_REQUESTS), seed) for seed in lab.seeds]
        pipelined = partial(run_pipelines, config, lab.wants("tp8_tbt_ratio"))
        for rows in lab.map(pipelined, busy, "pipelines"):
            seen.extend(rows)
    if config.load_rates and lab.wants("p99_tbt"):
        gains.observe_loads(config, lab, seen)
    iterations.observe(config, lab, seen)
    if lab.wants("chunking_error_smollm2", "live_tbt_ratio"):
        from papers.sarathi_serve import real_runs  # brings torch, which the simulations do without

        real_runs.run(config, lab, seen)
    return seen


ABLATION = tuple(
    f"{metric}_{kind}"
    for metric in ("tbt_hybrid_only", "tbt_chunked_only", "ttft_chunked_only", "ttft_over_hybrid_only")
    for kind in ablation.RATES
)


def ablate(config: Config, job: tuple[dict[str, Workload], int, int]) -> Observations:
    """P50 TTFT and P99 TBT of each technique alone and of both. job: requests by kind, a seed, the token budget."""
    loads, seed, budget = job
    ours, latency = config.system, gains.times(config, "yi")
    whole = gains.times(replace(config, fused=True), "yi")  # the load is that of the whole method
    seen = Observations()
    for kind, at_one in loads.items():
        rate = ablation.calm_rate(at_one, kind, whole)
        seen.add("ablation_rate", rate, seed, lengths=kind)
        found = {}
        for system in dict.fromkeys(("hybrid-only", "chunked-only", ours, "vllm", "swapped")):
            tokens = budget if system == ours else ablation.BUDGET
            found[system] = one = ablation.latencies(at_one.scaled(rate), kind, system, tokens, latency)
            seen.add("ablation_ttft", one.ttft, seed, lengths=kind, system=system)
            seen.add("ablation_tbt", one.tbt, seed, lengths=kind, system=system)
            seen.add("ablation_preemptions", one.preemptions, seed, lengths=kind, system=system)
        both, hybrid, chunked = (found[name] for name in (ours, "hybrid-only", "chunked-only"))
        seen.add(f"tbt_hybrid_only_{kind}", hybrid.tbt / both.tbt, seed)
        seen.add(f"tbt_chunked_only_{kind}", chunked.tbt / both.tbt, seed)
        seen.add(f"ttft_chunked_only_{kind}", chunked.ttft / both.ttft, seed)
        seen.add(f"ttft_over_hybrid_only_{kind}", both.ttft / hybrid.ttft, seed)
    return seen


PIPELINE = ("bubbles_removed", "tp8_tbt_ratio")
PIPELINE_REQUESTS = 200  # of each run at a fixed rate
BUBBLE_RATE = 1.0  # requests/s, about Sarathi-Serve's capacity on Falcon-180B and chat


def run_pipelines(config: Config, tensor_parallel: bool, job: tuple[Workload, int]) -> Observations:
    """Bubbles by policy under the strict budget; with `tensor_parallel` also the median TBT of eight GPUs either way.

    job: requests, one a second, and their seed.
    """
    at_one, seed = job
    seen = Observations()
    busy, budget = at_one.scaled(BUBBLE_RATE), DEPLOYMENTS["falcon"].budget("strict")
    latency = gains.times(config, "falcon")
    shares = {}
    for system in dict.fromkeys((config.system, "vllm", "hybrid-only")):
        spans, _ = pipeline.timeline(busy, "chat", system, budget, latency)
        shares[system] = pipeline.bubble_share(spans, float(busy.arrival[-1]))
        seen.add("bubble_share", shares[system], seed, system=system)
    seen.add("bubbles_removed", shares["vllm"] - shares[config.system], seed)
    if not tensor_parallel:
        return seen
    across = gains.times(config, "falcon-tp8")
    if not config.between_nodes:
        across = profiled_latency(
            "falcon-180b", "a100", 8, network="a100-dgx", host_seconds=config.host_seconds
        )
    medians = []
    for name, one in (("falcon-tp8", across), ("falcon", latency)):
        trace, _ = serve(at_one.scaled(config.tp8_rate), name, "chat", config.system, budget, one)
        medians.append(pipeline.median_tbt(trace))
        seen.add("median_tbt", medians[-1], seed, deployment=name)
    seen.add("tp8_tbt_ratio", medians[0] / medians[1], seed)
    seen.add("tp8_rate", config.tp8_rate, seed)
    return seen
