"""What the claims of NanoFlow read: pipelines from the two-stage search, simulated on the operator times of Table 2.

The search is random: each seed walks anew, and plans every workload and model from what it found for LLaMA-2-70B.
Throughput counts prompt and output tokens together, per GPU, as the paper does.
"""

import numpy as np

from common.lab.runtime import Coordinate, Observations, Runtime
from papers.nanoflow import offload, online
from papers.nanoflow.config import Config
from papers.nanoflow.cost_model import (
    LLAMA_2_70B,
    Workload,
    bound_map,
    optimal_throughput,
    published,
    sequential_us,
    throughput,
)
from papers.nanoflow.interference import hidden_share, measured_streams
from papers.nanoflow.pipeline_latency import overlapped_latency, sequential_latency
from papers.nanoflow.pipelines import CONSTANT, Result, case_operators
from papers.nanoflow.plans import BASE, HOME, OF_TRACES, ONLINE, Plan, case, solved, wanted
from papers.nanoflow.replay import violations
from papers.nanoflow.search import halved

MAP_WORKLOAD = Workload(
    512, 1024
)  # of the T_R map: the longest outputs of Section 6, which press memory most
EXACT = 1e-5  # outputs that differ by more count as wrong (float32 sums in another order differ by 1e-6)
Found = dict[tuple[Plan, int], Result]


def run(config: Config, lab: Runtime) -> Observations:
    """Find the pipelines, and collect what the claims and figures read."""
    seen = Observations()
    if config.gpu_batch:
        from papers.nanoflow.gpu_streams import observe_streams  # brings torch

        if lab.wants("gpu_overlap_gain"):
            observe_streams(lab, seen, config.gpu_batch, config.gpu_context, config.overlap)
        return seen
    observe_arithmetic(config, lab, seen)
    seen.add("dense_batch", config.batch or LLAMA_2_70B.dense_batch)
    means = {}
    for name in config.traces:
        if (lengths := online.trace_lengths(name, lab)) is not None:
            means[name] = Workload(round(float(lengths.prompt.mean())), round(float(lengths.output.mean())))
    if "lmsys" in means:
        observe_conversations(config, lab, seen)
    plans = wanted(config, lab, means)
    found = solved(config, lab, plans)
    for seed in lab.seeds if HOME in plans else ():
        observe_base(config, lab, seen, found[HOME, seed], seed)
    for (plan, seed), result in found.items():
        observe_pipeline(seen, plan, result, seed)
    if lab.wants(*OF_TRACES):
        observe_published(lab, seen, means, found)
    if lab.wants(*ONLINE):
        observe_online(config, lab, seen, means, found)
    return seen


def observe_arithmetic(config: Config, lab: Runtime, seen: Observations) -> None:
    """What needs no pipeline: the T_R map, and streams measured on an H100."""
    if lab.wants("compute_bound_share"):
        for card, model, memory, network in (rows := bound_map(MAP_WORKLOAD, config.map_batch)):
            seen.add("memory_over_compute", memory, card=card, model=model)
            seen.add("network_over_compute", network, card=card, model=model)
        seen.add("compute_bound_share", float(np.mean([memory < 1 for _, _, memory, _ in rows])))
    if lab.wants("nano_batch_only"):
        cases = [case(config, Plan(LLAMA_2_70B, one), 0) for one in CONSTANT]
        whole = [(case_operators(one), one.batch) for one in cases]
        alone = [sequential_us(*one) / halved(*one).sequential for one in whole]
        seen.add("nano_batch_only", float(np.mean(alone)))
    if lab.wants("copy_hides_better"):
        seconds = measured_streams()
        better = hidden_share("gemm+h2d", seconds) / hidden_share(config.pair, seconds)
        seen.add("copy_hides_better", better)


def observe_conversations(config: Config, lab: Runtime, seen: Observations) -> None:
    """On LMSYS lengths: tokens computed after an end, and the computation that kept caches save."""
    for seed in lab.seeds if lab.wants("eos_waste_counted", "compute_saved", "offload_slowdown") else ():
        work = online.draw("lmsys", config, lab, seed)
        if lab.wants("eos_waste_counted"):
            seen.add("eos_waste_counted", online.wasted_share(work.first(config.requests), config.late), seed)
        seen.add("mean_prompt_tokens", float(work.prompt.mean()), seed)
        seen.add("mean_output_tokens", float(work.output.mean()), seed)
        rng = lab.rng(seed, "rounds")
        rounds = offload.rounds_of(rng, config.conversations, config.mean_rounds)
        chosen = rng.integers(len(work), size=int(rounds.sum()))
        saved = offload.compute_saved(rounds, work.prompt[chosen], work.output[chosen], config.reuse)
        seen.add("compute_saved", saved, seed)


def observe_base(config: Config, lab: Runtime, seen: Observations, base: Result, seed: int) -> None:
    """The base pipeline itself: its bounds, its replay, copies beside it, and a real layer run in its order."""
    found, curves = base.pipeline.found, base.case.switches.curves
    for name, period in base.systems:
        seen.add("period_us", period, seed, step=name)
    if base.pipeline.stage_one:
        seen.add("period_us", base.pipeline.stage_one.period, seed, step="stage I")
    for op, start, share in zip(found.layer.ops, *found.schedule[1:], strict=True):
        at: dict[str, Coordinate] = {"operator": op.operator, "stream": op.stream, "low": op.low}
        seen.add("op_start_us", start, seed, **at)
        seen.add("op_share", share, seed, **at)
        seen.add("op_length_us", curves.seconds(op.stream, op.work, share), seed, **at)
    if lab.wants("replay_violations"):
        wrong = violations(found.layer.ops, *found.schedule, curves.exponents)
        seen.add("replay_violations", len(wrong), seed)
    if lab.wants("numerics_wrong"):
        from papers.nanoflow.numerics import differences  # brings torch

        generator = lab.torch_generator(seed, "layer")
        off = differences(found.layer, found.schedule.starts, generator, base.case.batch)
        seen.add("numerics_wrong", int((off > EXACT).sum()), seed)
    for row in seen.rows("compute_saved", seed=seed) if lab.wants("offload_slowdown") else ():
        copies = offload.copy_us(LLAMA_2_70B, base.case.batch, row.value - 1)
        slower = offload.period_with_copies(found, curves, copies, config.hide_copies, config.copy_share)
        seen.add("offload_slowdown", slower / base.pipeline.period - 1, seed)


def observe_pipeline(seen: Observations, plan: Plan, result: Result, seed: int) -> None:
    """Gains of one pipeline: over non-overlap, of the optimum, over a network exponent."""
    model, workload, batch = plan.deployment, plan.workload, result.case.batch
    if plan.exponent is not None:
        for bound, period in (("stage II", result.pipeline.period), ("fluid", result.fluid)):
            seen.add(
                "gain_by_exponent", result.sequential / period, seed, exponent=plan.exponent, bound=bound
            )
        return
    if model == LLAMA_2_70B:
        seen.add(plan.gain, result.gain, seed)
        for name, period in result.systems:
            rate = throughput(model, period, batch)
            seen.add("throughput", rate, seed, workload=str(workload), system=name)
    if workload == BASE:
        best = optimal_throughput(model.model)
        for name, period in result.systems:
            share = throughput(model, period, batch) / best
            seen.add("share_of_optimum", share, seed, model=model.model, system=name)
        seen.add(plan.share, throughput(model, result.pipeline.period, batch) / best, seed)
        seen.add(f"sequential_{plan.share}", throughput(model, result.sequential, batch) / best, seed)


def observe_published(lab: Runtime, seen: Observations, means: dict[str, Workload], found: Found) -> None:
    """Throughput at the traces' mean lengths over what was published of TensorRT-LLM, the mean over the traces."""
    constants = published("TensorRT-LLM, tokens/s/GPU")
    for seed in lab.seeds if means else ():
        ratios: dict[str, list[float]] = {"NanoFlow": [], "non-overlap": []}
        for name, mean in means.items():
            result = found[Plan(LLAMA_2_70B, mean), seed]
            for system, period in result.systems:
                if system in ratios:
                    rate = throughput(LLAMA_2_70B, period, result.case.batch)
                    ratios[system].append(rate / constants[name])
                    seen.add("over_tensorrt", rate / constants[name], seed, trace=name, system=system)
        seen.add("over_tensorrt_traces", float(np.mean(ratios["NanoFlow"])), seed)
        seen.add("sequential_over_tensorrt_traces", float(np.mean(ratios["non-overlap"])), seed)


def observe_online(
    config: Config, lab: Runtime, seen: Observations, means: dict[str, Workload], found: Found
) -> None:
    """Rates within the latency limit on the traces, each on its own pipeline; figures ask for all of them."""
    jobs = []
    for name, mean in means.items():
        for seed in lab.seeds if name == "lmsys" or lab.wants("online_rate") else ():
            result = found[Plan(LLAMA_2_70B, mean), seed]
            batch = result.case.batch
            ours = sequential_latency(pieces=1 if config.overlap else 2)
            if result.pipeline.cuts:
                cuts, choice = result.pipeline.cuts, result.pipeline.found.choice
                ours, error = overlapped_latency(cuts, choice, result.case.switches.curves, mean, batch)
                seen.add("plane_error", error, seed, trace=name)
            sizes = (batch, config.late, config.requests, config.seconds, config.resolution)
            curve = seed == lab.seeds[0] and lab.wants("normalised_latency")
            jobs += [online.Job(name, seed, one, *sizes, curve) for one in (sequential_latency(), ours)]
    rows = online.serve_all(lab, config, jobs)
    for job, plain, ours_served in zip(jobs[::2], rows[::2], rows[1::2], strict=True):
        online.observe(seen, job.trace, job.seed, plain, ours_served)
